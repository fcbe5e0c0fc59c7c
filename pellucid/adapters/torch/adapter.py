"""The adapter of PyTorch modules, by native autograd."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from pellucid.adapters.base import (
    Adapter,
    Array,
    Batch,
    Layer,
    Port,
    Rectifier,
    Seed,
    installed,
    normalised_moments,
    numbered,
)
from pellucid.adapters.torch.code import code_digest, is_plain
from pellucid.adapters.torch.curves import Curves, Span
from pellucid.adapters.torch.observe import (
    FinalActivations,
    Keeper,
    Kept,
    observing,
    output_tensors,
    qualified_names,
    undisturbed,
    unwrapped,
)
from pellucid.adapters.torch.probe import Probe, probe
from pellucid.adapters.torch.rectifiers import bend_rectifiers
from pellucid.adapters.torch.shortcuts import ORDERED, SCALED, Shortcuts, Ways
from pellucid.errors import InputError, LayerError, UnsupportedError, first_line
from pellucid.graph.cache import cached_note
from pellucid.graph.form import OnnxForm

__all__ = ["TorchAdapter"]

T = TypeVar("T")


class TorchAdapter(Adapter):
    """A `torch.nn.Module`; compiled and data-parallel wrappers are looked through.

    The gradient never reaches a parameter: for the time of a call no parameter requires one,
    and the autograd graph begins only where the first wanted layer makes its output a leaf.
    Everything before that layer costs no more than inference.

    Parameters
    ----------
    module : the network. It is left exactly as it is: mode, hooks, flags, weights, `.grad`.
    labels, preprocess, source : see `pellucid.load`.
    device : where to compute; None means where the module's parameters are. A module on another
        device is copied, not moved.
    shapes, fixed_batch : shapes of the inputs with the batch, and the only batch size that fits,
        where the file that the module comes from records them.

    Raises
    ------
    UnsupportedError : the module has no weights yet, or no layers any more.
    """

    framework = "torch"

    def __init__(
        self,
        module: nn.Module,
        *,
        labels: Sequence[str] | None = None,
        preprocess: Any = None,
        source: str = "",
        device: str | None = None,
        shapes: tuple[tuple[int, ...], ...] | None = None,
        fixed_batch: int | None = None,
    ) -> None:
        name = unwrapped(module).__class__.__name__
        super().__init__(labels=labels, preprocess=preprocess, source=source or name)
        _check_complete(unwrapped(module))
        self.module = _on_device(unwrapped(module), device)
        self._lock = threading.RLock()
        self.fixed_batch = fixed_batch
        self._seen = shapes
        self._ways: Sequence[Ways] = ({**ORDERED, **SCALED}, SCALED)
        self._hashed: tuple[Any, str] = (None, "")

    # ---- description -------------------------------------------------------------------------

    @cached_property
    def _probe(self) -> Probe:
        with self._lock:
            return probe(self.module, self.names, self._seen, self._size, self.fixed_batch or 2)

    @property
    def _size(self) -> Any:
        """Spatial size that the caller's preprocessing makes, if it says so."""
        given = self.preprocess
        size = given.get("size") if isinstance(given, Mapping) else getattr(given, "size", None)
        return (size, size) if isinstance(size, int) else size

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All module calls in the order in which they finish, seen in one run on noise."""
        return self._probe.layers

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The network's inputs; a PyTorch module does not record them, so they are probed."""
        return self._probe.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The tensors among what `forward` returns, in order."""
        return self._probe.outputs

    @property
    def scales_input(self) -> bool:
        """Whether the first module to finish normalises the input."""
        leaves = [layer for layer in self.layers if not layer.container]
        return bool(leaves) and leaves[0].framework_class.lower().startswith(("normaliz", "rescal"))

    @property
    def moments(self) -> dict[str, tuple[Array, Array]]:
        """What its batch normalisations tell of the training data."""
        found = {}
        known = {layer.name for layer in self.layers}
        for name, module in self.module.named_modules():
            variance = getattr(module, "running_var", None)
            if name in known and isinstance(variance, Tensor):
                gamma, beta = (
                    None if part is None else part.detach().cpu().float().numpy()
                    for part in (getattr(module, "weight", None), getattr(module, "bias", None))
                )
                epsilon = float(getattr(module, "eps", 1e-5))
                spread = variance.detach().cpu().float().numpy()
                found[name] = normalised_moments(spread, epsilon, gamma, beta)
        return found

    @property
    def training(self) -> bool:
        """Whether the module is in training mode; it is run in evaluation mode all the same."""
        return bool(self.module.training)

    @property
    def versions(self) -> dict[str, str]:
        """The version of torch."""
        return {"torch": torch.__version__}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the architecture and of every weight; computed anew on change."""
        tensors = [*self.module.named_parameters(), *self.module.named_buffers()]
        state = [(t.data_ptr(), -1 if t.is_inference() else t._version) for _, t in tensors]
        if self._hashed[0] != state:
            digest = hashlib.sha256(self._architecture().encode())
            for name, tensor in tensors:
                digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().data)
            self._hashed = (state, digest.hexdigest())
        return self._hashed[1]

    def _architecture(self) -> str:
        """Write down all that the module says of itself: its parts and their settings."""
        settings = {
            name: {k: v for k, v in sorted(vars(module).items()) if _is_setting(k, v)}
            for name, module in self.module.named_modules()
        }
        return f"{self.module}{settings}"

    @cached_property
    def _code(self) -> str:
        return code_digest(self.module)

    @cached_property
    def names(self) -> dict[str, nn.Module]:
        """Modules by name; one module under two names is listed under both."""
        return qualified_names(self.module)

    def prepare(self, images: Any) -> Any:
        """Turn what a user holds into a batch; a ready batch shows the input's shape."""
        arrays = images if isinstance(images, tuple) else (images,)
        if all(isinstance(a, np.ndarray | Tensor) and not _is_integer(a) for a in arrays):
            self._see(tuple(tuple(array.shape) for array in arrays))
        return super().prepare(images)

    def batch(self, x: Batch) -> tuple[Array, ...]:
        """Check a batch. What it shows of the input's shape outweighs a guess."""
        if not isinstance(x, Mapping):
            arrays = [x] if isinstance(x, np.ndarray) else x
            self._see(tuple(np.shape(array) for array in arrays))
        return super().batch(x)

    def _see(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Describe the network anew if a batch does not fit the description that was guessed."""
        if self._seen is None and "_probe" not in self.__dict__:
            self._seen = shapes
        elif shapes != self._seen and not self._fits(shapes):
            self._seen = shapes
            self.__dict__.pop("_probe", None)

    def _fits(self, shapes: tuple[tuple[int, ...], ...]) -> bool:
        return len(shapes) == len(self.inputs) and all(
            len(shape) == len(port.shape)
            and all(w in (None, h) for w, h in zip(port.shape[1:], shape[1:], strict=True))
            for shape, port in zip(shapes, self.inputs, strict=True)
        )

    # ---- the ONNX form -----------------------------------------------------------------------

    @property
    def form_key(self) -> tuple[str, ...]:
        """All that the ONNX form follows from: versions and the shapes of the inputs too."""
        architecture = (*super().form_key, self._code, installed("onnxscript"))
        return (*architecture, str(self._shapes(architecture)))

    def _shapes(self, architecture: tuple[str, ...]) -> Any:
        """Return the shapes of the probe's noise; what it once found is not found out again."""
        if "_probe" in self.__dict__:
            return [list(shape) for shape in self._probe.shapes]
        asked = (str(self._seen), str(self._size), str(self.fixed_batch))
        return cached_note(
            ("input shapes", *architecture, *asked),
            lambda: [list(shape) for shape in self._probe.shapes],
        )

    def _export(self) -> OnnxForm:
        from pellucid.adapters.torch.export import export_module

        noise = self._tensors(tuple(np.zeros(s, np.float32) for s in self._probe.shapes))
        ports = (self.inputs, self.outputs)
        with self._lock:
            module = next(self.module.modules())  # itself, also where a weak proxy is held
            if noise[0].dtype in (torch.float64, torch.bfloat16):  # none is onnxruntime's on a CPU
                module, noise = copy.deepcopy(module).float(), [t.float() for t in noise]
            return export_module(module, qualified_names(module), self.layers, ports, noise)

    # ---- computing ---------------------------------------------------------------------------

    def _run(
        self, x: tuple[Array, ...], fetch: tuple[str, ...], replace: Mapping[str, Array]
    ) -> dict[str, Array]:
        def compute(tensors: list[Tensor], ways: Ways) -> dict[str, Array]:
            with Shortcuts(ways):
                found = self._forward(tensors, Keeper(fetch, replace=replace))
            return {name: _numpy(found[name].value) for name in fetch}

        with self._lock, torch.no_grad(), undisturbed(self.module):
            return self._attempt(x, compute)

    def _pullback(
        self,
        x: tuple[Array, ...],
        seed: Seed,
        wrt: tuple[str, ...],
        fetch: tuple[str, ...],
        relu: Rectifier,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        def compute(tensors: list[Tensor], ways: Ways) -> tuple[dict[str, Array], dict[str, Array]]:
            curves = Curves()
            with Shortcuts(ways), nullcontext() if relu == "exact" else curves:
                found = self._forward(tensors, Keeper({*fetch, *wrt}, wrt))
            values = {name: _numpy(found[name].value) for name in fetch}
            gradients = _backward(found, seed(values), wrt, relu, curves.spans())
            return values, {name: _numpy(g) for name, g in zip(wrt, gradients, strict=True)}

        recording = (torch.inference_mode(False), torch.enable_grad())
        with self._lock, recording[0], recording[1], undisturbed(self.module):
            return self._attempt(x, compute)

    def _attempt(self, x: tuple[Array, ...], compute: Callable[[list[Tensor], Ways], T]) -> T:
        """Compute in the fastest way that the network's code can have, now and from then on.

        `.view` may fail on what a convolution with another order of axes returns.
        """
        failures = []
        for index, ways in enumerate(self._ways):
            try:
                result = compute(self._tensors(x), ways)
            except (InputError, UnsupportedError) as error:
                failures.append(error)
            else:
                self._ways = self._ways[index:]
                return result
        raise failures[-1]

    def _forward(self, tensors: list[Tensor], keeper: Keeper) -> dict[str, Kept]:
        """Run the network and return the wanted tensors."""
        arguments = [
            keeper.keep(numbered("input", index), tensor) for index, tensor in enumerate(tensors)
        ]
        names = (*keeper.wanted, *keeper.replace)
        called = {base for name in names for base in (name, name.rpartition(":")[0])}
        modules = {name: m for name, m in self.names.items() if name in called}
        logits = [name for name in keeper.wanted if name.startswith("logits")]
        if logits and any(port.activation for port in self.outputs):
            activations = FinalActivations(any(n in keeper.differentiable for n in logits))
            stage: AbstractContextManager[Any] = activations
        else:
            activations, stage = None, nullcontext()
        try:
            with observing(modules, keeper.visit), stage:
                results = output_tensors(self.module(*arguments))
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise InputError(
                f"The network failed on a batch of shape {shapes}: {first_line(error)}"
            ) from error
        for index, result in enumerate(results):
            output = keeper.keep(numbered("output", index), result)
            call = self._probe.activation_calls[index] if activations else None
            if activations is None or call is None:
                keeper.keep(numbered("logits", index), output)
            elif numbered("logits", index) in keeper.wanted:
                keeper.found[numbered("logits", index)] = activations.calls[call][1]
        if missing := (keeper.wanted - keeper.found.keys()) | (keeper.replace.keys() - keeper.met):
            raise self.unknown_layer(min(missing))
        return keeper.found

    def _tensors(self, x: tuple[Array, ...]) -> list[Tensor]:
        """Copy the batch to the module's device and element type."""
        weights = (p for p in self.module.parameters() if p.is_floating_point())
        like = next(weights, torch.empty(0))
        tensors = [torch.tensor(array, device=like.device) for array in x]
        return [t.to(like.dtype) if t.is_floating_point() else t for t in tensors]

    def unknown_layer(self, name: str) -> LayerError:
        """Build the error for a name that has no value in the forward pass."""
        if name in self.names:
            return LayerError(f"Layer {name!r} is never called in the forward pass.")
        return super().unknown_layer(name)


def _backward(
    found: Mapping[str, Kept],
    cotangents: Mapping[str, Array],
    wrt: Sequence[str],
    relu: Rectifier,
    spans: Sequence[Span],
) -> list[Tensor]:
    points: dict[str, Any] = {
        n: p for n in (*cotangents, *wrt) if (p := found[n].point) is not None
    }
    starts = [name for name in cotangents if name in points]
    inputs = [name for name in wrt if name in points]
    gradients: dict[str, Tensor | None] = {}
    if starts and inputs:
        bend_rectifiers([points[name] for name in starts], relu, spans)
        seeds = [torch.tensor(cotangents[name]).to(found[name].value) for name in starts]
        try:
            results = torch.autograd.grad(
                [points[name] for name in starts],
                [points[name] for name in inputs],
                grad_outputs=seeds,
                allow_unused=True,
            )
        except RuntimeError as error:
            raise UnsupportedError(
                "PyTorch's autograd cannot go back through this network: " + first_line(error)
            ) from error
        gradients = dict(zip(inputs, results, strict=True))
    return [
        torch.zeros_like(found[name].value) if (g := gradients.get(name)) is None else g
        for name in wrt
    ]


def _is_setting(name: str, value: Any) -> bool:
    """Whether an attribute of a module is a plain value that its author set."""
    return not name.startswith("_") and name != "training" and is_plain(value)


def _is_integer(array: Any) -> bool:
    if isinstance(array, Tensor):
        return not array.is_floating_point()
    return bool(array.dtype.kind != "f")


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return array


def _check_complete(module: nn.Module) -> None:
    """Refuse modules in a state in which they can compute nothing, or not layer by layer."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if lazy := [name for name, tensor in tensors if nn.parameter.is_lazy(tensor)]:
        raise UnsupportedError(
            f"{lazy[0]} has no shape yet: call the network once on a batch, then explain it."
        )
    if empty := [name for name, tensor in tensors if tensor.is_meta]:
        raise UnsupportedError(
            f"{empty[0]} is on the meta device and holds no numbers: load the network's weights "
            "first."
        )
    nodes = module.graph.nodes if isinstance(module, fx.GraphModule) else ()
    called = {node.target for node in nodes if node.op == "call_module"} - {"_guards_fn"}
    if nodes and not called and list(module.children()):
        raise UnsupportedError(
            "This graph calls none of its layers, as what .module() of an exported program "
            "returns: give the ExportedProgram itself."
        )


def _on_device(module: nn.Module, device: str | None) -> nn.Module:
    here = next((p.device for p in module.parameters()), torch.device("cpu"))
    if device is None or here == torch.device(device):
        return module
    return copy.deepcopy(module).to(device)
