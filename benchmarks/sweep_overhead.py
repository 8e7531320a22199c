"""What a sweep costs beside its training: trials that do nothing, through all that a real sweep uses but W&B.

    python benchmarks/sweep_overhead.py [--trials 50 200]        (make bench BENCH=sweep_overhead)

Each trial reports three epochs at once and writes no weights, so what is left is ours: proposing (TPE), journal (a line
an event, on disk when it returns), Ray Tune, actors that are reused. `replay` opens the finished journal again, as an
interrupted sweep does. `propose` and `journal` are parts of `wall`.

Reads   params.yaml
Writes  the entry `sweep_overhead` of reports/bench.json; with --publish also benchmarks/results/sweep_overhead.json and
        its table in docs/scaling.md
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pages

from flywheel import cli, files
from flywheel.params import file as params_file
from flywheel.registry import LocalRegistry
from flywheel.sweep import cluster, tune_runner
from flywheel.sweep.checkpoints import Place
from flywheel.sweep.journal import Journal
from flywheel.sweep.reporting import Recorder
from flywheel.sweep.state import Campaign
from flywheel.tracking.runs import Tracker

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sweep_overhead.json"
EPOCHS = 3


def main() -> None:
    """Run the sweeps and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[50, 200], help="of each sweep (default: 50 200)")
    parser.add_argument("--publish", action="store_true", help="write the figures into the docs")
    arguments = parser.parse_args()
    rows = []
    for trials in arguments.trials:
        rows.append(measure(trials))
        print(rows[-1], flush=True)
    result = {
        "command": pages.command(),
        "n": 1,
        "machine": f"{os.cpu_count()} CPUs, load {os.getloadavg()[2]:.1f} over the last 15 minutes, its own included",
        "versions": {"python": platform.python_version(), "ray": metadata.version("ray")},
        "rows": rows,
    }
    print(f"\n{table(result)}\n\nreports: {pages.add_to_report({'sweep_overhead': result})}")
    if arguments.publish:
        files.write_json(RESULT, result)
        pages.write(ROOT / "docs" / "scaling.md", "sweep_overhead", table(result))


def measure(trials: int) -> dict[str, Any]:
    """Return the seconds of a sweep of so many trials that do nothing, and of its parts."""
    with tempfile.TemporaryDirectory() as directory:
        params = params_file.load(
            ROOT / "params.yaml",
            "demo",
            f"paths.store={directory}/store sweep.trials={trials} sweep.epochs={EPOCHS} tracking.wandb=disabled",
        )
        journal, place = Journal(Path(directory) / "sweep-1.jsonl"), Place(f"{directory}/trials")
        campaign = Campaign(params, journal)
        parts: dict[str, float] = {}
        campaign.searcher.propose = timed(campaign.searcher.propose, "propose", parts)  # type: ignore[method-assign]
        journal._append = timed(journal._append, "journal", parts)  # type: ignore[method-assign]
        tracker = Tracker(params, LocalRegistry(params.store))
        recorder = Recorder(params, campaign, place, tracker)
        ended, ended_at = recorder.ended, list[float]()
        recorder.ended = lambda trial: ended_at.append(time.monotonic()) or ended(trial)  # type: ignore[method-assign, func-returns-value]
        with cluster.connected():
            slots = cluster.Slots(params.sweep)
            started = time.monotonic()
            assert tune_runner.run(params, {}, campaign, place, slots, recorder, function=nothing)
            wall_s = time.monotonic() - started
        first = ended_at[0] - started
        clock = time.monotonic()
        Campaign(params, Journal(journal.path))
        return {
            "trials": trials,
            "at_a_time": slots.resources.concurrent,
            "wall_s": round(wall_s, 1),
            "first_trial_s": round(first, 1),
            "s_a_trial_after_the_first": round((wall_s - first) / (trials - 1), 3),
            "propose_s": round(parts["propose"], 2),
            "journal_s": round(parts["journal"], 2),
            "replay_s": round(time.monotonic() - clock, 2),
            "journal_bytes": journal.path.stat().st_size,
        }


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = [
        "| trials | whole sweep | first trial ended after | a trial after that | proposing | journal | read again |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        after = f"{row['s_a_trial_after_the_first']:.3f} s"
        parts = [f"{row[part]:.2f} s" for part in ("propose_s", "journal_s", "replay_s")]
        lines.append(
            f"| {row['trials']} | {row['wall_s']} s | {row['first_trial_s']} s | {after} | {' | '.join(parts)} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([*lines, "", f"n = {result['n']} each. `{result['command']}`; {result['machine']}; {versions}."])


def timed(action: Callable[..., Any], name: str, parts: dict[str, float]) -> Callable[..., Any]:
    """Return the action, its seconds added up under a name."""

    def run(*args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        try:
            return action(*args, **kwargs)
        finally:
            parts[name] = parts.get(name, 0.0) + time.monotonic() - started

    return run


def nothing(config: Mapping[str, Any], **_: object) -> None:
    """A trial that has its epochs at once."""
    from ray import tune

    for epoch in range(1, EPOCHS + 1):
        accuracy = config["recipe"]["learning_rate"] * epoch
        losses = {"train_loss": 1.0, "loss": 1.0, "learning_rate": 0.1, "images_per_s": 1.0}
        machine = {"device": "cpu", "precision": "float32", "threads": 1}
        tune.report({"epoch": epoch, "accuracy": accuracy, **losses, "machine": machine, "node": "bench"})


if __name__ == "__main__":
    cli.main(main)
