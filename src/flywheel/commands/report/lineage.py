"""The lineage as a drawing: a lane a kind of artifact, a row a version, time downwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.commands.report.markup import Html, join, tag

LANES = {"dataset": "data", "model": "models", "feedback": "failures"}
BOX, GUTTER, ROW, HEIGHT, TOP = 154, 34, 62, 40, 26  # pixels
LINES_A_LANE = 5  # beside one another before they share a place
LONGEST = 21  # letters that fit into a box


@dataclass(frozen=True)
class Node:
    """A version that production descends from: `ref`, its label, type, time, refs it was made from, its aliases."""

    ref: str
    label: str
    type: str
    created: str
    inputs: tuple[str, ...]
    aliases: tuple[str, ...] = ()


def draw(nodes: Sequence[Node]) -> Html:
    """Return the graph as SVG. `nodes` come parents first; edges to versions that are not among them are left out."""
    lanes = [lane for lane in LANES if any(_lane(node) == lane for node in nodes)]
    left = {lane: index * (BOX + GUTTER) + GUTTER for index, lane in enumerate(lanes)}
    place = {node.ref: (left[_lane(node)], TOP + row * ROW) for row, node in enumerate(nodes)}
    width, height = len(lanes) * (BOX + GUTTER) + 4, TOP + len(nodes) * ROW
    parents = {ref for node in nodes for ref in node.inputs}
    lines: dict[str, int] = {}  # a parent's place in the gutter of its lane
    for lane in lanes:
        for number, node in enumerate(node for node in nodes if _lane(node) == lane and node.ref in parents):
            lines[node.ref] = number % LINES_A_LANE
    edges = [
        _edge(place[ref], place[node.ref], lines[ref], number, len(node.inputs))
        for node in nodes
        for number, ref in enumerate(node.inputs)
        if ref in place
    ]
    told = "; ".join(f"{node.label} from {', '.join(_labels(node, nodes)) or 'a source'}" for node in nodes)
    heads = [tag("text", LANES[lane], x=left[lane], y=12, class_="lane") for lane in lanes]
    return tag(
        "svg", tag("title", f"Lineage: {told}"), *heads, *edges, *(_box(node, *place[node.ref]) for node in nodes),
        viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", class_="lineage",
    )  # fmt: skip


def ordered(nodes: Sequence[Node]) -> list[Node]:
    """Return nodes with parents before children, older before younger where that leaves a choice."""
    waiting = sorted(nodes, key=lambda node: node.created)
    here, done, result = {node.ref for node in nodes}, set[str](), list[Node]()
    while waiting:
        ready = next((n for n in waiting if all(ref in done or ref not in here for ref in n.inputs)), waiting[0])
        waiting.remove(ready)
        done.add(ready.ref)
        result.append(ready)
    return result


def _lane(node: Node) -> str:
    return node.type if node.type in LANES else "model"


def _labels(node: Node, nodes: Sequence[Node]) -> list[str]:
    known = {other.ref: other.label for other in nodes}
    return [known.get(ref, ref.partition("@")[0]) for ref in node.inputs]


def _edge(parent: tuple[int, int], child: tuple[int, int], line: int, number: int, count: int) -> Html:
    """Return the way from a parent down its lane's gutter to the child's row: no other box stands in that row."""
    (px, py), (cx, cy) = parent, child
    gutter = px - 8 - 5 * line
    start, end = py + HEIGHT - 8, cy + HEIGHT * (number + 1) // (count + 1)
    target = cx - 2 if cx >= px else cx + BOX + 2
    turn = 4 if target > gutter else -4
    way = f"M{px} {start}H{gutter + 4}q-4 0 -4 4V{end - 4}q0 4 {turn} 4H{target}"
    tip = f"M{target} {end}l{-turn} -3v6z"
    return join(tag("path", d=way, class_="edge"), tag("path", d=tip, class_="tip"))


def _box(node: Node, x: int, y: int) -> Html:
    name = node.label if len(node.label) <= LONGEST else f"{node.label[: LONGEST - 1]}…"
    told = ", ".join([node.label, node.type, f"made {node.created[:16].replace('T', ' ')} UTC", *node.aliases])
    below = ", ".join(node.aliases) if node.aliases else node.created[5:16].replace("T", " ")
    live = " live" if "production" in node.aliases else ""
    return tag(
        "g", tag("title", told),
        tag("rect", x=x, y=y, width=BOX, height=HEIGHT, rx=6),
        tag("text", name, x=x + 9, y=y + 17, class_="name"),
        tag("text", below, x=x + 9, y=y + 32, class_="below"),
        class_=f"node {_lane(node)}{live}",
    )  # fmt: skip
