"""The layers of a network as a table in plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.graph.layers import GraphLayer, LayerGraph

__all__ = ["COLUMNS", "TIMES", "cells", "short_count", "shown_shape", "text_table"]

TIMES = "\N{MULTIPLICATION SIGN}"
COLUMNS = ("Layer", "Kind", "Output", "Parameters", "Multiply-adds", "From")
_RIGHT = (3, 4)  # columns of numbers
_WIDEST = (44, 24, 24, 13, 13, 40)


def short_count(count: int | None) -> str:
    """Write a number with three or four digits and a unit: 25.56 M."""
    if count is None:
        return "?"
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            scaled = count / size
            digits = 3 - len(str(int(scaled)))
            return f"{scaled:.{max(digits, 0) + (1 if scaled < 100 else 0)}f} {unit}"
    return str(count)


def shown_shape(shape: tuple[int | None, ...]) -> str:
    """Write a shape: N x 64 x 56 x 56."""
    first = ["N" if size is None else str(size) for size in shape[:1]]
    return f" {TIMES} ".join([*first, *("?" if size is None else str(size) for size in shape[1:])])


def cells(layer: GraphLayer) -> tuple[str, ...]:
    """Return a layer's row, one text per column."""
    kind = f"{layer.kind} + {layer.fused}" if layer.fused else layer.kind
    count = f"{layer.parameters:,}" if layer.parameters else ""
    if layer.shared_parameters:
        count = f"{count} (shared)" if count else "(shared)"
    work = short_count(layer.multiply_adds) if layer.multiply_adds != 0 else ""
    return (layer.name, kind, shown_shape(layer.shape), count, work, ", ".join(layer.inputs))


def text_table(graph: LayerGraph, width: int | None = None) -> str:
    """Lay the table out in columns; `width` cuts the lines."""
    rows = [cells(layer) for layer in graph.layers]
    widths = [
        min(widest, max(len(row[i]) for row in (COLUMNS, *rows)))
        for i, widest in enumerate(_WIDEST)
    ]

    def line(row: tuple[str, ...]) -> str:
        fitted = (_fitted(text, size) for text, size in zip(row, widths, strict=True))
        placed = [
            text.rjust(size) if i in _RIGHT else text.ljust(size)
            for i, (text, size) in enumerate(zip(fitted, widths, strict=True))
        ]
        return "  ".join(placed).rstrip()[:width]

    rule = "─" * min(len("  ".join("x" * w for w in widths)), width or 1000)
    total = (
        f"{sum(not layer.is_port for layer in graph.layers)} layers, "
        f"{graph.parameters:,} parameters, {short_count(graph.multiply_adds)} multiply-adds, "
        f"{short_count(graph.activation_bytes)}B of activations for one sample"
    )
    head = [graph.name] if graph.name else []
    return "\n".join([*head, line(COLUMNS), rule, *map(line, rows), rule, total])


def _fitted(text: str, size: int) -> str:
    return text if len(text) <= size else "…" + text[len(text) - size + 1 :]
