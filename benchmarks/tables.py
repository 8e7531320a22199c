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

import compact
import harness
import loop

from flywheel import cli, files

PAGES = [harness.ROOT / "README.md", *sorted((harness.ROOT / "docs").glob("*.md"))]


def main() -> None:
    """Write the tables into every page."""
    for page in PAGES:
        files.write_text(page, updated(page))


def updated(page: Path) -> str:
    """Return the text of a page with each of its tables made from the result file of the same name, if it is there."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"^<!-- (\w[\w-]*) -->$", text, re.M):
        if name == "headlines" or (harness.RESULTS / f"{name}.json").exists():
            text = harness.with_table(text, name, headlines() if name == "headlines" else table(name))
    return text


def table(name: str) -> str:
    """Return the table of a result file, made by the benchmark that wrote it: `loop` makes that of `loop_demo`."""
    stems = [path.stem for path in Path(__file__).parent.glob("*.py")]
    benchmark = max((stem for stem in stems if f"{name}_".startswith(f"{stem}_")), key=len)
    return str(importlib.import_module(benchmark).table(_result(name)))


def headlines() -> str:
    """Return the table of README.md: the claim, the figure, and the command that measures it again."""
    demo, serving, training, record = (_result(name) for name in ("loop_demo", "serving", "training", "compact"))
    gain, p99 = loop.headline(demo), serving["serving"][-1]["p99_ms"]
    rates = ", ".join(f"{row['ratio']:.1f}x" for row in serving["serving"])
    speedups = ", ".join(f"{row['ratio']:.1f}x ({row['architecture']})" for row in training["training"])
    share = min(row["share_of_ready"] for row in training["training"])
    bare = (
        f"{'as fast as' if share >= 1 else f'at least {share:.0%} of the speed of'} the bare network on a fixed batch"
    )
    by_network, ratios = compact.by_network(record)
    means = {
        name: f"{statistics.mean(100 * row['accuracy'] for row in rows):.1f}%" for name, rows in by_network.items()
    }
    rows = {
        f"Drift lowers accuracy on the digits; one retraining on all {gain['labels']} labelled production images wins "
        f"back {gain['all']} of that loss (median of {gain['seeds']} seeds, images never trained on)": (
            f"quartiles {gain['quartiles']}; after three retrainings on a third of the traffic each "
            f"{gain['after the turns']}", "make bench-long"
        ),
        f"the original pipeline, which trains on the failures alone ({gain['failures']} images; to find them, all "
        f"{gain['labels']} are labelled)": (
            f"{gain['by failures']}; all labels are better in {gain['wins against failures']} seeds", "make bench-long"
        ),
        f"as many random labelled images as there are failures ({gain['failures']} labels), in as many steps": (
            f"{gain['by random']}; all labels are better in {gain['wins against random']} seeds", "make bench-long"
        ),
        "requests per second against a textbook FastAPI server with 1, 16, 64 connections": (
            f"{rates}; p99 with 64: {p99['ours']:.0f} against {p99['textbook']:,.0f} ms", "make bench BENCH=serving"
        ),
        "failed requests during ten promotions under load": (
            serving["serving_swaps"]["swapping"]["failed"], "make bench BENCH=serving"
        ),
        "training steps against the textbook PyTorch loop, for each of the four networks": (
            f"{speedups}; {bare}", "make bench BENCH=training"
        ),
        f"`compact` against the speed record airbench94, {record['images']:,} training images: accuracy on "
        f"{record['test_images']:,} others": (
            f"{means['compact']} and {means['airbench94']}, in {statistics.median(ratios):.0%} of its time "
            f"({len(ratios)} seeds)", "make bench-long BENCH_LONG=compact"
        ),
    }  # fmt: skip
    text = harness.markdown(
        ("claim", "measured", "command"), [(claim, figure, f"`{line}`") for claim, (figure, line) in rows.items()]
    )
    torch = serving["versions"]["torch"]
    return (
        f"{text}\n\nTwo CPU cores, no GPU, other load on the machine; torch {torch}. Spread, machine and all rows: "
        "`benchmarks/results/`."
    )


def _result(name: str) -> dict[str, Any]:
    return dict(files.read_json(harness.RESULTS / f"{name}.json"))


if __name__ == "__main__":
    cli.main(main)
