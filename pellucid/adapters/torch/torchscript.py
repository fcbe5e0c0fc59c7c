"""TorchScript as an ordinary PyTorch module.

A scripted module runs inside TorchScript's own interpreter, where Python hooks never fire and
inner values cannot be reached. So the graphs that TorchScript keeps, one per method, are run here,
operator by operator, by PyTorch's eager kernels: every submodule is a Python module again, under
its own name and class name, with hooks and autograd as usual.

This is also what makes the files safe to open. Nothing of a file runs but the operators that are
let through here, and none of these touches a file, the network or another process.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pellucid.adapters.torch.torchscript_operators import RefusedError, operator_of, unsupported
from pellucid.errors import LoadError, UnsupportedError, first_line

__all__ = ["ScriptedModule", "from_script", "read_script"]


@dataclass(frozen=True, slots=True)
class _Step:
    """One node: what it does with the values of its inputs, and the names of its results."""

    run: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Block:
    """Nodes in order, with the names of what goes in and what comes out."""

    inputs: tuple[str, ...]
    steps: tuple[_Step, ...]
    outputs: tuple[str, ...]

    def run(self, values: dict[str, Any], arguments: Sequence[Any]) -> list[Any]:
        values.update(zip(self.inputs, arguments, strict=True))
        for step in self.steps:
            results = step.run(values, *[values[name] for name in step.inputs])
            if len(step.outputs) == 1:
                values[step.outputs[0]] = results
            else:
                values.update(zip(step.outputs, results or (), strict=True))
        return [values[name] for name in self.outputs]


class ScriptedModule(nn.Module):
    """A TorchScript module that runs operator by operator.

    Parameters
    ----------
    script : the scripted or traced module, or a part of it.
    unit : the compilation unit that holds the functions it calls.
    """

    script: Any
    unit: Any
    programs: dict[str, tuple[_Block, Any]]  # compiled methods with their signatures

    def __init__(self, script: Any, unit: Any) -> None:
        super().__init__()
        self.__dict__["script"] = script  # not a submodule: its parameters are registered here
        self.__dict__["unit"] = unit
        self.__dict__["programs"] = {}
        self.training = bool(getattr(script, "training", False))
        for name, parameter in script.named_parameters(recurse=False):
            weight = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            self.register_parameter(name, weight)
        for name, buffer in script.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in script.named_children():
            self.add_module(name, _wrapped(child, unit))

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptedModule:
        """Copy weights and submodules; the graphs are shared."""
        import copy

        new = type(self).__new__(type(self))
        memo[id(self)] = new
        shared = ("script", "unit", "programs")
        for key, value in self.__dict__.items():
            new.__dict__[key] = value if key in shared else copy.deepcopy(value, memo)
        return new

    def forward(self, *arguments: Any, called: str = "forward") -> Any:
        """Run a method; a traced module that is called twice has two, `forward` and `forward1`."""
        block, schema = self._program(called)
        missing = schema.arguments[1 + len(arguments) :]
        defaults = [argument.default_value for argument in missing]
        results = block.run({}, [self, *arguments, *defaults])
        return results[0] if len(results) == 1 else tuple(results)

    def _program(self, called: str) -> tuple[_Block, Any]:
        if called not in self.programs:
            method = self.script._c._get_method(called)
            self.programs[called] = (_compiled(method.graph, self.unit), method.schema)
        return self.programs[called]

    def compile_methods(self) -> None:
        """Look through every method now, so that nothing refused is met later."""
        for name in self.script._c._method_names():
            self._program(name)

    def attribute(self, name: str) -> Any:
        """Return a submodule, a weight, or whatever else the script keeps under the name."""
        for members in (self._modules, self._parameters, self._buffers):
            if name in members:
                return members[name]
        return self.training if name == "training" else getattr(self.script, name)


def read_script(data: bytes, source: str = "the TorchScript module") -> ScriptedModule:
    """Open a TorchScript archive.

    Parameters
    ----------
    data : the archive. It must already be known to hold no `__setstate__` method and no custom
        class, as these run while it is opened.
    source : its name in messages.

    Raises
    ------
    LoadError : it cannot be read, or uses an operator that is refused.
    """
    unit = torch._C.CompilationUnit()
    reading: Any = torch._C.import_ir_module_from_buffer  # its published types are out of date
    wrapping: Any = torch.jit._recursive.wrap_cpp_module
    try:
        script = wrapping(reading(unit, data, torch.device("cpu"), {}, False))
    except Exception as error:
        raise LoadError(
            f"{source} is no TorchScript that PyTorch {torch.__version__} can read: "
            f"{first_line(error)}"
        ) from error
    module = _wrapped(script, unit)
    try:
        for part in module.modules():
            if isinstance(part, ScriptedModule):
                part.compile_methods()
    except RefusedError as error:
        raise LoadError(
            f"{source} is refused: it uses the operator {error}, which is none of PyTorch's "
            "computing operators."
        ) from error
    return module


def from_script(script: Any) -> ScriptedModule:
    """Turn a live TorchScript module into a module that runs operator by operator."""
    return read_script(script.save_to_buffer())


def _wrapped(script: Any, unit: Any) -> ScriptedModule:
    """Make a module under the class name that the author gave it."""
    members: dict[str, Any] = {"__doc__": "A module of a TorchScript file."}
    if script._c._has_method("forward"):
        arguments = script._c._get_method("forward").schema.arguments[1:]
        members["forward"] = forward = _forward()
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
            + [
                inspect.Parameter(
                    argument.name if argument.name.isidentifier() else f"input_{index}",
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=argument.default_value
                    if argument.has_default_value()
                    else inspect.Parameter.empty,
                )
                for index, argument in enumerate(arguments)
            ]
        )
    kind = type(script.original_name, (ScriptedModule,), members)
    module: ScriptedModule = kind(script, unit)
    return module


def _forward() -> Callable[..., Any]:
    def forward(self: ScriptedModule, *arguments: Any, called: str = "forward") -> Any:
        return ScriptedModule.forward(self, *arguments, called=called)

    return forward


# ---- from graph to steps --------------------------------------------------------------------


def _compiled(block: Any, unit: Any) -> _Block:
    inputs = tuple(value.debugName() for value in block.inputs())
    outputs = tuple(value.debugName() for value in block.outputs())
    return _Block(inputs, tuple(_step(node, unit) for node in block.nodes()), outputs)


def _step(node: Any, unit: Any) -> _Step:
    inputs = tuple(value.debugName() for value in node.inputs())
    outputs = tuple(value.debugName() for value in node.outputs())
    kind: str = node.kind()
    if kind == "prim::Constant":
        return _Step(_constant(node), (), outputs)
    if kind == "prim::CallFunction":
        return _Step(_function(node, unit), inputs[1:], outputs)
    if kind in _CONTROL:
        return _Step(_CONTROL[kind](node, unit), inputs, outputs)
    return _Step(operator_of(node), inputs, outputs)


def _constant(node: Any) -> Callable[..., Any]:
    is_function = node.output().type().kind() == "FunctionType"
    value = None if is_function else node.output().toIValue()
    return lambda _values: value


def _function(node: Any, unit: Any) -> Callable[..., Any]:
    name = node.inputsAt(0).type().annotation_str
    function = unit.find_function(name)
    if function is None:
        return unsupported(f"the function {name}")
    block = _compiled(function.graph, unit)

    def run(_values: dict[str, Any], *arguments: Any) -> Any:
        results = block.run({}, arguments)
        return results[0] if len(results) == 1 else tuple(results)

    return run


def _if(node: Any, unit: Any) -> Callable[..., Any]:
    then, otherwise = (_compiled(block, unit) for block in node.blocks())

    def run(values: dict[str, Any], condition: Any) -> Any:
        results = (then if condition else otherwise).run(values, ())
        return results[0] if len(results) == 1 else results

    return run


def _loop(node: Any, unit: Any) -> Callable[..., Any]:
    (body,) = (_compiled(block, unit) for block in node.blocks())

    def run(values: dict[str, Any], trips: int, condition: bool, *carried: Any) -> Any:
        state, index = list(carried), 0
        while condition and index < trips:
            condition, *state = body.run(values, (index, *state))
            index += 1
        return state[0] if len(state) == 1 else state

    return run


def _call_method(node: Any, _unit: Any) -> Callable[..., Any]:
    name: str = node.s("name")

    def run(_values: dict[str, Any], target: Any, *arguments: Any) -> Any:
        if not isinstance(target, ScriptedModule):
            raise UnsupportedError(
                f"This TorchScript calls {name!r} of an object that is no module. Load the "
                "original with 'package.module:factory', or export it with torch.export."
            )
        if name.startswith("forward"):
            return target(*arguments, called=name)  # through __call__, so that hooks fire
        return target.forward(*arguments, called=name)

    return run


def _get_attribute(node: Any, _unit: Any) -> Callable[..., Any]:
    name: str = node.s("name")
    return lambda _values, target: (
        target.attribute(name) if isinstance(target, ScriptedModule) else getattr(target, name)
    )


def _set_attribute(node: Any, _unit: Any) -> Callable[..., Any]:
    name: str = node.s("name")
    return lambda _values, target, value: setattr(target, name, value)


def _dictionary(_node: Any, _unit: Any) -> Callable[..., Any]:
    return lambda _values, *items: dict(zip(items[::2], items[1::2], strict=True))


def _collected(kind: Callable[[Any], Any]) -> Callable[..., Callable[..., Any]]:
    return lambda _node, _unit: lambda _values, *items: kind(items)


def _unpacked(_node: Any, _unit: Any) -> Callable[..., Any]:
    count = _node.outputsSize()
    return lambda _values, items: items[0] if count == 1 else tuple(items)


def _raised(_node: Any, _unit: Any) -> Callable[..., Any]:
    def run(_values: dict[str, Any], message: Any, *_: Any) -> Any:
        raise RuntimeError(str(message))

    return run


_CONTROL: Mapping[str, Callable[[Any, Any], Callable[..., Any]]] = {
    "prim::If": _if,
    "prim::Loop": _loop,
    "prim::CallMethod": _call_method,
    "prim::GetAttr": _get_attribute,
    "prim::SetAttr": _set_attribute,
    "prim::TupleConstruct": _collected(tuple),
    "prim::ListConstruct": _collected(list),
    "prim::DictConstruct": _dictionary,
    "prim::TupleUnpack": _unpacked,
    "prim::ListUnpack": _unpacked,
    "prim::RaiseException": _raised,
    "prim::Print": _collected(lambda _items: None),
    "prim::Uninitialized": _collected(lambda _items: None),
}
