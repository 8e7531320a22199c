"""How should trials share the CPUs? Time the same sweep with different numbers of trials at a time and threads each.

    python benchmarks/concurrency.py --set "data.source=folder data.name=… data.path=…"
                                                             (make bench-long BENCH_LONG=concurrency, 10 minutes)

Random search of the laptop profile's space without early stopping: every setting trains the same recipes for the same
epochs. The settings alternate, so that other load on the machine affects all of them. The time is the wall time in the
receipt of `make sweep`, including the start of Ray and its workers.

Reads   the sections data, recipe and sweep of params.yaml
Writes  benchmarks/results/concurrency.json and its table in docs/training.md
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping
from typing import Any

import harness

from flywheel import cli, files


def main() -> None:
    """Run the sweeps and write the table."""
    options = harness.options(
        __doc__,
        set=harness.SET,
        rounds=(3, "sweeps of each setting"),
        trials=(4, "trials of a sweep"),
        epochs=(2, "epochs of a trial"),
    )
    cpus = os.cpu_count() or 1
    walls: dict[tuple[int, int], list[float]] = {
        setting: [] for setting in sorted({(cpus, 1), (1, cpus), (1, 1)}, reverse=True)
    }
    with tempfile.TemporaryDirectory(prefix="fw-concurrency-") as folder:
        base = (
            f"{options.set} {harness.scratch(folder)} sweep.trials={options.trials} sweep.epochs={options.epochs} "
            "sweep.searcher=random sweep.early_stopping=false"
        )
        harness.script("data", "laptop", base)
        for number in range(options.rounds):
            for (at_a_time, threads), found in walls.items():
                overrides = f"{base} sweep.max_concurrent_trials={at_a_time} sweep.cpus_per_trial={threads}"
                harness.script("sweep", "laptop", overrides, "--force")
                receipt = harness.params("laptop", overrides).store / "receipts" / "sweep.json"
                found.append(files.read_json(receipt)["metrics"]["wall_s"])
                print(f"round {number + 1}: {at_a_time} at a time, {threads} threads: {found}", flush=True)
    result = {
        **harness.stamp("torch"), "trials": options.trials, "epochs": options.epochs,
        "rows": [{"at_a_time": n, "threads": threads, "wall_s": found} for (n, threads), found in walls.items()],
    }  # fmt: skip
    harness.publish("concurrency", "training.md", result, table)


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    first = statistics.median(result["rows"][0]["wall_s"])
    rows = []
    for row in result["rows"]:
        walls = row["wall_s"]
        share = f"{statistics.median(walls) / first:.0%}"
        rows.append((row["at_a_time"], row["threads"], len(walls), harness.spread(walls), share))
    heads = ("trials at a time", "threads per trial", "runs", "wall time, s", "relative to the first row")
    return harness.markdown(heads, rows) + harness.note(
        result,
        f"{result['trials']} trials of {result['epochs']} epochs, the same in every row; medians (lowest to highest).",
    )


if __name__ == "__main__":
    cli.main(main)
