"""Reverse-mode differentiation, ONNX graph in, ONNX graph out.

A table holds one small rule per operator; a short walk carries cotangents from the seeded tensors
back to the wanted ones and touches only nodes on a path between them. Only activations are
differentiated, never parameters, so each rule is a few nodes. The result is an ONNX graph again:
onnxruntime executes it, and it can be saved and run where no Python framework is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pellucid.errors import InputError, LayerError, UnsupportedError, nearest
from pellucid.graph.expansions import EXPANSIONS, expand
from pellucid.graph.merging import merge_affine
from pellucid.graph.normalizing import Spelled, find_norms
from pellucid.graph.prepare import fold, infer, prepare, settle
from pellucid.graph.propagation import PROPAGATIONS
from pellucid.graph.rectifiers import Rectifier, find_rectifiers
from pellucid.graph.rules import RULES
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.split import split
from pellucid.graph.tape import BACKWARD, Tape, is_float, label, operands, rename_constant

__all__ = ["Gradient", "differentiate", "spell_out"]

_Sent: TypeAlias = "tuple[ir.Value | None, ir.Value | None]"


@dataclass(frozen=True)
class Gradient:
    """A graph together with its derivative.

    Attributes
    ----------
    model : forward and backward in one graph. Its inputs are the network's and `seed/<tensor>`
        for each seeded tensor, its outputs the fetched tensors and `grad/<tensor>` for each
        wanted one.
    fetch, seeds, wrt : names of tensors.
    relu : the rectifier rule that the graph follows.
    """

    model: ir.Model
    fetch: tuple[str, ...]
    seeds: tuple[str, ...]
    wrt: tuple[str, ...]
    relu: Rectifier

    def split(self) -> tuple[ir.Model, ir.Model]:
        """Cut the graph in two, for seeds that are computed from the fetched values.

        Returns
        -------
        forward : from the network's inputs to the fetched tensors and the residuals.
        backward : from `seed/<tensor>` and the residuals to `grad/<tensor>`. Parameters and all
            that follows from them alone are constants of this half, never residuals.
        """
        return split(self.model, self.fetch, self.seeds, self.wrt)

    def save(self, path: str) -> None:
        """Write the model to an `.onnx` file."""
        ir.save(self.model, path)


def differentiate(
    model: ir.Model | onnx.ModelProto,
    seeds: Sequence[str],
    wrt: Sequence[str],
    *,
    relu: Rectifier = "exact",
    fetch: Sequence[str] | None = None,
) -> Gradient:
    """Write the vector-Jacobian product of a graph beside the graph.

    Parameters
    ----------
    model : the network; it is not changed.
    seeds : names of the tensors at which cotangents will be given.
    wrt : names of the tensors whose gradient is wanted. Where no seed depends on one of them, its
        gradient is zero.
    relu : `"exact"` for the derivative; `"guided"`: negative cotangents are set to zero at the
        output of every rectifier, then the derivative applies; `"deconv"`: they are set to zero
        and the derivative does not apply; or a rule of `pellucid.graph.propagation`.
    fetch : names of the tensors to return; by default the network's outputs.

    Raises
    ------
    LayerError : the graph has no such tensor.
    UnsupportedError : an operator on the way has no rule, or none for the way it is used; the
        message names the nearest layer from which an explanation is possible.

    Example
    -------
    >>> gradient = differentiate(onnx.load("net.onnx"), ["logits"], ["input"])  # doctest: +SKIP
    >>> gradient.save("saliency.onnx")  # doctest: +SKIP
    """
    if relu not in ("exact", "guided", "deconv", *PROPAGATIONS):
        known = ", ".join(("exact", "guided", "deconv", *PROPAGATIONS))
        raise InputError(f"relu={relu!r} is no rule: {known}.")
    clean = prepare(model)
    if relu in PROPAGATIONS and PROPAGATIONS[relu].merges:
        merge_affine(clean, {*seeds, *wrt, *(fetch or ())})
    graph = clean.graph
    tensors = ir.convenience.create_value_mapping(graph)
    names = tuple(v.name or "" for v in graph.outputs) if fetch is None else tuple(fetch)
    for name in (*names, *seeds, *wrt):
        if name not in tensors:
            raise LayerError(f"The graph has no tensor {name!r}. {nearest(name, tensors)}")
    for name in (*seeds, *wrt):
        if tensors[name].const_value is not None:
            raise LayerError(
                f"Tensor {name!r} is a parameter or a constant; only activations have gradients."
            )
    spell_out(clean, seeds, wrt)
    tensors = ir.convenience.create_value_mapping(graph)
    tape = Tape(graph)
    given = {tensors[name]: _seed(tensors[name]) for name in seeds}
    found = walk(tape, graph, given, [tensors[name] for name in wrt], relu)
    gradients = []
    for name in wrt:
        tape.dtype = _real(tensors[name].dtype)
        gradient = found.get(tensors[name]) or tape.zeros(tensors[name])
        kind, shape = ir.TensorType(tape.dtype), tensors[name].shape
        result = ir.Value(name=f"grad/{name}", type=kind, shape=shape)
        tape.op("Identity", [gradient], output=result, name=f"{BACKWARD}{name}")
        gradients.append(result)
    graph.extend(tape.nodes)
    for constant in tape.initializers:
        graph.register_initializer(constant)
    graph.inputs.extend(given.values())
    graph.outputs.clear()
    graph.outputs.extend([*(tensors[name] for name in names), *gradients])
    passes.RemoveUnusedNodesPass()(clean)
    fold(clean)
    infer(clean)
    return Gradient(clean, names, tuple(seeds), tuple(wrt), relu)


def spell_out(model: ir.Model, seeds: Sequence[str], wrt: Sequence[str]) -> None:
    """Write what has an expansion out in others, between the wanted tensors and the seeded ones.

    Tensors keep their names.
    """
    while True:  # behind a loop that was written out, others may be of known length
        tensors = ir.convenience.create_value_mapping(model.graph)
        ends = [[tensors[name] for name in names] for names in (seeds, wrt)]
        if not expand(model.graph, path(model.graph, *ends)[0], EXPANSIONS):
            return
        settle(model)


def walk(
    tape: Tape,
    graph: ir.Graph,
    seeds: dict[ir.Value, ir.Value],
    wrt: Iterable[ir.Value],
    relu: Rectifier = "exact",
    *,
    inside: bool = False,
) -> dict[ir.Value, ir.Value]:
    """Accumulate cotangents from the seeded values back to the wanted ones.

    Parameters
    ----------
    inside : whether the graph is a branch, whose layers nobody can ask for.
    """
    wanted = list(wrt)
    nodes, tape.wanted = path(graph, list(seeds), wanted)
    refuse_unknown(nodes, tape.wanted)
    spans = find_rectifiers(nodes, graph) if relu != "exact" else {}
    propagation = PROPAGATIONS.get(relu)
    rules = RULES if propagation is None else propagation.rules
    norms: Mapping[ir.Node, Spelled] = {}
    if propagation is not None:
        norms = find_norms(nodes, graph, {*seeds, *wanted})
    arriving: dict[ir.Value, list[ir.Value]] = {value: [g] for value, g in seeds.items()}
    found: dict[ir.Value, ir.Value] = {}

    def cotangent(value: ir.Value) -> ir.Value | None:
        if value not in found and value in arriving:
            found[value] = tape.add(arriving[value])
        return found.get(value)

    def send(value: ir.Value | None, g: ir.Value | None) -> None:
        if value is not None and g is not None and value in tape.wanted:
            if g.type is None and is_float(value):  # tells the runtime that batches are the same
                g.type, g.shape = value.type, value.shape
            arriving.setdefault(value, []).append(g)

    for node in reversed(nodes):
        gs = [cotangent(value) for value in node.outputs]
        if all(g is None for g in gs):
            continue
        tape.dtype = _real(node.outputs[0].dtype)
        span, spelled = spans.get(node), norms.get(node)
        if spelled is not None and gs[0] is not None and propagation is not None:
            send(spelled.norm.x, propagation.norm(tape, spelled.norm, gs[0]))
            continue
        if span is not None and gs[0] is not None and propagation is not None:
            send(span.source, propagation.unit(tape, span.source, node.outputs[0], gs[0]))
            continue
        if span is not None and gs[0] is not None:
            gs[0] = tape.Relu(gs[0])
            if relu == "deconv" and span.source in tape.wanted:
                send(span.source, gs[0])
                continue
        try:
            if node.op_type == "If":
                carried: Iterable[_Sent] = through_branches(tape, node, gs, relu).items()
            else:
                carried = zip(node.inputs, rules[node.op_type](tape, node, *gs), strict=False)
        except UnsupportedError as error:
            if inside or propagation is not None:
                raise
            instead = _instead(nodes, node, node.outputs)
            raise UnsupportedError(f"{error} {instead}") from error
        for value, g in carried:
            send(value, g)
    return {value: g for value in wanted if (g := cotangent(value)) is not None}


def through_branches(
    tape: Tape, node: ir.Node, gs: Sequence[ir.Value | None], relu: Rectifier
) -> dict[ir.Value, ir.Value]:
    """Carry cotangents back through whichever branch of an If is taken, by an If over both.

    What a branch computed is not to be had outside of it, so it is computed again inside.
    """
    wanted = [value for value in operands(node) if value in tape.wanted]
    prefix = f"{BACKWARD}{node.name}/"
    branches = {}
    for name in ("then_branch", "else_branch"):
        branch = node.attributes[name].as_graph().clone(allow_outer_scope_values=True)
        branch.opset_imports.update(node.graph.opset_imports if node.graph else {})
        for inner in branch:
            inner.name = f"{prefix}{name}/{inner.name}"
            for value in inner.outputs:
                value.name = f"{prefix}{name}/{value.name}" if value.name else value.name
        for value in list(branch.initializers.values()):
            del branch.initializers[value.name or ""]
            rename_constant(value, f"{prefix}{name}/{value.name}")
            branch.register_initializer(value)
        t = Tape(branch, prefix=f"{prefix}{name}/{BACKWARD}")
        seeds: dict[ir.Value, list[ir.Value]] = {}
        for value, g in zip(branch.outputs, gs, strict=True):
            if g is not None:
                seeds.setdefault(value, []).append(g)
        found = walk(
            t, branch, {v: t.add(terms) for v, terms in seeds.items()}, wanted, relu, inside=True
        )
        results = []
        for value in wanted:
            t.dtype = _real(value.dtype)
            given = found.get(value)
            result = t.zeros(value) if given is None else t.op("Identity", [given])
            result.type, result.shape = ir.TensorType(t.dtype), value.shape
            results.append(result)
        branch.extend(t.nodes)
        for constant in t.initializers:
            branch.register_initializer(constant)
        branch.outputs.clear()
        branch.outputs.extend(results)
        branches[name] = branch
    outputs = tape.write_many("If", len(wanted), operand(node), **branches)
    return dict(zip(wanted, outputs, strict=True))


def path(
    graph: ir.Graph, seeds: Sequence[ir.Value], wrt: Sequence[ir.Value]
) -> tuple[list[ir.Node], set[ir.Value]]:
    """Nodes between the wanted and the seeded values, and the values that depend on the former."""
    reached, below = set(wrt), []
    for node in graph:
        if any(value in reached for value in _moving(node)):
            reached.update(v for v in node.outputs if is_float(v) or stands_for_float(node))
            below.append(node)
    reaching = set(seeds)
    between = []
    for node in reversed(below):
        if any(value in reaching and value in reached for value in node.outputs):
            reaching.update(_moving(node))
            between.append(node)
    return between[::-1], reached


def _moving(node: ir.Node) -> list[ir.Value]:
    """What the output changes with: CastLike takes but the type of its second operand."""
    return [operand(node)] if node.op_type == "CastLike" else operands(node)


_MOVES = {"Concat", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Slice", "Split", "Squeeze"}
_MOVES |= {"Identity", "QuantizeLinear", "Resize", "Transpose", "Unsqueeze", "Expand", "Tile"}


def stands_for_float(node: ir.Node) -> bool:
    """Whether an integer output is a quantised real number."""
    if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return True
    small = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16}
    return node.op_type in _MOVES and node.outputs[0].dtype in small


def refuse_unknown(nodes: Sequence[ir.Node], reached: set[ir.Value]) -> None:
    """Raise for the operator without a rule that is nearest to the seeds."""
    unknown = {node: found for node in nodes if (found := _unknown(node, reached))}
    if not unknown:
        return
    last = list(unknown)[-1]
    others = sorted({operator for found in unknown.values() for operator in found} - {last.op_type})
    also = f" Nor have {', '.join(others)}." if others else ""
    below = {value for node in unknown for value in node.outputs}
    raise UnsupportedError(
        f"{label(last)} has no derivative here.{also}{_advice(last)} {_instead(nodes, last, below)}"
    )


def _unknown(node: ir.Node, reached: set[ir.Value]) -> set[str]:
    """Operators without a rule in a node: its own, or those in its branches."""
    if node.domain in ("", "ai.onnx") and node.op_type in RULES:
        return set()
    if node.op_type != "If":
        return {node.op_type}
    outside = [value for value in operands(node) if value in reached]
    found: set[str] = set()
    for attribute in node.attributes.values():
        branch = attribute.as_graph()
        inner, within = path(branch, list(branch.outputs), outside)
        found = found.union(*(_unknown(each, within) for each in inner))
    return found


def _advice(node: ir.Node) -> str:
    if why := node.meta.get("kept"):
        return f" {why}"
    if node.domain != "com.microsoft.nchwc":
        return ""
    return (
        " The file was optimised for one kind of processor: explain the file that it was made "
        "from, or save it again with onnxruntime's level ORT_ENABLE_EXTENDED."
    )


def _instead(nodes: Sequence[ir.Node], node: ir.Node, below: Collection[ir.Value]) -> str:
    """Name the layer nearest to a node that can be explained."""
    behind = [n for n in nodes[nodes.index(node) + 1 :] if not n.meta.get("inside")]
    above = [n for n in behind if any(v in below for v in operands(n))] or behind
    if not above:
        tensor = node.outputs[0].name
        return f"Explain the layer's own output, tensor {tensor!r}, or a later one."
    return (
        f"The nearest layer that can be explained is {above[0].name or '?'!r} "
        f"(tensor {above[0].outputs[0].name!r}), or any after it."
    )


def _seed(value: ir.Value) -> ir.Value:
    kind = ir.TensorType(_real(value.dtype))
    return ir.Value(name=f"seed/{value.name}", type=kind, shape=value.shape)


def _real(dtype: ir.DataType | None) -> ir.DataType:
    """Element type of cotangents: integers stand for real numbers, as in a picture."""
    return dtype if dtype is not None and dtype.is_floating_point() else ir.DataType.FLOAT
