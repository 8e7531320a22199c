"""Two trials at a time with a thread each, or one with two? The same sweep, its CPUs shared out in several ways.

    python benchmarks/concurrency.py --set "data.source=folder data.name=… data.path=…"
                                                             (make bench-long BENCH_LONG=concurrency, 10 minutes)

Random search of the laptop profile's space without early stopping: every way trains the same recipes for the same
epochs. Ways in turn, so that other work on the machine meets all of them; the time is that of `make sweep`'s own clock,
with Ray and its workers started.

Reads   the sections data, recipe and sweep of params.yaml
Writes  benchmarks/results/concurrency.json and its table in docs/training.md
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pages
import torch

from flywheel import cli, files
from flywheel.params import file as params_file
from sweep import run

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "concurrency.json"


def main() -> None:
    """Run the sweeps, a round after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="", help="overrides of params.yaml, such as data.source")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    cpus = os.cpu_count() or 1
    ways = {(at_a_time, threads) for at_a_time, threads in ((cpus, 1), (1, cpus), (1, 1))}
    walls: dict[tuple[int, int], list[float]] = {way: [] for way in sorted(ways, reverse=True)}
    with tempfile.TemporaryDirectory(prefix="fw-way-") as folder:
        base = (
            f"{arguments.set} paths.store={folder}/store paths.reports={folder}/reports tracking.wandb=disabled "
            f"sweep.trials={arguments.trials} sweep.epochs={arguments.epochs} sweep.searcher=random "
            "sweep.early_stopping=false"
        )
        run("data", base, "laptop")
        for number in range(arguments.rounds):
            for at_a_time, threads in walls:
                way = f"{base} sweep.max_concurrent_trials={at_a_time} sweep.cpus_per_trial={threads}"
                run("sweep", way, "laptop", "--force")
                receipt = params_file.load(ROOT / "params.yaml", "laptop", way).store / "receipts" / "sweep.json"
                walls[at_a_time, threads].append(files.read_json(receipt)["metrics"]["wall_s"])
                print(f"round {number + 1}: {at_a_time} at a time, {threads} threads: {walls[at_a_time, threads]}")
                files.write_json(RESULT, result(arguments, walls))
    written = files.read_json(RESULT)
    pages.write(ROOT / "docs" / "training.md", "concurrency", table(written))
    print(table(written))


def result(arguments: argparse.Namespace, walls: Mapping[tuple[int, int], list[float]]) -> dict[str, Any]:
    """Return what is written after each sweep."""
    return {
        "command": pages.command(),
        "trials": arguments.trials, "epochs": arguments.epochs,
        "machine": f"{os.cpu_count()} CPUs, load {os.getloadavg()[2]:.1f} over the last 15 minutes, its own included",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": [
            {"at_a_time": at_a_time, "threads": threads, "wall_s": found}
            for (at_a_time, threads), found in walls.items() if found
        ],
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = ["| trials at a time | threads each | runs | the sweep, s | of the first |", "|---|---|---|---|---|"]
    first = statistics.median(result["rows"][0]["wall_s"])
    for row in result["rows"]:
        walls = row["wall_s"]
        share = statistics.median(walls) / first
        lines.append(f"| {row['at_a_time']} | {row['threads']} | {len(walls)} | {pages.spread(walls)} | {share:.0%} |")
    note = (
        f"{result['trials']} trials of {result['epochs']} epochs, the same in every row; medians (least to most). "
        f"`{result['command']}`; {result['machine']}, torch {result['versions']['torch']}."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    cli.main(main)
