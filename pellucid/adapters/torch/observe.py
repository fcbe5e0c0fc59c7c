"""Watching a module compute, and leaving it as it was.

Layers are observed with forward hooks that live for one call. What a hook keeps is never the
memory that the network goes on with, so an in-place operation further on
(`nn.ReLU(inplace=True)` after a BatchNorm) changes neither the kept value nor its place in the
autograd graph.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from pellucid.adapters.base import Array, fits, misfit, numbered
from pellucid.adapters.torch.checkpoints import run_once

__all__ = [
    "FinalActivations",
    "Keeper",
    "Kept",
    "observing",
    "output_tensors",
    "qualified_names",
    "undisturbed",
    "unwrapped",
]

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True, slots=True)
class Kept:
    """A value in memory of its own, and its point in the autograd graph.

    The point is an edge of the graph, which no later in-place operation can move; it is None
    where nothing is recorded.
    """

    value: Tensor
    point: Tensor | GradientEdge | None


def kept(tensor: Tensor, differentiable: bool, in_place: bool = False) -> tuple[Kept, Tensor]:
    """Keep a tensor; return it with the tensor that the network is to go on with.

    Parameters
    ----------
    differentiable : a gradient will be asked for here, so recording begins here at the latest.
    in_place : the network may go on with the memory of `tensor` whatever it is handed, as after
        a module that overwrites its input and whose result is ignored.
    """
    value = tensor.detach().clone()
    if tensor.requires_grad:
        return Kept(value, get_gradient_edge(tensor)), tensor
    if not (differentiable and tensor.is_floating_point()):
        return Kept(value, None), tensor
    leaf = value.requires_grad_()
    return Kept(value.detach(), leaf), tensor.copy_(leaf) if in_place else leaf.clone()


class Keeper:
    """Keeps the wanted tensors of one forward pass.

    Parameters
    ----------
    wanted : names to keep.
    differentiable : those among them at which a gradient will be asked for.
    replace : values that take the place of what a module returns.
    """

    def __init__(
        self,
        wanted: Collection[str],
        differentiable: Collection[str] = (),
        replace: Mapping[str, Array] | None = None,
    ) -> None:
        self.wanted = frozenset(wanted)
        self.differentiable = frozenset(differentiable)
        self.replace = dict(replace or {})
        self.found: dict[str, Kept] = {}
        self.met: set[str] = set()  # what has been replaced

    def keep(self, name: str, tensor: Tensor, in_place: bool = False) -> Tensor:
        """Keep a tensor if it is wanted and return the one to go on with."""
        if name not in self.wanted:
            return tensor
        self.found[name], tensor = kept(tensor, name in self.differentiable, in_place)
        return tensor

    def visit(self, name: str, module: nn.Module, output: Any) -> Any:
        """Keep the first tensor of a module's output; return the output to go on with."""
        in_place = bool(getattr(module, "inplace", False))

        def seen(tensor: Tensor) -> Tensor:
            return self.keep(name, self._replaced(name, tensor, in_place), in_place)

        return _with_first(output, seen)

    def _replaced(self, name: str, tensor: Tensor, in_place: bool) -> Tensor:
        """Return the values that the network is to go on with."""
        if name not in self.replace:
            return tensor
        self.met.add(name)
        if not fits(self.replace[name], tensor.shape):
            raise misfit(name, self.replace[name], tensor.shape)
        given = torch.tensor(self.replace[name]).to(tensor)
        if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            given = given.contiguous(memory_format=torch.channels_last)  # the rest is faster so
        same = in_place and given.shape == tensor.shape
        return tensor.copy_(given) if same else given


class FinalActivations(TorchFunctionMode):
    """Keeps inputs and results of all softmax and sigmoid calls, in order.

    Parameters
    ----------
    differentiable : a gradient will be asked for at the inputs.
    """

    NAMES: Mapping[str, str] = {
        "softmax": "softmax",
        "log_softmax": "log_softmax",
        "sigmoid": "sigmoid",
        "sigmoid_": "sigmoid",
    }

    def __init__(self, differentiable: bool = False) -> None:
        super().__init__()
        self.differentiable = differentiable
        self.calls: list[tuple[str, Kept, Tensor]] = []  # (activation, input, result)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, keeping what is wanted of it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]  # "softmax.int" of an exported file
        if name not in self.NAMES:
            return func(*args, **kwargs)
        first, *rest = args or (kwargs.pop("input"),)
        source, first = kept(first, self.differentiable, in_place=name.endswith("_"))
        result = func(first, *rest, **kwargs)
        self.calls.append((self.NAMES[name], source, result))
        return result


@contextmanager
def observing(
    modules: Mapping[str, nn.Module], visit: Callable[[str, nn.Module, Any], Any]
) -> Iterator[None]:
    """Call `visit(name, module, output)` after each call of each module.

    What it returns takes the place of the output. The second call of a module is `name:1`.
    """
    calls: Counter[str] = Counter()

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, _arguments: Any, output: Any) -> Any:
            call = numbered(name, calls[name])
            calls[name] += 1
            return visit(call, module, output)

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(hook_for(name)).remove)
        yield


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluate without parameter gradients, and put everything back as it was found."""
    modules = list(module.modules())
    training = [(m, m.training) for m in modules]
    parameters = [p for m in modules for p in m._parameters.values() if p is not None]
    required = [p for p in parameters if p.requires_grad]
    device = parameters[0].device if parameters else torch.device("cpu")
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # something may be compiled: run it as written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(run_once())
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        try:
            # A network that draws numbers draws the same ones each time.
            on_cpu = device.type == "cpu"
            (torch.default_generator.manual_seed if on_cpu else torch.manual_seed)(0)
            torch.backends.mha.set_fastpath_enabled(False)  # it would bypass the inner layers
            for m, was in training:
                if was:  # setting an attribute of a module is slow
                    m.training = False
            for parameter in required:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in required:
                parameter.requires_grad_(True)
            for m, was in training:
                if m.training != was:
                    m.training = was
            torch.backends.mha.set_fastpath_enabled(fast_attention)


def output_tensors(result: Any) -> list[Tensor]:
    """List the floating tensors in whatever a `forward` returns, in order."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    if isinstance(result, Mapping):
        result = result.values()
    elif not isinstance(result, list | tuple):
        result = vars(result).values() if hasattr(result, "__dataclass_fields__") else ()
    return [tensor for part in result for tensor in output_tensors(part)]


def unwrapped(module: nn.Module) -> nn.Module:
    """Look through torch.compile and data-parallel wrappers."""
    while True:
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod  # type: ignore[assignment]
        elif isinstance(module, _WRAPPERS):
            module = module.module
        else:
            return module


def qualified_names(root: nn.Module) -> dict[str, nn.Module]:
    """List the modules by qualified name, without the names of wrappers.

    One module under two names is listed under both. Scripted modules take no hooks, so they
    are not listed; gradients go through them all the same.
    """
    found: dict[str, nn.Module] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        parts, parent = [], root
        for part in path.split(".") if path else ():
            if not (isinstance(parent, _WRAPPERS) or hasattr(parent, "_orig_mod")):
                parts.append(part)
            parent = parent.get_submodule(part)
        hooked = not isinstance(module, torch.jit.ScriptModule) and module is unwrapped(module)
        if parts and hooked:
            found[".".join(parts)] = module
    return found


def _with_first(output: Any, keep: Callable[[Tensor], Tensor]) -> Any:
    """Apply `keep` to the first tensor of a module's output and return the output with it."""
    if isinstance(output, Tensor):
        return keep(output)
    if isinstance(output, tuple | list) and output:
        parts = [_with_first(output[0], keep), *output[1:]]
        return output._make(parts) if hasattr(output, "_make") else type(output)(parts)
    if isinstance(output, dict) and output:
        first = next(iter(output))
        output[first] = _with_first(output[first], keep)
    return output
