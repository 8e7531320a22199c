"""Lay out the lineage: a column for each type of artifact, a row for each version, the oldest at the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = {"dataset": "data", "model": "models", "feedback": "feedback"}
BOX, GUTTER, ROW, HEIGHT, TOP = 154, 34, 62, 40, 26  # pixels
LINES_A_COLUMN = 5  # parallel edges; more overlap


@dataclass(frozen=True)
class Node:
    """A version in the lineage of production; `inputs` are refs."""

    ref: str
    label: str
    type: str
    created: str
    inputs: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @property
    def column(self) -> str:
        """The type by which it is drawn."""
        return self.type if self.type in COLUMNS else "model"


def graph(nodes: Sequence[Node]) -> dict[str, Any]:
    """Return the drawing in pixels: sizes, columns (name, x), edges (paths of line and tip), boxes (node, x, y).

    Parents come first in `nodes`. Edges to versions that are not in it are left out.
    """
    columns = [column for column in COLUMNS if any(node.column == column for node in nodes)]
    left = {column: index * (BOX + GUTTER) + GUTTER for index, column in enumerate(columns)}
    corner = {node.ref: (left[node.column], TOP + row * ROW) for row, node in enumerate(nodes)}
    parents = {ref for node in nodes for ref in node.inputs}
    lines: dict[str, int] = {}  # parent -> number of its line in the gutter of its column
    for column in columns:
        for number, node in enumerate(node for node in nodes if node.column == column and node.ref in parents):
            lines[node.ref] = number % LINES_A_COLUMN
    labels = {node.ref: node.label for node in nodes}
    made = [(node.label, ", ".join(labels.get(r, r.partition("@")[0]) for r in node.inputs)) for node in nodes]
    return {
        "width": len(columns) * (BOX + GUTTER) + 4, "height": TOP + len(nodes) * ROW, "box": BOX, "box_height": HEIGHT,
        "columns": [(COLUMNS[column], left[column]) for column in columns],
        "edges": [
            _edge(corner[ref], corner[node.ref], lines[ref], (number + 1) / (len(node.inputs) + 1))
            for node in nodes
            for number, ref in enumerate(node.inputs)
            if ref in corner
        ],
        "boxes": [(node, *corner[node.ref]) for node in nodes],
        "description": "; ".join(f"{label} from {inputs or 'a source'}" for label, inputs in made),
    }  # fmt: skip


def ordered(nodes: Sequence[Node]) -> list[Node]:
    """Return nodes sorted by time, but parents before children."""
    waiting = sorted(nodes, key=lambda node: node.created)
    known, done, result = {node.ref for node in nodes}, set[str](), list[Node]()
    while waiting:
        ready = next((n for n in waiting if all(ref in done or ref not in known for ref in n.inputs)), waiting[0])
        waiting.remove(ready)
        done.add(ready.ref)
        result.append(ready)
    return result


def _edge(parent: tuple[int, int], child: tuple[int, int], line: int, part: float) -> tuple[str, str]:
    """Return an edge from the parent down the gutter of its column, then along the row of the child, and its tip."""
    (px, py), (cx, cy) = parent, child
    gutter = px - 8 - 5 * line
    start, end = py + HEIGHT - 8, cy + int(HEIGHT * part)
    target = cx - 2 if cx >= px else cx + BOX + 2
    bend = 4 if target > gutter else -4
    path = f"M{px} {start}H{gutter + 4}q-4 0 -4 4V{end - 4}q0 4 {bend} 4H{target}"
    return path, f"M{target} {end}l{-bend} -3v6z"
