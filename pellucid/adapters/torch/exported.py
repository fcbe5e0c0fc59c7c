"""Exported PyTorch programs (`.pt2`), opened without running anything that they hold.

`torch.export.load` trusts its file: it falls back to unrestricted unpickling for the sample
inputs, evaluates symbolic sizes as Python, looks operators up by walking attributes from `torch`
(so `torch.os.system` would be one), writes names into generated code, and loads compiled
libraries. So the archive is read here, everything in it is held against what an export of a
network may contain, and PyTorch gets a fresh archive of just what passed, with pickles restricted
to weights.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from torch import nn

from pellucid.errors import LoadError, UnsupportedError, first_line

__all__ = ["Exported", "from_program", "read_exported", "repacked"]

_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prim|prims|higher_order|quantized|_quantized)\.\w+(\.\w+)?"
    r"|torch\.sym_(int|float|max|min|not|ite|sum|sqrt)|torch\._sym_\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_"
    r"|not_|getitem|lshift|rshift|index)"
    r"|math\.(ceil|floor|trunc|sqrt|log2?|exp|pow)"
)
_FILE_OPERATORS = re.compile(r"\.(save|from_file|__\w+__)(\.|$)")
_LOGICAL = re.compile(r"\.__(and|or|xor|lshift|rshift|iand|ior|ixor)__(\.|$)")
_NAME = re.compile(r"[\w.@:/\-+<>* ]*")
_STACK = re.compile(r"[\w.,;@:/\-<>\[\]'$ ]*")
_MEMBER = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    r"|extra/.*"
)
_SYMBOLIC = re.compile(r"[\w\s+\-*/%(),.=<>&|~']*")
_SYMBOLIC_WORDS = re.compile(
    r"[a-z]{1,3}\d+|Symbol|Integer|Rational|Float|Mul|Add|Pow|Max|Min|Mod|PythonMod|FloorDiv"
    r"|CleanDiv|CeilDiv|TrueDiv|IntTrueDiv|FloatTrueDiv|ModularIndexing|Where|Identity|ToFloat"
    r"|TruncToInt|RoundToInt|CeilToInt|FloorToInt|FloatPow|PowByNatural|Eq|Ne|Lt|Le|Gt|Ge"
    r"|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not"
    r"|positive|nonnegative|integer|real|evaluate|True|False|oo|int_oo"
)
_TREES = frozenset(
    (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
)
_ACTIVATIONS: Mapping[str, Callable[..., Any]] = {
    "aten.softmax.int": torch.softmax,
    "aten.log_softmax.int": torch.log_softmax,
    "aten.sigmoid.default": torch.sigmoid,
    "aten.sigmoid_.default": torch.sigmoid_,
}
_KEPT_METADATA = ("nn_module_stack",)


@dataclass(frozen=True)
class Exported:
    """An exported program as a module.

    Attributes
    ----------
    module : the program, with submodules under their own names and class names.
    shapes : shapes of the inputs in the export, channels first.
    fixed_batch : the only batch size that the program takes, if it is so.
    """

    module: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    fixed_batch: int | None


def read_exported(members: Mapping[str, bytes], source: str) -> Exported:
    """Open the members of a `.pt2` archive.

    Parameters
    ----------
    members : the archive's files, by their names inside its top folder.
    source : the file's name, for messages.

    Raises
    ------
    LoadError : the file holds something that an exported network does not, or is damaged.
    """
    if "serialized_exported_program.json" in members:
        raise LoadError(
            f"{source} was exported by a PyTorch before 2.8. Export it again with a newer one."
        )
    if "models/model.json" not in members:
        raise LoadError(f"{source} holds no exported model. Save it with torch.export.save.")
    try:
        kept = _vetted(members)
    except _RefusedError as error:
        raise LoadError(
            f"{source} is refused: it holds {error}, which could run code. Export the network "
            "again without it, or use 'package.module:factory' with weights=."
        ) from error
    except (ValueError, KeyError, RecursionError) as error:
        raise LoadError(f"{source} is damaged: {first_line(error)}. Export it again.") from error
    try:
        with _only_weights():
            program = torch.export.load(repacked(kept))
        return from_program(program)
    except UnsupportedError:
        raise
    except Exception as error:
        raise LoadError(
            f"{source} cannot be opened by PyTorch {torch.__version__}: {first_line(error)}. "
            "Export it again with this version."
        ) from error


# ---- what may be in the file ----------------------------------------------------------------


class _RefusedError(Exception):
    """Names what an exported network has no business to hold."""


def _vetted(members: Mapping[str, bytes]) -> dict[str, bytes]:
    kept = {}
    for name, data in members.items():
        if not _MEMBER.fullmatch(name):
            raise _RefusedError(f"{name!r}")
        if not name.startswith("extra/"):
            kept[name] = data
    program = json.loads(members["models/model.json"])
    program["guards_code"] = []  # Python that PyTorch would compile
    _walk(program, "")
    kept["models/model.json"] = json.dumps(program).encode()
    for name in ("weights", "constants"):
        config = json.loads(members.get(f"data/{name}/model_{name}_config.json", b"{}"))
        for entry in config.get("config", {}).values():
            if not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
                raise _RefusedError(f"the pickled object {entry.get('path_name')!r}")
    return kept


def _walk(value: Any, key: str) -> None:
    if isinstance(value, str):
        _check_string(value, key)
    elif isinstance(value, list):
        for item in value:
            _walk(item, key)
    elif isinstance(value, dict):
        if "target" in value and "inputs" in value and "metadata" in value:
            _check_node(value)
        for name, item in value.items():
            if not _NAME.fullmatch(name):
                raise _RefusedError(f"the name {name[:80]!r}")
            if name != "target" or "metadata" not in value:
                _walk(item, name)


def _check_node(node: dict[str, Any]) -> None:
    target = str(node["target"])
    allowed = _OPERATOR.fullmatch(target) and (
        not _FILE_OPERATORS.search(target) or _LOGICAL.search(target)
    )
    if not allowed:
        raise _RefusedError(f"the operator {target[:80]!r}")
    node["metadata"] = {k: v for k, v in node["metadata"].items() if k in _KEPT_METADATA}


def _check_string(value: str, key: str) -> None:
    if key == "expr_str":
        words = re.findall(r"[A-Za-z_]\w*", value)
        attributes = re.search(r"\.\s*[A-Za-z_]", value)
        if (
            attributes
            or not _SYMBOLIC.fullmatch(value)
            or not all(_SYMBOLIC_WORDS.fullmatch(word) for word in words)
        ):
            raise _RefusedError(f"the expression {value[:80]!r}")
    elif key in ("in_spec", "out_spec"):
        if value:
            _check_tree(json.loads(value))
    elif key == "nn_module_stack":
        if not _STACK.fullmatch(value):
            raise _RefusedError(f"the module name {value[:80]!r}")
    elif key != "as_string" and not _NAME.fullmatch(value):
        raise _RefusedError(f"the name {value[:80]!r}")


def _check_tree(value: Any) -> None:
    if isinstance(value, dict):
        if "type" in value and value["type"] not in _TREES:
            raise _RefusedError(f"the type {str(value['type'])[:80]!r}")
        for item in value.values():
            _check_tree(item)
    elif isinstance(value, list):
        for item in value:
            _check_tree(item)


def repacked(members: Mapping[str, bytes]) -> BytesIO:
    """Write a fresh archive, so that what PyTorch reads is exactly what was looked at."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(f"model/{name}", data)
    buffer.seek(0)
    return buffer


@contextmanager
def _only_weights() -> Iterator[None]:
    """Restrict every `torch.load` inside to weights, those of PyTorch itself included."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


# ---- the module -----------------------------------------------------------------------------


def from_program(program: Any) -> Exported:
    """Turn a `torch.export.ExportedProgram` into a module with its submodules' own names."""
    module: Any = torch.export.unflatten(program)
    given = program.graph_signature.user_inputs
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    tensors = [values[name] for name in given if isinstance(values.get(name), torch.Tensor)]
    if not tensors or len(tensors) != len(given):
        raise UnsupportedError(
            "This exported program takes something other than tensors; export the network with "
            "tensors as its only inputs."
        )
    sizes = [tuple(s if isinstance(s, int) else None for s in t.shape) for t in tensors]
    batch = next((shape[0] for shape in sizes if shape), None)
    hints = [tuple(_hint(s) for s in t.shape) for t in tensors]
    _name_classes(module, program)
    _name_activations(module)
    module.check_input_constraints = False
    names = [name if name.isidentifier() else f"input_{i}" for i, name in enumerate(given)]
    _give_signature(module, names)
    module.register_forward_pre_hook(_shape_check(sizes))
    module.register_forward_pre_hook(_start_over)
    if batch is not None and _takes_any_batch(module, hints, batch):
        batch = None
    return Exported(module, tuple(hints), batch)


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "hint", None)
    return int(hint) if hint else 2


def _name_classes(module: nn.Module, program: Any) -> None:
    """Give every submodule the class name that it had when it was exported."""
    known: dict[str, str] = {}
    for node in program.graph.nodes:
        for path, kind in node.meta.get("nn_module_stack", {}).values():
            name = kind if isinstance(kind, str) else kind.__name__
            known[path.partition("@")[0]] = name.rpartition(".")[2]
    for name, child in module.named_modules():
        kind = known.get(name.partition("@")[0], "")
        if kind.isidentifier():
            child.__class__ = type(kind, (type(child),), {})


def _name_activations(module: nn.Module) -> None:
    """Call final activations by the names under which whoever looks for them knows them."""
    parts: list[Any] = list(module.modules())
    parts += [call for part in parts for call in getattr(part, "_call_modules", ())]
    for graph in filter(None, (getattr(part, "graph", None) for part in parts)):
        for node in graph.nodes:
            if node.op == "call_function" and len(node.args) <= 2 and not node.kwargs:
                node.target = _ACTIVATIONS.get(str(node.target), node.target)


def _start_over(module: nn.Module, _arguments: Any) -> None:
    """Reset the counters of modules with several calls, which a failed run leaves in between."""
    for part in module.modules():
        if hasattr(part, "_call_modules"):
            vars(part)["_num_calls"] = 0


def _give_signature(module: nn.Module, names: list[str]) -> None:
    base: Any = type(module)

    def forward(self: Any, *arguments: Any) -> Any:
        return base.forward(self, *arguments)

    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kinds) for name in ("self", *names)]
    )
    module.__class__ = type(base.__name__, (base,), {"forward": forward})


def _shape_check(sizes: list[tuple[int | None, ...]]) -> Callable[[nn.Module, Any], None]:
    """Make a hook that holds inputs against the export, all but their batch size."""

    def check(_module: nn.Module, arguments: Any) -> None:
        for tensor, size in zip(arguments, sizes, strict=False):
            want, have = size[1:], tuple(tensor.shape[1:])
            if len(want) != len(have) or any(
                w not in (None, h) for w, h in zip(want, have, strict=True)
            ):
                raise RuntimeError(f"the network was exported for inputs of shape {size}")

    return check


def _takes_any_batch(module: nn.Module, shapes: list[tuple[int, ...]], batch: int) -> bool:
    """Try a program that was exported for one batch size with another.

    It often holds nothing that depends on the size; then each image's result is the same.
    """
    generator = torch.Generator().manual_seed(0)
    whole = [torch.rand((batch + 1, *s[1:]), generator=generator) for s in shapes]
    try:
        with torch.no_grad():
            larger, exact = module(*whole), module(*(t[:batch] for t in whole))
    except Exception:  # whatever the network says: this batch size does not fit
        return False
    pairs = [
        (a, b)
        for a, b in zip(_tensors(larger), _tensors(exact), strict=False)
        if a.is_floating_point()
    ]
    return bool(pairs) and all(
        len(a) == batch + 1 and torch.allclose(a[:batch], b, rtol=1e-3, atol=1e-4)
        for a, b in pairs
        if a.ndim
    )


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    items = result.values() if isinstance(result, Mapping) else result
    return [tensor for item in items for tensor in _tensors(item)] if items is not None else []
