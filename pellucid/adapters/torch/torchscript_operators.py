"""The operators of TorchScript graphs, as Python functions.

Everything that computes is PyTorch's own kernel. What works on lists and dictionaries is Python.
What reaches beyond the network, to a file or another process, is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pellucid.errors import UnsupportedError

__all__ = ["RefusedError", "operator_of", "unsupported"]

_REFUSED = frozenset(("aten::save", "aten::from_file"))
_NAMESPACES = ("aten::", "prim::", "quantized::")


class RefusedError(Exception):
    """Names an operator that does more than compute."""


def _set_item(target: Any, key: Any, value: Any) -> None:
    target[key] = value


def _delete_item(target: Any, key: Any) -> None:
    del target[key]


# Operators on lists, dictionaries and anything: called from Python, PyTorch's own would work on
# copies of the containers, or cannot be called at all.
_PYTHON: Mapping[str, Callable[..., Any]] = {
    "aten::__getitem__": operator.getitem,
    "aten::_set_item": _set_item,
    "aten::Delete": _delete_item,
    "aten::len": len,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__not__": operator.not_,
    "aten::__contains__": operator.contains,
    "aten::append": lambda target, item: target.append(item),
    "aten::extend": lambda target, items: target.extend(items),
    "aten::insert": lambda target, index, item: target.insert(index, item),
    "aten::pop": lambda target, *index: target.pop(*index),
    "aten::clear": lambda target: target.clear(),
    "aten::reverse": lambda target: target.reverse(),
    "aten::list": list,
    "aten::dict": dict,
    "aten::keys": list,
    "aten::values": lambda target: list(target.values()),
    "aten::items": lambda target: list(target.items()),
    "aten::get": lambda target, key, default=None: target.get(key, default),
    "aten::format": lambda template, *items: template.format(*items),
    "aten::warn": lambda *_: None,
    "prim::TupleIndex": operator.getitem,
    "prim::unchecked_cast": lambda value: value,
    "prim::unchecked_unwrap_optional": lambda value: value,
    "prim::data": lambda tensor: tensor.detach(),
}
# These are called by the names under which whoever looks for a final activation knows them.
_TORCH: Mapping[str, Callable[..., Any]] = {
    "aten::softmax": torch.softmax,
    "aten::log_softmax": torch.log_softmax,
    "aten::sigmoid": torch.sigmoid,
    "aten::sigmoid_": torch.sigmoid_,
}


def operator_of(node: Any) -> Callable[..., Any]:
    """Return what runs a node: a function of all values so far and of the node's inputs.

    Raises
    ------
    RefusedError : the operator does more than compute.
    """
    kind: str = node.kind()
    schema: str = node.schema()
    generic = "t[]" in schema or schema.startswith(("aten::len", "aten::__getitem__"))
    if not kind.startswith(_NAMESPACES) or kind in _REFUSED or "rpc" in kind:
        raise RefusedError(kind)
    if kind in _TORCH and node.inputsSize() <= 3:
        function, names = _TORCH[kind], node.inputsSize()
        return lambda _values, *a: (
            function(*a[:2]) if names < 3 or a[2] is None else function(*a[:2], dtype=a[2])
        )
    if kind in _PYTHON and (generic or not schema.split("(")[1].startswith("Tensor ")):
        python = _PYTHON[kind]
        return lambda _values, *arguments: python(*arguments)
    if kind == "aten::slice" and generic:
        return lambda _values, items, start, end, step: items[start:end:step]
    if kind == "aten::add" and generic:
        return lambda _values, left, right: [*left, *right]
    overload = schema.partition("(")[0].partition(".")[2]
    found = torch._C._get_operation_overload(kind, overload) if schema else None
    if not found:
        return unsupported(f"the operator {kind}")
    function = found[0]
    listed = torch._C._get_schema(kind, overload).arguments
    keywords = [argument.name for argument in listed if argument.kwarg_only]
    if not keywords:
        return lambda _values, *arguments: function(*arguments)
    count = len(listed) - len(keywords)
    return lambda _values, *arguments: function(
        *arguments[:count], **dict(zip(keywords, arguments[count:], strict=True))
    )


def unsupported(what: str) -> Callable[..., Any]:
    """Return what says, once it is reached, that something cannot be run."""

    def run(*_: Any) -> Any:
        raise UnsupportedError(
            f"This TorchScript uses {what}, which cannot be run from Python. Load the original "
            "with 'package.module:factory', or export it with torch.export."
        )

    return run
