"""What a TensorFlow program may not do when it is opened: reach outside, or fill the memory.

A graph is a program. Most operators compute; a few read and write files, run Python, or talk to
other machines, and these are looked for before TensorFlow sees the graph. A constant may also
declare any shape and hold a single value, which TensorFlow would repeat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pellucid.errors import LoadError

__all__ = ["refuse_large", "refuse_unsafe"]

_FILE_OPERATORS = frozenset(
    (
        "ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc",
        "SaveV2", "Save", "SaveSlices", "MergeV2Checkpoints", "TextLineReader", "DebugIdentityV3",
        "WholeFileReader", "WholeFileReaderV2", "TextLineReaderV2", "PrintV2", "SaveDataset",
        "SaveDatasetV2", "LoadDataset", "TextLineDataset", "TFRecordDataset",
        "TFRecordDatasetV2", "FixedLengthRecordDatasetV2", "DatasetToTFRecord", "RpcCall",
        "WriteSummary", "CreateSummaryFileWriter", "WriteGraphSummary", "WriteImageSummary",
        "LoadLibrary", "CacheDataset", "CacheDatasetV2", "SnapshotDatasetV2",
    )
)  # fmt: skip
# In a frozen graph, which has no checkpoint to restore, these have no business either.
_RESTORING = frozenset((
    "Restore", "RestoreSlice", "RestoreV2", "FixedLengthRecordReader", "FixedLengthRecordReaderV2",
    "TFRecordReader", "TFRecordReaderV2", "LMDBReader", "IdentityReader", "IdentityReaderV2",
    "InitializeTableFromTextFile", "InitializeTableFromTextFileV2", "LoadAndRemapMatrix",
    "GenerateVocabRemapping", "FixedLengthRecordDataset", "LMDBDataset", "SqlDataset",
    "DebugIdentity", "DebugIdentityV2", "DebugNanCount", "DebugNumericSummary",
))  # fmt: skip
_CHECKPOINT = re.compile(r"^__inference__traced_(save|restore)_\d+$")
_SAVING = frozenset(("SaveV2", "MergeV2Checkpoints"))
_LARGEST = 1 << 26  # bytes that a constant may declare beyond what it holds


def refuse_unsafe(path: Path, graphs: Iterable[Any], *, frozen: bool = False) -> None:
    """Refuse a program that reaches outside itself.

    Parameters
    ----------
    path : its file, for the message.
    graphs : its `GraphDef`s.
    frozen : whether it has no checkpoint, so that it may not restore one.

    Raises
    ------
    LoadError : it does.
    """
    outside = _FILE_OPERATORS | _RESTORING if frozen else _FILE_OPERATORS
    for graph in graphs:
        functions = graph.library.function
        saving = {f.signature.name for f in functions if _CHECKPOINT.match(f.signature.name)}
        for function in functions:
            for node in function.node_def:
                own = function.signature.name in saving and node.op in _SAVING
                calls = {a.func.name for a in node.attr.values() if a.HasField("func")} & saving
                if (node.op in outside and not own) or calls:
                    raise _refusal(path, node.op)
        for node in graph.node:
            if node.op in (outside if frozen else outside - _SAVING):
                raise _refusal(path, node.op)


def _refusal(path: Path, operator: str) -> LoadError:
    return LoadError(
        f"{path} is refused: its program uses the operator {operator}, which reaches outside it. "
        "Give allow_code=True if you trust it."
    )


def refuse_large(path: Path, graph: Any) -> None:
    """Refuse a graph with constants that are much larger than what the file holds of them.

    Raises
    ------
    LoadError : there is one.
    """
    for name, tensor in _constants(graph):
        sizes = [dimension.size for dimension in tensor.tensor_shape.dim]
        count = 1
        for size in sizes:
            count *= size
        if min(sizes, default=0) < 0 or count * 8 > _LARGEST + 16 * tensor.ByteSize():
            raise LoadError(
                f"{path} is refused: its constant {name!r} declares the shape {tuple(sizes)} and "
                f"holds {tensor.ByteSize():,} bytes. The file is damaged; copy it again."
            )


def _constants(graph: Any) -> Iterator[tuple[str, Any]]:
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    for node in nodes:
        for attribute in node.attr.values():
            if attribute.HasField("tensor"):
                yield node.name, attribute.tensor
            for tensor in attribute.list.tensor:
                yield node.name, tensor
