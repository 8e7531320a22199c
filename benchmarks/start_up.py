"""Seconds until a command is useful: `--help`, a stage that is up to date, and the first work of a stage.

    python benchmarks/start_up.py [--rounds 3]                                  (make bench BENCH=start_up, 5 minutes)

Runs a small demo in a temporary folder, then alternates: a bare start of Python, `--help` of every script, the stages
while they are up to date, and the stages with --force until their first useful work: data reads its source, sweep hands
the first trial to Tune (and that trial's first epoch starts), evaluate predicts, retrain trains. W&B is offline; a
background thread talks to it.

Writes  reports/bench.json; with --publish also benchmarks/results/start_up.json and its tables in docs/operate.md
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import harness
from first_work import FIRST_WORK

from flywheel import cli, files

UP_TO_DATE = ("data", "sweep", "evaluate", "status")


def main() -> None:
    """Time all commands and write the table."""
    options = harness.options(__doc__, rounds=(3, "measurements of each command"), publish=harness.PUBLISH)
    times: dict[str, list[float]] = {}
    firsts: dict[str, list[float]] = {name: [] for name in (*FIRST_WORK, "sweep", "sweep, first epoch")}
    with tempfile.TemporaryDirectory(prefix="fw-start-") as folder:
        overrides = (
            f"{harness.scratch(folder)} tracking.wandb=offline sweep.trials=2 sweep.epochs=1 gate.floor_accuracy=0 "
            "gate.allow_unlearned_classes=true "
            "retrain.min_failures=1 retrain.control=false retrain.epochs=1"
        )
        commands = {"python -c pass": ["-c", "pass"]}
        for path in sorted((harness.ROOT / "scripts").glob("*.py")):
            commands[f"{path.stem} --help"] = [f"scripts/{path.name}", "--help"]
        for name in UP_TO_DATE:
            commands[f"{name}, up to date"] = [f"scripts/{name}.py", "--profile", "demo", "--set", overrides]
        for name in ("data", "sweep", "evaluate"):
            harness.script(name, "demo", overrides, quiet=True)
        publish_failures(overrides)
        for number in range(options.rounds):
            for name, words in commands.items():
                times.setdefault(name, []).append(seconds(words))
            for name in FIRST_WORK:
                firsts[name].append(first_work(name, overrides))
            first_trial, first_epoch = sweep(f"{overrides} sweep.seed={number + 1}", Path(folder))
            firsts["sweep"].append(first_trial)
            firsts["sweep, first epoch"].append(first_epoch)
            harness.script("sweep", "demo", overrides, quiet=True)  # so that it is up to date in the next round
            print(f"round {number + 1} of {options.rounds}", flush=True)
    helps = {name: statistics.median(found) for name, found in times.items() if name.endswith("--help")}
    slowest = max(helps, key=lambda name: helps[name])
    shown = {"python -c pass": times["python -c pass"], f"{slowest} (the slowest of {len(helps)})": times[slowest]}
    shown |= {name: found for name, found in times.items() if name.endswith("up to date")}
    result = {
        **harness.stamp(),
        "n": options.rounds,
        "commands": {name: [round(value, 3) for value in found] for name, found in shown.items()},
        "first_work": firsts,
    }
    harness.publish("start_up", "operate.md", result, table, commit=options.publish)


def publish_failures(overrides: str) -> None:
    """Serve the model and publish its failures, for the retraining."""
    overrides = f"{overrides} serve.port={harness.free_port()}"
    with harness.serving("demo", overrides):
        harness.script("simulate", "demo", overrides, quiet=True)


def seconds(words: list[str]) -> float:
    """Return the wall time of one Python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=harness.ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def first_work(name: str, overrides: str) -> float:
    """Return the seconds until a stage's first useful work."""
    done = subprocess.run(
        [sys.executable, "benchmarks/first_work.py", name, overrides],
        cwd=harness.ROOT, check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "STARTED": repr(time.time())},
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def sweep(overrides: str, folder: Path) -> tuple[float, float]:
    """Return the seconds until a sweep hands its first trial to Tune, and until its first epoch starts.

    The epoch starts at its end minus the time its images took.
    """
    started = time.time()
    harness.script("sweep", "demo", overrides, quiet=True)
    journal = max((folder / "store").glob("demo/journal/*.jsonl"), key=lambda path: path.stat().st_mtime)
    events = list(files.read_json_lines(journal))
    start, epoch = (next(event for event in events if event["event"] == kind) for kind in ("start", "epoch"))
    images = files.read_json(next((folder / "store").glob("demo/registry/**/dataset.json")))["splits"]["train"]
    start_at, epoch_at = (datetime.fromisoformat(event["at"]).timestamp() for event in (start, epoch))
    epoch_s = images / epoch["metrics"]["images_per_s"]
    return round(start_at - started, 2), round(epoch_at - epoch_s - started, 2)


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    commands = [(f"`{name}`", harness.spread(found, ".2f")) for name, found in result["commands"].items()]
    stages = [(name, harness.spread(found, ".1f")) for name, found in result["first_work"].items()]
    tables = (
        harness.markdown(("command", "seconds"), commands),
        harness.markdown(("until the first useful work of", "seconds"), stages),
    )
    text = f"W&B offline. Medians of {result['n']} rounds (lowest to highest)."
    return "\n\n".join(tables) + harness.note(result, text)


if __name__ == "__main__":
    cli.main(main)
