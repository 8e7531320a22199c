"""What does a sweep cost besides training? Run trials that do nothing through a real sweep, without W&B.

    python benchmarks/sweep_overhead.py [--trials 50 200]        (make bench BENCH=sweep_overhead)

Each trial reports three epochs at once and writes no weights. What remains is proposing (TPE), the journal (one line
per event, synced to disk), Ray Tune, and reused actors. `propose` and `journal` are parts of the wall time; `replay`
rebuilds the state from the finished journal, as resuming a sweep does.

Reads   params.yaml
Writes  reports/bench.json; with --publish benchmarks/results/sweep_overhead.json and its table in docs/scaling.md
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import harness

from flywheel import cli, files
from flywheel.registry import Registry
from flywheel.sweep import cluster, tune_runner
from flywheel.sweep.checkpoints import CheckpointStore
from flywheel.sweep.journal import Journal
from flywheel.sweep.progress import Recorder
from flywheel.sweep.state import SweepState
from flywheel.tracking.runs import Tracker

EPOCHS = 3


def main() -> None:
    """Run the sweeps and write the table."""
    options = harness.options(__doc__, trials=([50, 200], "trials of each sweep"), publish=harness.PUBLISH)
    if min(options.trials) < 2:
        sys.exit("error: --trials: the time of a trial after the first needs at least 2")
    rows = []
    for trials in options.trials:
        rows.append(measure(trials))
        print(rows[-1], flush=True)
    result = {**harness.stamp("ray"), "rows": rows}
    harness.publish("sweep_overhead", "scaling.md", result, table, commit=options.publish)


def measure(trials: int) -> dict[str, Any]:
    """Return the seconds of a sweep of trials that do nothing, and of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        params = harness.params("demo", f"{harness.scratch(folder)} sweep.trials={trials} sweep.epochs={EPOCHS}")
        journal = Journal(Path(folder) / "sweep-1.jsonl")
        state = SweepState(params, journal)
        parts: dict[str, float] = {}
        state.searcher.propose = timed(state.searcher.propose, "propose", parts)  # type: ignore[method-assign]
        journal.append = timed(journal.append, "journal", parts)  # type: ignore[method-assign]
        recorder = Recorder(state, CheckpointStore(f"{folder}/trials"), Tracker(params, Registry(params.store)))
        with cluster.connected():
            slots = cluster.Slots(params.sweep)
            started_at, started = time.time(), time.monotonic()
            assert tune_runner.run(state, {}, recorder, slots, function=train_nothing)
            wall_s = time.monotonic() - started
        end = next(e for e in files.read_json_lines(journal.path) if e["event"] in ("finished", "stopped"))
        first_s = datetime.fromisoformat(end["at"]).timestamp() - started_at
        started = time.monotonic()
        SweepState(params, Journal(journal.path))
        return {
            "trials": trials,
            "at_a_time": slots.resources.concurrent,
            "wall_s": round(wall_s, 1),
            "first_trial_s": round(first_s, 1),
            "s_a_trial_after_the_first": round((wall_s - first_s) / (trials - 1), 3),
            "propose_s": round(parts["propose"], 2),
            "journal_s": round(parts["journal"], 2),
            "replay_s": round(time.monotonic() - started, 2),
            "journal_bytes": journal.path.stat().st_size,
        }


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    rows = [
        (
            row["trials"],
            f"{row['wall_s']} s",
            f"{row['first_trial_s']} s",
            f"{row['s_a_trial_after_the_first']:.3f} s",
            *(f"{row[part]:.2f} s" for part in ("propose_s", "journal_s", "replay_s")),
        )
        for row in result["rows"]
    ]
    heads = ("trials", "total", "until the first trial ends", "per trial after that", "proposing", "journal", "replay")
    return harness.markdown(heads, rows) + harness.note(result, "One sweep each.")


def timed(action: Callable[..., Any], name: str, parts: dict[str, float]) -> Callable[..., Any]:
    """Return the action with its seconds added to a part."""

    def run(*args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        try:
            return action(*args, **kwargs)
        finally:
            parts[name] = parts.get(name, 0.0) + time.monotonic() - started

    return run


def train_nothing(config: Mapping[str, Any], **_: object) -> None:
    """Report all epochs of a trial at once."""
    from ray import tune

    for epoch in range(1, EPOCHS + 1):
        accuracy = config["recipe"]["learning_rate"] * epoch
        losses = {"train_loss": 1.0, "loss": 1.0, "learning_rate": 0.1, "images_per_s": 1.0}
        machine = {"device": "cpu", "precision": "float32", "threads": 1}
        tune.report({"epoch": epoch, "accuracy": accuracy, **losses, "machine": machine, "node": "bench"})


if __name__ == "__main__":
    cli.main(main)
