"""Draw the lineage as SVG: a column for each type of artifact, a row for each version, the oldest at the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.commands.report.markup import Html, join, tag

COLUMNS = {"dataset": "data", "model": "models", "feedback": "failures"}
BOX, GUTTER, ROW, HEIGHT, TOP = 154, 34, 62, 40, 26  # pixels
LINES_A_COLUMN = 5  # parallel edges; more overlap
MAX_LETTERS = 21  # fit into a box


@dataclass(frozen=True)
class Node:
    """A version in the lineage of production; `inputs` are refs."""

    ref: str
    label: str
    type: str
    created: str
    inputs: tuple[str, ...]
    aliases: tuple[str, ...] = ()


def draw(nodes: Sequence[Node]) -> Html:
    """Return the graph as SVG. Parents come first in `nodes`. Edges to versions that are not in it are left out."""
    columns = [column for column in COLUMNS if any(_column(node) == column for node in nodes)]
    left = {column: index * (BOX + GUTTER) + GUTTER for index, column in enumerate(columns)}
    corner = {node.ref: (left[_column(node)], TOP + row * ROW) for row, node in enumerate(nodes)}
    width, height = len(columns) * (BOX + GUTTER) + 4, TOP + len(nodes) * ROW
    parents = {ref for node in nodes for ref in node.inputs}
    lines: dict[str, int] = {}  # parent -> number of its line in the gutter of its column
    for column in columns:
        for number, node in enumerate(node for node in nodes if _column(node) == column and node.ref in parents):
            lines[node.ref] = number % LINES_A_COLUMN
    edges = [
        _edge(corner[ref], corner[node.ref], lines[ref], number, len(node.inputs))
        for node in nodes
        for number, ref in enumerate(node.inputs)
        if ref in corner
    ]
    description = "; ".join(f"{node.label} from {', '.join(_labels(node, nodes)) or 'a source'}" for node in nodes)
    heads = [tag("text", COLUMNS[column], x=left[column], y=12, class_="lane") for column in columns]
    boxes = [_box(node, *corner[node.ref]) for node in nodes]
    return tag(
        "svg", tag("title", f"Lineage: {description}"), *heads, *edges, *boxes,
        viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", class_="lineage",
    )  # fmt: skip


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


def _column(node: Node) -> str:
    return node.type if node.type in COLUMNS else "model"


def _labels(node: Node, nodes: Sequence[Node]) -> list[str]:
    known = {other.ref: other.label for other in nodes}
    return [known.get(ref, ref.partition("@")[0]) for ref in node.inputs]


def _edge(parent: tuple[int, int], child: tuple[int, int], line: int, number: int, count: int) -> Html:
    """Return the edge: from the parent down the gutter of its column, then along the row of the child."""
    (px, py), (cx, cy) = parent, child
    gutter = px - 8 - 5 * line
    start, end = py + HEIGHT - 8, cy + HEIGHT * (number + 1) // (count + 1)
    target = cx - 2 if cx >= px else cx + BOX + 2
    turn = 4 if target > gutter else -4
    line_path = f"M{px} {start}H{gutter + 4}q-4 0 -4 4V{end - 4}q0 4 {turn} 4H{target}"
    tip = f"M{target} {end}l{-turn} -3v6z"
    return join(tag("path", d=line_path, class_="edge"), tag("path", d=tip, class_="tip"))


def _box(node: Node, x: int, y: int) -> Html:
    name = node.label if len(node.label) <= MAX_LETTERS else f"{node.label[: MAX_LETTERS - 1]}…"
    description = ", ".join([node.label, node.type, f"made {node.created[:16].replace('T', ' ')} UTC", *node.aliases])
    below = ", ".join(node.aliases) if node.aliases else node.created[5:16].replace("T", " ")
    live = " live" if "production" in node.aliases else ""
    return tag(
        "g", tag("title", description),
        tag("rect", x=x, y=y, width=BOX, height=HEIGHT, rx=6),
        tag("text", name, x=x + 9, y=y + 17, class_="name"),
        tag("text", below, x=x + 9, y=y + 32, class_="below"),
        class_=f"node {_column(node)}{live}",
    )  # fmt: skip
