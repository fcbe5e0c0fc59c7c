"""One number written where a mask says so, `x[x < 0] = 0`, as a choice between the two."""

from __future__ import annotations

import onnx_ir as ir

from pellucid.graph.expansions.table import expansion
from pellucid.graph.rectifiers import filled_with
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.rules.table import str_attr
from pellucid.graph.tape import Tape


@expansion("ScatterND")
def written_where(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    x, number = operand(node), filled_with(operand(node, 2))
    turned = operand(node, 1).producer()
    places = None if turned is None else operand(turned).producer()
    if turned is None or places is None or number is None:
        return None
    kinds = (turned.op_type, places.op_type, str_attr(node, "reduction", "none"))
    mask = operand(places)
    if kinds != ("Transpose", "NonZero", "none") or mask.dtype != ir.DataType.BOOL:
        return None
    return [t.Where(mask, float(number), x)] if t.rank(mask) == t.rank(x) else None
