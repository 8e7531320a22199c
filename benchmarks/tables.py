"""Write the tables of measured results into README.md and docs/, from the result files; measure nothing.

    python benchmarks/tables.py        (make docs)

Reads   benchmarks/results/*.json
Writes  each table between its markers `<!-- name -->` and `<!-- end name -->` (a test compares the two)
"""

from __future__ import annotations

import importlib
import re
import statistics
from pathlib import Path
from typing import Any

import pages

from flywheel import cli, files

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    """Write the tables into every page."""
    for page in PAGES:
        files.write_text(page, updated(page))


def updated(page: Path) -> str:
    """Return the text of a page with each of its tables made from the result file of the same name."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"^<!-- (\w[\w-]*) -->$", text, re.M):
        text = pages.between(text, name, headlines() if name == "headlines" else table(name))
    return text


def table(name: str) -> str:
    """Return the table of a result file, made by the benchmark that wrote it: `wheel` makes that of `wheel_demo`."""
    stems = [path.stem for path in Path(__file__).parent.glob("*.py")]
    benchmark = max((stem for stem in stems if f"{name}_".startswith(f"{stem}_")), key=len)
    return str(importlib.import_module(benchmark).table(_result(name)))


def headlines() -> str:
    """Return the table of README.md: the claim, the figure, and the command that measures it again."""
    wheel, serving, training, compact = (_result(name) for name in ("wheel_demo", "serving", "training", "compact"))
    turned = wheel["summary"]
    ratios = [f"{row['ratio']:.1f}x" for row in serving["serving"]]
    p99 = serving["serving"][-1]["p99_ms"]
    swaps = serving["serving_swaps"]["swapping"]
    gains = ", ".join(f"{row['ratio']:.1f}x ({row['architecture']})" for row in training["training"])
    record, mine = (
        sorted((row for row in compact["rows"] if row["network"] == name), key=lambda row: row["seed"])
        for name in ("airbench94", "compact")
    )
    share = statistics.median(ours["seconds"] / theirs["seconds"] for ours, theirs in zip(mine, record, strict=True))
    accuracies = (f"{statistics.mean(100 * row['accuracy'] for row in found):.1f}%" for found in (mine, record))
    ready = min(row["share_of_ready"] for row in training["training"])
    rows = [
        (
            f"one turn on drifted digits, {turned['seeds']} seeds: of the accuracy that drift took, won back on images "
            "no training saw",
            f"{turned['recovered of that, in production after turn 1']}; after three turns "
            f"{turned['recovered of that, in production after turn 3'].split(' ')[0]}",
            "make bench-long",
        ),
        (
            "the same with as many right answers in place of the failures",
            f"the failures win in {turned['holdout: failures beat control']} seeds",
            "make bench-long",
        ),
        (
            "requests a second against a textbook FastAPI server, 1, 16, 64 connections",
            f"{', '.join(ratios)}; p99 with 64: {p99['ours']:.0f} against {p99['textbook']:,.0f} ms",
            "make bench BENCH=serving",
        ),
        ("ten promotions under load: failed requests", f"{swaps['failed']}", "make bench BENCH=serving"),
        (
            "training steps against the textbook PyTorch loop",
            f"{gains}; {min(ready, 1):.0%} of what the networks alone allow, the least of the four",
            "make bench BENCH=training",
        ),
        (
            f"`compact` against the speed record airbench94, two cores, {compact['images']:,} photographs: accuracy on "
            f"{compact['test_images']:,} others",
            f"{' and '.join(accuracies)}, in {share:.0%} of its time ({len(mine)} seeds)",
            "make bench-long BENCH_LONG=compact",
        ),
    ]
    lines = ["| what | measured | again by |", "|---|---|---|"]
    lines += [f"| {what} | {figure} | `{command}` |" for what, figure, command in rows]
    note = f"Two CPU cores, no GPU, other work on the machine; torch {serving['versions']['torch']}."
    return "\n".join([*lines, "", f"{note} Spread, machine and every row: `benchmarks/results/`."])


def _result(name: str) -> dict[str, Any]:
    return dict(files.read_json(RESULTS / f"{name}.json"))


if __name__ == "__main__":
    cli.main(main)
