"""Bring an ONNX file into the form that the rules know.

Current operators, no functions, constants as initializers and computed once, constant branches
taken, shapes inferred. Tensor names stay: they are how layers are found.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import inliner, shape_inference, version_converter
from onnx_ir.passes import common as passes

from pellucid.errors import UnsupportedError, first_line
from pellucid.graph.expansions import FUSED, expand
from pellucid.graph.protobuf import with_own_domains
from pellucid.graph.rules import RULES
from pellucid.graph.rules.convolution import window
from pellucid.graph.rules.table import int_attr, ints_attr
from pellucid.graph.sequences import open_sequences
from pellucid.graph.sizes import forget_symbols, known_sizes, leave_out_idle_cuts
from pellucid.graph.tape import array, rename_constant

__all__ = [
    "OPSET",
    "evaluate",
    "fold",
    "infer",
    "prepare",
    "settle",
    "take_constant_branches",
    "unfused",
    "with_constants_computed",
]

OPSET = 18  # the rules read and write the operators as they are since this version

_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
_RANDOM |= {"RandomUniformLike"}


def prepare(model: ir.Model | onnx.ModelProto) -> ir.Model:
    """Return a copy of a model in the form that the rules know."""
    proto = _of_known_opset(model if isinstance(model, onnx.ModelProto) else ir.to_proto(model))
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    for _ in range(4):  # what is spelled out may name others that are
        if not (spelled := _spelled_out(proto)):
            break
        proto = _with_functions_inlined(proto, spelled)
    clean = ir.from_proto(proto)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(clean)
    passes.RemoveInitializersFromInputsPass()(clean)
    _open_fused(clean)
    while drop_idle_ceiling(clean):
        pass
    settle(clean)
    passes.NameFixPass()(clean)  # nodes that ONNX or a branch brought have no name or a double one
    return clean


def settle(model: ir.Model) -> None:
    """Infer shapes, open sequences, take constant branches and compute constants, in turn.

    Each of these may let the others get further.
    """
    for _ in range(4):
        leave_out_idle_cuts(model.graph)
        forget_symbols(model.graph)
        infer(model)
        name_cast_types(model.graph)
        if opened := open_sequences(model.graph):
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        if not (opened + take_constant_branches(model.graph) + fold(model)):
            break


def unfused(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose fused operators are written out; the model itself where none are."""
    named = with_own_domains(proto)
    if not any((node.domain, node.op_type) in FUSED for node in named.graph.node):
        return proto
    clean = ir.from_proto(_of_known_opset(named))
    _open_fused(clean)
    return ir.to_proto(clean)


def _open_fused(model: ir.Model) -> None:
    if any((node.domain, node.op_type) in FUSED for node in model.graph):
        infer(model)
        expand(model.graph, list(model.graph), FUSED)


def _of_known_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Bring a model of an old opset up to the one that the rules know."""
    proto = with_own_domains(proto)
    version = _version(proto)
    if version >= OPSET:
        return proto
    try:
        return version_converter.convert_version(proto, OPSET)
    except Exception as error:
        raise UnsupportedError(
            f"The model uses ONNX opset {version}, and the onnx package could not bring it to "
            f"opset {OPSET}: {error}. Export it with opset {OPSET} or later."
        ) from error


def with_constants_computed(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """Return a model without the nodes that compute the same at every run, for the runtime's sake.

    It merges a convolution with what stands around it only if weights and paddings are plain
    constants; exporters that do not optimise write them as small graphs of shapes and casts.

    Parameters
    ----------
    kept : initializers that stay as they are, with the nodes that work on them.
    """
    clean = ir.from_proto(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(clean)
    infer(clean)
    name_cast_types(clean.graph)
    fold(clean, kept)
    return ir.to_proto(clean)


def _with_functions_inlined(
    proto: onnx.ModelProto, spelled: list[tuple[str, str]]
) -> onnx.ModelProto:
    typed = shape_inference.infer_shapes(proto)
    for node in typed.graph.node:
        if (node.domain, node.op_type) in spelled:
            _write_defaults(node, typed)
    for tensor in typed.graph.initializer:  # the inliner asks for their types too
        typed.graph.value_info.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    try:
        found = inliner.inline_selected_functions(typed, spelled, inline_schema_functions=True)
    except RuntimeError as error:
        names = ", ".join(name for _, name in spelled)
        raise UnsupportedError(
            f"The onnx package cannot write {names} out in operators that have a derivative: "
            f"{first_line(error)}. Export the model with an opset that spells them out."
        ) from error
    constants = {tensor.name for tensor in found.graph.initializer}
    kept = [value for value in found.graph.value_info if value.name not in constants]
    del found.graph.value_info[:]
    found.graph.value_info.extend(kept)
    return found


def _write_defaults(node: onnx.NodeProto, proto: onnx.ModelProto) -> None:
    """Give a node the attributes that it leaves at their defaults: the inliner asks for them."""
    schema = onnx.defs.get_schema(node.op_type, _version(proto))
    written = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in written and attribute.default_value.name:
            node.attribute.append(attribute.default_value)


def _version(proto: onnx.ModelProto) -> int:
    """The version of the standard operators that a model uses."""
    found = (int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    return next(found, OPSET)


def _spelled_out(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    """Operators without a rule that ONNX itself defines by others."""
    found, version = set(), _version(proto)
    for node in proto.graph.node:
        if node.domain or node.op_type in RULES:
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, version)
        except onnx.defs.SchemaError:
            continue
        spelled = ("has_function", "has_context_dependent_function")
        if any(getattr(schema, kind) for kind in spelled):
            found.add(("", node.op_type))
    return sorted(found - {("", "Range")})


def infer(model: ir.Model) -> None:
    """Infer element types and shapes; whatever cannot be inferred stays unknown."""
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def name_cast_types(graph: ir.Graph) -> None:
    """Write CastLike as Cast: it takes a type from its second operand, no values."""
    for node in graph:
        like = node.inputs[1] if node.op_type == "CastLike" else None
        if like is not None and like.dtype is not None:
            node.op_type = "Cast"
            node.resize_inputs(1)
            node.attributes["to"] = ir.AttrInt64("to", int(like.dtype))


def drop_idle_ceiling(model: ir.Model) -> bool:
    """Round down the first pooling whose last, rounded-up window would start behind the input.

    The runtime has no such window, as in torch, but shape inference counts it.
    """
    if not any(int_attr(node, "ceil_mode", 0) for node in model.graph):
        return False
    inferred = model.clone()
    infer(inferred)
    for node, known in zip(model.graph, inferred.graph, strict=True):
        if not int_attr(node, "ceil_mode", 0) or node.meta.get("ceiling settled"):
            continue
        node.meta["ceiling settled"] = True
        kernel = ints_attr(node, "kernel_shape", [])
        win = window(known, kernel)
        if win.pads is None or None in win.sizes:
            continue
        ends, idle = [], []
        for size, (before, after), extent, stride in zip(
            win.sizes, win.pads, win.extent, win.strides, strict=True
        ):
            assert size is not None
            room = size + before + after - extent
            steps = -(-room // stride)
            steps -= steps * stride >= size + before  # torch's rule, and the runtime's
            ends.append(steps * stride + extent - size - before)
            idle.append(steps == room // stride)
        fits = all(end < k for end, k in zip(ends, kernel, strict=True))
        if all(idle) or (any(idle) and node.op_type == "MaxPool" and fits):
            if not all(idle):  # the padding that the remaining ceilings come to
                begins = [before for before, _ in win.pads]
                node.attributes["pads"] = ir.AttrInt64s(
                    "pads", [*begins, *map(max, ends, [0] * len(ends))]
                )
            node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)
            return True
    return False


def take_constant_branches(graph: ir.Graph) -> int:
    """Replace every If whose condition is constant by the branch that it takes."""
    taken = 0
    for node in list(graph):
        condition = array(node.inputs[0]) if node.op_type == "If" else None
        if condition is None:
            continue
        name = "then_branch" if condition.reshape(-1)[0] else "else_branch"
        branch: ir.Graph = node.attributes[name].as_graph()
        results = list(branch.outputs)
        for value in list(branch.initializers.values()):
            branch.initializers.pop(value.name or "")
            rename_constant(value, f"{node.name}/{value.name}")
            graph.register_initializer(value)
        inner = list(branch)
        branch.outputs.clear()
        branch.remove(inner)
        for inside in inner:
            inside.name = f"{node.name}/{inside.name}" if inside.name else None
            for value in inside.outputs:
                if value not in results:
                    value.name = f"{node.name}/{value.name}"
        names = [output.name for output in node.outputs]
        for outside, result, own in zip(node.outputs, results, names, strict=True):
            outside.replace_all_uses_with(result, replace_graph_outputs=True)
            outside.name = f"{own}/taken"
            if result.producer() is not None:
                result.name = own
        graph.insert_before(node, inner)
        graph.remove(node, safe=True)
        taken += 1
    return taken


def fold(model: ir.Model, kept: Collection[str] = ()) -> int:
    """Compute every node that depends on constants alone; return how many there were.

    Initializers in `kept` count as no constants, but for their shape.
    """
    graph, pending = model.graph, []
    known = {value for name, value in graph.initializers.items() if name not in kept}
    sizes = known_sizes(graph)
    for node in graph:
        if node.outputs[0] in sizes:
            known.add(node.outputs[0])
            pending.append(node)
        elif _foldable(node) and all(v is None or v in known for v in node.inputs):
            known.update(node.outputs)
            pending.append(node)
    if not pending:
        return 0
    done = set(pending)
    contents = {
        node.outputs[0]: sizes[node.outputs[0]] for node in pending if node.outputs[0] in sizes
    }
    wanted = [
        value
        for node in pending
        if node.outputs[0] not in sizes
        for value in node.outputs
        if value.is_graph_output() or any(user not in done for user in value.consumers())
    ]
    contents |= dict(zip(wanted, evaluate(graph, pending, contents, wanted), strict=True))
    for value, result in contents.items():
        constant = ir.Value(
            name=value.name,
            type=ir.TensorType(ir.DataType.from_numpy(result.dtype)),
            shape=ir.Shape(result.shape),
            const_value=ir.tensor(result, name=value.name),
        )
        value.replace_all_uses_with(constant, replace_graph_outputs=True)
        value.name = f"{value.name}/folded"
        graph.register_initializer(constant)
    graph.remove(pending, safe=True) if not _still_used(pending, done) else None
    passes.RemoveUnusedNodesPass()(model)
    return len(pending)


def _still_used(pending: list[ir.Node], done: set[ir.Node]) -> bool:
    return any(u not in done for n in pending for v in n.outputs for u in v.consumers())


def _foldable(node: ir.Node) -> bool:
    plain = not any(isinstance(a.value, ir.Graph) for a in node.attributes.values())
    return plain and node.op_type not in _RANDOM and bool(node.inputs) and not node.domain


def evaluate(
    within: ir.Graph,
    nodes: list[ir.Node],
    given: dict[ir.Value, NDArray[Any]],
    wanted: list[ir.Value],
) -> list[NDArray[Any]]:
    """Run nodes once, on constants and given values, and return what some values then are."""
    if not wanted:
        return []
    from pellucid.graph.runtime import session

    inside = [node for node in nodes if node.outputs[0] not in given]
    needed = {v for node in inside for v in node.inputs if v is not None and array(v) is not None}
    tensors = [onnx.numpy_helper.from_array(a, v.name) for v, a in given.items()]
    for value in needed:
        assert value.const_value is not None
        tensor = ir.serde.serialize_tensor(value.const_value)
        tensor.name = value.name or ""
        tensors.append(tensor)
    outputs = [onnx.helper.make_empty_tensor_value_info(v.name or "") for v in wanted]
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(n) for n in inside], "constants", [], outputs, tensors
    )
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in within.opset_imports.items()]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    results: list[NDArray[Any]] = session(proto, optimize=False).run(None, {})
    return results
