"""PyTorch modules in ONNX form, with every module call record.

The module is exported with hooks that pass each call's results through a copy, so that the ONNX
graph says where every call begins and ends, also when one module is called several times, does
nothing (Dropout), or works in place. Nothing is optimised away: BatchNorm stays BatchNorm.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx.inliner
import onnx_ir as ir
import torch
from onnx import ModelProto
from torch import Tensor, nn

from pellucid.adapters.base import Layer, Port, numbered
from pellucid.adapters.torch.observe import output_tensors, undisturbed
from pellucid.errors import UnsupportedError, first_line
from pellucid.graph.form import Call, OnnxForm, PortForm
from pellucid.graph.marking import finished_form
from pellucid.graph.sequences import open_sequences

__all__ = ["export_module"]

_PREFIX = "module."
_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "torch._dynamo")


def export_module(
    module: nn.Module,
    names: Mapping[str, nn.Module],
    layers: Sequence[Layer],
    ports: tuple[Sequence[Port], Sequence[Port]],
    noise: Sequence[Tensor],
) -> OnnxForm:
    """Export a module for any batch size, or for that of `noise` if it takes no other.

    Parameters
    ----------
    names : the modules whose calls are marked, by name.
    layers : the calls, as the adapter lists them.
    ports : the adapter's inputs and outputs.
    noise : one example batch per input.

    Raises
    ------
    UnsupportedError : something in the network has no ONNX form; the message names it.
    """
    record = _Record()
    with undisturbed(module), _quiet(), record.watching(names):
        program = _exported(_Marked(module, record), tuple(noise))
        model = _converted(program)
    tensors = [value.name for value in model.graph.output]
    count = len(tensors) - len(record.kept)
    entering = [value.name for value in model.graph.input]
    described = {layer.name: layer for layer in layers}
    weights = {parameter: name for name, parameter in module.named_parameters()}
    inputs, outputs = (
        [PortForm(p.name, tensor, p.layout) for p, tensor in zip(own, found, strict=False)]
        for own, found in zip(ports, (entering, tensors[:count]), strict=True)
    )
    return finished_form(
        model,
        (inputs, outputs),
        [
            _call(call, described.get(call.name), tensors[count:], names, weights)
            for call in record.calls
            if call.outputs
        ],
        {name: parameter.numel() for parameter, name in weights.items()},
        {t.name: t.name.removeprefix(_PREFIX) for t in model.graph.initializer},
        type(module).__name__,
        ".",
    )


@dataclass
class _MarkedCall:
    """One call while the export runs: which of the kept tensors are its own, by position."""

    name: str
    inputs: list[int]
    outputs: list[int]


@dataclass
class _Record:
    """What the latest forward pass kept.

    It is no attribute of the exported module: torch.export would put that back as it was.
    """

    kept: list[Tensor] = field(default_factory=list)
    calls: list[_MarkedCall] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    entered: list[list[int]] = field(default_factory=list)

    def clear(self) -> None:
        for part in (self.kept, self.calls, self.counts, self.entered):
            part.clear()

    def keep(self, tensor: Tensor) -> int:
        self.kept.append(tensor.clone())
        return len(self.kept) - 1

    @contextlib.contextmanager
    def watching(self, names: Mapping[str, nn.Module]) -> Iterator[None]:
        """Mark all calls of the named modules."""
        with contextlib.ExitStack() as hooks:
            for name, module in names.items():
                before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                hooks.callback(before.remove)
                hooks.callback(module.register_forward_hook(self._hook(name)).remove)
            yield

    def _enter(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self.entered.append([self.keep(t) for t in output_tensors([*args, *kwargs.values()])])

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            positions: list[int] = []

            def mark(tensor: Tensor) -> Tensor:
                positions.append(self.keep(tensor))
                return self.kept[-1].clone()  # in-place work further on leaves the mark as it is

            result = _with_tensors(output, mark)
            call = numbered(name, self.counts[name])
            self.counts[name] += 1
            self.calls.append(_MarkedCall(call, self.entered.pop(), positions))
            return result

        return hook


class _Marked(nn.Module):
    """The module with everything that goes into or comes out of its calls as further outputs."""

    def __init__(self, module: nn.Module, record: _Record) -> None:
        super().__init__()
        self.module = module

        def forward(*arguments: Tensor) -> tuple[Tensor, ...]:
            record.clear()
            return (*output_tensors(module(*arguments)), *record.kept)

        self.forward = forward


def _with_tensors(output: Any, mark: Any) -> Any:
    """Pass every floating tensor of a module's output through `mark`."""
    if isinstance(output, Tensor):
        return mark(output) if output.is_floating_point() else output
    if isinstance(output, tuple | list):
        parts = [_with_tensors(part, mark) for part in output]
        return output._make(parts) if hasattr(output, "_make") else type(output)(parts)
    if isinstance(output, dict):
        for key in output:
            output[key] = _with_tensors(output[key], mark)
    return output


# ---- exporting ------------------------------------------------------------------------------


def _exported(marked: nn.Module, noise: tuple[Tensor, ...]) -> Any:
    free = tuple({0: torch.export.Dim.AUTO} for _ in noise)
    failures = []
    for shapes in (free, None):
        try:
            given = None if shapes is None else (shapes,)
            return torch.export.export(marked, noise, dynamic_shapes=given, strict=False)
        except Exception as error:  # whatever the network's own code makes of symbolic sizes
            failures.append(error)
    raise UnsupportedError(_obstacle(failures[-1])) from failures[-1]


def _converted(program: Any) -> ModelProto:
    model = _translated(program)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.isdigit():  # how the exporter writes a batch that it fixed
                dim.dim_value = int(dim.dim_param)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return _without_sequences(model)


def _translated(program: Any) -> ModelProto:
    """Write a program in ONNX operators, those without a form there in simpler ones."""
    written: set[Any] = set()
    while True:
        try:
            exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
        except Exception as error:
            operator = _untranslated(error)
            simpler = torch.export.default_decompositions()
            if operator in written or operator not in simpler:
                raise UnsupportedError(_obstacle(error)) from error
            program = program.run_decompositions({operator: simpler[operator]})
            written.add(operator)
        else:
            assert exported is not None
            return exported.model_proto


def _untranslated(error: BaseException) -> Any:
    """Return the operator that an export failed at, in the way that the network uses it."""
    found = re.search(
        r"translating node .*?target=torch\.ops\.([\w.]+)\]", _whole(error), re.DOTALL
    )
    if found is None:
        return None
    operator: Any = torch.ops
    for name in found[1].split("."):
        operator = getattr(operator, name, None)
    return operator


def _without_sequences(model: ModelProto) -> ModelProto:
    """Write the parts of `split` as tensors; the exporter gives the sequence a wrong type."""
    if not any(node.op_type == "SplitToSequence" for node in model.graph.node):
        return model
    opened = ir.from_proto(model)
    open_sequences(opened.graph)
    for node in opened.graph:
        if node.op_type == "SplitToSequence":
            node.outputs[0].type = node.outputs[0].shape = None
    return ir.to_proto(opened)


def _obstacle(error: BaseException) -> str:
    """Say which operation stands in the way of the export."""
    text = _whole(error)
    operator = re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", text) or (
        re.search(r"No decompositions? registered for (?:the complex-valued input|([\w.:]+))", text)
    )
    if operator:
        what = f"the operator {operator[1]} has no ONNX form"
    elif "data-dependent" in text.lower() or "GuardOnDataDependent" in text:
        code = re.search(r"^\s*((?:if|while|assert|return|\w+ = ).*)$", text, re.MULTILINE)
        line = code[1].strip() if code else ""
        what = "the network's path depends on the values in the image" + (
            f" (at `{line}`)" if line else ""
        )
    elif failed := _untranslated(error):
        what = f"the operator {failed}, as it is used here, has no ONNX form"
    else:
        what = first_line(error)
    return (
        f"The layer graph of this network cannot be read: {what}. Everything that needs no graph "
        "still works; `model.layers` lists the layers."
    )


def _whole(error: BaseException) -> str:
    """Join the messages of an error and of those that led to it."""
    text = ""
    seen: BaseException | None = error
    while seen is not None:
        text += f"{seen}\n"
        seen = seen.__cause__ or seen.__context__
    return text


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


# ---- describing -----------------------------------------------------------------------------


def _call(
    call: _MarkedCall,
    layer: Layer | None,
    marks: Sequence[str],
    modules: Mapping[str, nn.Module],
    weights: Mapping[nn.Parameter, str],
) -> Call:
    base = call.name if call.name in modules else call.name.rpartition(":")[0]
    module = modules[base]
    kind = type(module).__name__
    return Call(
        call.name,
        layer.kind if layer else kind,
        kind,
        layer.layout if layer else "features",
        layer.shape if layer else (),
        tuple(marks[i] for i in call.inputs),
        tuple(marks[i] for i in call.outputs),
        (),
        {weights[p]: p.numel() for p in module.parameters()},
        {
            f"{base}.{name}": buffer.numel()
            for name, buffer in module.named_buffers()
            if name.rpartition(".")[2] in ("running_mean", "running_var")
        },
    )
