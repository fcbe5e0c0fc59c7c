"""`load`: whatever a user holds becomes an adapter.

No framework is imported to learn what an object is: it can only be a PyTorch module if PyTorch
has been imported already. Paths are told apart by suffix, and checked by content.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.adapters.base import Adapter
from pellucid.adapters.factories import FACTORY, made_by, made_if_named
from pellucid.adapters.files import existing
from pellucid.errors import InputError, LoadError, UnsupportedError, first_line
from pellucid.labels import load_labels

__all__ = ["load"]

_TORCH_SUFFIXES = (".pt2", ".pt", ".pth", ".ts", ".torchscript", ".bin", ".ckpt")
_ARCHITECTURES = (".json", ".yaml", ".yml")
_KERAS_SUFFIXES = (".keras", ".h5", ".hdf5", ".index", *_ARCHITECTURES)
_KNOWN = (
    ".onnx, .keras, .h5, .hdf5, .json or .yaml with weights=, .pt2, .pt, .pth, .pb or a SavedModel "
    "folder"
)


@dataclass(frozen=True)
class _Options:
    """What `load` was given beside the model."""

    labels: Sequence[str] | str | Path | None
    preprocess: Any
    custom_objects: Mapping[str, Any] | None
    allow_code: bool
    device: str | None
    architecture: Any = None
    backend: str | None = None
    replace: Mapping[str, Any] | None = None
    inputs: Any = None
    outputs: Any = None

    @property
    def given(self) -> dict[str, Any]:
        """What every adapter takes."""
        return {"labels": self.labels, "preprocess": self.preprocess}


def load(
    source: Any,
    *,
    weights: str | Path | None = None,
    architecture: Any = None,
    labels: Sequence[str] | str | Path | None = None,
    preprocess: Any = None,
    backend: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    replace: Mapping[str, Any] | None = None,
    inputs: Any = None,
    outputs: str | Sequence[str] | None = None,
    allow_code: bool = False,
    device: str | None = None,
) -> Adapter:
    """Open a model of any framework behind one interface.

    Parameters
    ----------
    source : a live model (`torch.nn.Module`, `keras.Model`, `tf_keras.Model`,
        `onnx.ModelProto`), an adapter, any function from a batch of images to scores (for
        methods that only ask for predictions), the path of a file (`.onnx`, `.keras`, `.h5`,
        `.hdf5`, `.pt2`, TorchScript `.pt` or `.pth`, a frozen TensorFlow graph `.pb`) or of a
        SavedModel folder, or `"file.py:factory"` or `"package.module:factory"`, which names the
        model or a class or function that builds it when it is called without arguments. Keras
        files may be of any year since 2015: what they say in older words is translated, and
        their layers keep their names.
    weights : with a PyTorch module or its factory, the file of its weights: a state dict or a
        checkpoint that holds one, or `.safetensors`. With a Keras architecture (`.json`, `.yaml`,
        a Keras model or its factory), the HDF5 file of its weights.
    architecture : for Keras files that hold weights only (`.h5`, `.weights.h5`, a TensorFlow
        checkpoint): a JSON or YAML file, a configuration as a dictionary, a Keras model, a
        function that returns one, or `"package.module:factory"`. Weights are matched by name, or
        else by order and shape.
    labels : names of the classes in the order of the outputs: a list, a text or JSON file, or
        `"imagenet"`.
    preprocess : how images become a batch; see `pellucid.images.Preprocess`.
    backend : "theano" or "tensorflow", for files of Keras 1, which do not record it: Theano's
        kernels are flipped and its strided SAME padding is symmetric. By default it is told from
        the names of the weights.
    custom_objects : for Keras files, the custom layers and functions by name.
    replace : for Keras files, functions or layers to use in place of layers, by layer name, as
        for a Lambda whose bytecode cannot or must not run: `{"lambda_1": lambda x: x / 255}`.
    inputs : for TensorFlow graphs (`.pb`, SavedModels without layers), the tensors that go in, by
        name, or a mapping from names to shapes in the graph's own layout, `(None, 224, 224, 3)`,
        where it does not say them. By default they are guessed, or those of the signature.
    outputs : likewise the tensors that come out.
    allow_code : let the file run code of its own as it is opened (pickles, Lambda layers). Only
        for files that you trust as you trust a program.
    device : "cpu", "cuda" or "cuda:1"; None is the model's own, and for ONNX files CUDA where
        onnxruntime offers it.

    Returns
    -------
    Adapter
        The model. A live model is left as it is. What the reader of an old file was not sure of
        is in `adapter.notes`.

    Raises
    ------
    LoadError
        The file is missing, damaged, of another kind than it says, or holds code.
    UnsupportedError
        The framework is not installed, or the model is of a kind that this version cannot take.

    Examples
    --------
    >>> from pellucid import load
    >>> model = load("resnet50.onnx")  # doctest: +SKIP
    >>> model = load("torchvision.models:resnet50", weights="resnet50.pth")  # doctest: +SKIP
    >>> model = load("model.json", weights="weights.h5", backend="theano")  # doctest: +SKIP
    """
    options = _Options(
        labels, preprocess, custom_objects, allow_code, device, architecture, backend, replace,
        inputs, outputs,
    )  # fmt: skip
    if isinstance(source, str | Path):
        if isinstance(source, str) and FACTORY.match(source):
            return _made(source, weights, options)
        return _opened(Path(source).expanduser(), weights, options)
    if weights is not None and not _takes_weights(source):
        raise LoadError("weights= goes with a PyTorch module, a Keras model, or its factory.")
    return _live(source, weights, options)


# ---- live models ----------------------------------------------------------------------------


def _is(source: Any, module: str, name: str) -> bool:
    """Say whether an object is of a class, without importing the class's module."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(source, kind)


def _takes_weights(source: Any) -> bool:
    models = (("torch.nn", "Module"), ("keras", "Model"), ("tf_keras", "Model"))
    return any(_is(source, module, name) for module, name in models)


def _live(source: Any, weights: str | Path | None, options: _Options, name: str = "") -> Adapter:
    if isinstance(source, Adapter):
        return _set(source, options)
    if _is(source, "torch.nn", "Module"):
        return _from_torch(source, weights, options, name)
    if _is(source, "torch.export", "ExportedProgram"):
        from pellucid.adapters.torch.exported import from_program

        return _from_torch(from_program(source), None, options, name)
    if _is(source, "keras", "Model") or _is(source, "tf_keras", "Model"):
        if weights is not None:
            return _opened_keras(Path(weights).expanduser(), None, options, source)
        return _from_keras(source, options, name)
    if _is(source, "onnx", "ModelProto"):
        from pellucid.adapters.onnx.adapter import OnnxAdapter

        return OnnxAdapter(source, device=options.device, source=name, **options.given)
    if callable(source) and not isinstance(source, type):
        from pellucid.adapters.function import FunctionAdapter

        if options.preprocess is not None:
            raise InputError("A function gets images as they are: leave preprocess= out.")
        return FunctionAdapter(source, labels=options.labels, source=name)
    raise InputError(
        f"An object of type {type(source).__module__}.{type(source).__qualname__} is no model: "
        "give a torch.nn.Module, a keras.Model, an onnx.ModelProto, a function from images to "
        "scores, a path, or 'package.module:factory'."
    )


def _set(adapter: Adapter, options: _Options) -> Adapter:
    if options.labels is not None:
        adapter.labels = load_labels(options.labels)
    if options.preprocess is not None:
        adapter.preprocess = options.preprocess
        vars(adapter).pop("preprocessing", None)  # made from the one before
    return adapter


def _from_torch(source: Any, weights: str | Path | None, options: _Options, name: str) -> Adapter:
    try:
        from pellucid.adapters.torch.adapter import TorchAdapter
        from pellucid.adapters.torch.exported import Exported
        from pellucid.adapters.torch.files import load_weights
        from pellucid.adapters.torch.torchscript import from_script
    except ImportError as error:
        raise _not_installed("torch", "torch", error) from error

    exported = source if isinstance(source, Exported) else None
    module: Any = exported.module if exported else source
    if _is(module, "torch.jit", "ScriptModule"):
        module = from_script(module)
    if weights is not None:
        module = load_weights(module, existing(Path(weights)), allow_code=options.allow_code)
    recorded: dict[str, Any] = {}
    if exported is not None:
        recorded = {"shapes": exported.shapes, "fixed_batch": exported.fixed_batch}
    return TorchAdapter(module, device=options.device, source=name, **recorded, **options.given)


def _from_keras(source: Any, options: _Options, name: str, **read: Any) -> Adapter:
    keras = sys.modules.get("keras")
    if keras is not None and _is(source, "keras", "Model"):
        from pellucid.adapters.keras.files import check_backend

        check_backend(keras)
    try:
        from pellucid.adapters.keras.adapter import KerasAdapter
    except ImportError as error:
        raise _not_installed("TensorFlow", "tensorflow", error) from error
    adapter: Adapter = KerasAdapter(
        source, source=name, device=options.device, **options.given, **read
    )
    return adapter


def _not_installed(framework: str, extra: str, error: ImportError) -> UnsupportedError:
    missing = (error.name or "").partition(".")[0]
    if missing and missing not in ("torch", "tensorflow", "keras", "tf_keras"):
        return UnsupportedError(f"{framework} does not start: {first_line(error)}.")
    return UnsupportedError(f"This model needs {framework}: install 'pellucid[{extra}]'.")


# ---- paths ----------------------------------------------------------------------------------


def _opened(path: Path, weights: str | Path | None, options: _Options) -> Adapter:
    if options.architecture is not None:
        return _opened_keras(path, weights, options, options.architecture)
    path = existing(path)
    suffix = path.suffix.lower()
    if weights is not None and suffix not in _ARCHITECTURES:
        raise LoadError(
            f"weights= goes with an architecture ({', '.join(_ARCHITECTURES)}) or with a factory, "
            f"'package.module:factory'; {path} holds its own."
        )
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise LoadError(
                f"{path} is a folder, but no SavedModel: it holds no saved_model.pb. Give a file "
                f"({_KNOWN})."
            )
        return _opened_saved_model(path, options)
    if suffix == ".pb":
        return _opened_graph(path, options)
    if options.inputs is not None or options.outputs is not None:
        raise LoadError(
            "inputs= and outputs= name the tensors of a TensorFlow graph (.pb or a SavedModel); "
            f"{path} says its own."
        )
    if suffix == ".onnx":
        from pellucid.adapters.onnx.adapter import OnnxAdapter

        return OnnxAdapter.from_file(path, device=options.device, **options.given)
    if suffix in _KERAS_SUFFIXES:
        return _opened_keras(path, weights, options, None)
    if suffix in _TORCH_SUFFIXES:
        try:
            from pellucid.adapters.torch.files import open_torch
        except ImportError as error:
            raise _not_installed("PyTorch", "torch", error) from error
        found = open_torch(path, allow_code=options.allow_code)
        return _from_torch(found, None, options, str(path))
    if suffix == ".safetensors":
        raise LoadError(
            f"{path} holds weights and no network. Give the code that builds the network, "
            f"'package.module:factory', and weights={path.name!r}."
        )
    kind = f"suffix {suffix!r}" if suffix else "file without a suffix"
    raise LoadError(f"{path}: a {kind} says no model format. Known are {_KNOWN}.")


def _opened_saved_model(path: Path, options: _Options) -> Adapter:
    """Open a SavedModel: by its layers, else as ONNX, else as one closed layer."""
    reason: LoadError | UnsupportedError | None = None
    if options.inputs is None and options.outputs is None:
        try:
            return _opened_keras(path, None, options, None)
        except (LoadError, UnsupportedError) as error:
            layers = not isinstance(error, UnsupportedError)
            if (layers and options.replace) or not (layers or "no Keras layers" in str(error)):
                raise
            reason = error if layers else None
    notes = () if reason is None else (f"Its layers cannot be built: {first_line(reason)}",)
    try:
        return _opened_graph(path, options, notes)
    except UnsupportedError as error:
        if options.inputs is not None or options.outputs is not None:
            raise
        from pellucid.adapters.keras.files import open_as_one_layer

        closed = f"Only the input and the output can be explained: {first_line(error)}"
        model = open_as_one_layer(path, options.allow_code)
        return _from_keras(model, options, str(path), notes=(*notes, closed))
    except LoadError as error:
        raise (reason or error) from error


def _opened_graph(path: Path, options: _Options, notes: Sequence[str] = ()) -> Adapter:
    from pellucid.adapters.onnx.adapter import OnnxAdapter
    from pellucid.adapters.tensorflow.graphs import open_graph

    model, guessed = open_graph(
        path, inputs=options.inputs, outputs=options.outputs, allow_code=options.allow_code
    )
    adapter = OnnxAdapter(model, device=options.device, source=str(path), **options.given)
    adapter.notes = (*notes, *guessed)
    return adapter


def _opened_keras(
    path: Path, weights: str | Path | None, options: _Options, architecture: Any
) -> Adapter:
    from pellucid.adapters.keras.files import open_keras

    opened = open_keras(
        path,
        weights=None if weights is None else existing(Path(weights)),
        architecture=made_if_named(architecture),
        backend=options.backend,
        custom_objects=options.custom_objects,
        replace=options.replace,
        allow_code=options.allow_code,
    )
    read = {"renamed": opened.renamed, "notes": opened.notes}
    return _from_keras(opened.model, options, str(path), **read)


def _made(specification: str, weights: str | Path | None, options: _Options) -> Adapter:
    made = made_by(specification)
    if isinstance(made, str | Path):
        raise LoadError(f"{specification} gives the path {str(made)!r}, not a model.")
    if weights is not None and not _takes_weights(made):
        raise LoadError(
            f"weights= goes with a PyTorch module or a Keras model; {specification} gives a "
            f"{type(made).__name__}."
        )
    return _live(made, weights, options, specification)
