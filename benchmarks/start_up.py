"""How long a command takes before it does something useful: `--help`, a stage that is up to date, a stage's first work.

    python benchmarks/start_up.py [--rounds 3]                                  (make bench BENCH=start_up, 5 minutes)

A small demo is made in a temporary folder. Then, in turn: a bare start of Python, `--help` of every script, the stages
while they are up to date, and the stages with --force until their first useful work: data reads its source, sweep hands
the first trial to Tune (and that trial's first epoch begins), evaluate predicts, retrain trains. Of that time, what
imports and the start of Ray took; W&B (offline) is told by a thread that nobody waits for.

Writes  the entry `start_up` of reports/bench.json; with --publish also benchmarks/results/start_up.json and its table
        in docs/operate.md
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import json
import os
import platform
import runpy
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pages

from flywheel import cli, files

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "start_up.json"
UP_TO_DATE = ("data", "sweep", "evaluate", "status")
FIRST_WORK = {  # stage: module, and the function in it whose first call is the first useful work
    "data": ("flywheel.data.sources", "load"),
    "sweep": ("flywheel.sweep.tune_runner", "run"),
    "evaluate": ("flywheel.models.classifier", "Classifier.predict"),
    "retrain": ("flywheel.retraining.arms", "train"),
}
PARTS = {"ray": ("ray", "init")}


def main() -> None:
    """Time everything in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of everything (default: 3)")
    parser.add_argument("--publish", action="store_true", help="write the figures into the docs")
    parser.add_argument("--until", nargs=2, metavar=("SCRIPT", "SET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.until:
        until(*arguments.until)
        return
    scripts = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
    times: dict[str, list[float]] = {}
    firsts: dict[str, list[dict[str, float]]] = {name: [] for name in (*FIRST_WORK, "sweep, first epoch")}
    with tempfile.TemporaryDirectory(prefix="fw-start-") as folder:
        overrides = (
            f"paths.store={folder}/store paths.reports={folder}/reports tracking.wandb=offline sweep.trials=2 "
            "sweep.epochs=1 gate.floor_accuracy=0 retrain.min_failures=1 retrain.control=false retrain.epochs=1"
        )
        for name in ("data", "sweep", "evaluate"):
            script(name, overrides)
        served(overrides)
        for number in range(arguments.rounds):
            commands = {"python -c pass": ["-c", "pass"]}
            commands |= {f"{name} --help": [f"scripts/{name}.py", "--help"] for name in scripts}
            commands |= {f"{name}, up to date": script_words(name, overrides) for name in UP_TO_DATE}
            for name, words in commands.items():
                times.setdefault(name, []).append(seconds(words))
            for name in FIRST_WORK:
                firsts[name].append(first_work(name, overrides))
            firsts["sweep, first epoch"].append(first_epoch(f"{overrides} sweep.seed={number + 1}", Path(folder)))
            script("sweep", overrides)  # back to what the next round finds up to date
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
    helps = {name: statistics.median(found) for name, found in times.items() if name.endswith("--help")}
    slowest = max(helps, key=lambda name: helps[name])
    shown = {"python -c pass": times["python -c pass"], f"{slowest} (the slowest of {len(helps)})": times[slowest]}
    shown |= {name: found for name, found in times.items() if name.endswith("up to date")}
    result = {
        "command": pages.command(),
        "machine": f"{os.cpu_count()} CPUs, load {os.getloadavg()[2]:.1f} over the last 15 minutes, its own included",
        "versions": {"python": platform.python_version()},
        "n": arguments.rounds,
        "commands": {name: [round(value, 3) for value in found] for name, found in shown.items()},
        "first_work": firsts,
    }
    print(f"{table(result)}\n\nreports: {pages.add_to_report({'start_up': result})}")
    if arguments.publish:
        files.write_json(RESULT, result)
        pages.write(ROOT / "docs" / "operate.md", "start_up", table(result))


def script_words(name: str, overrides: str) -> list[str]:
    """Return the words after `python` that run a script on the demo."""
    return [f"scripts/{name}.py", "--profile", "demo", "--set", overrides]


def script(name: str, overrides: str, *more: str) -> None:
    """Run a script to its end. Raises CalledProcessError."""
    subprocess.run(
        [sys.executable, *script_words(name, overrides), *more], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )


def served(overrides: str) -> None:
    """Serve the model and publish its failures, so that there is something to retrain on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        overrides = f"{overrides} serve.port={free.getsockname()[1]}"
    script("serve", overrides)
    try:
        script("simulate", overrides)
    finally:
        script("stop", overrides)


def seconds(words: list[str]) -> float:
    """Return the wall time of one Python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def first_work(name: str, overrides: str) -> dict[str, float]:
    """Return the seconds until a stage's first useful work, and the parts of them."""
    done = subprocess.run(
        [sys.executable, __file__, "--until", name, overrides],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "STARTED": repr(time.time())},
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def until(name: str, overrides: str) -> None:
    """In a process of its own: run a script until its first useful work, print the seconds, and end."""
    spent = dict.fromkeys(("imports", *PARTS), 0.0)
    deep = False

    def timed(part: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal deep
            if deep or threading.current_thread() is not threading.main_thread():  # counted where it is
                return action(*args, **kwargs)
            started, deep = time.perf_counter(), True
            try:
                return action(*args, **kwargs)
            finally:
                deep = False
                spent[part] += time.perf_counter() - started
                arm()

        return run

    def stop(*_: object, **__: object) -> None:
        spent["all"] = time.time() - float(os.environ["STARTED"])
        print(json.dumps({part: round(value, 2) for part, value in spent.items()}), flush=True)
        if spent["ray"]:
            sys.modules["ray"].shutdown()
        os._exit(0)

    def arm() -> None:
        """Put the clocks into the modules that have been imported meanwhile."""
        for part, (module, function) in PARTS.items():
            loaded = sys.modules.get(module)
            if part not in armed and hasattr(loaded, function):
                armed.add(part)
                setattr(loaded, function, timed(part, getattr(loaded, function)))

    armed: set[str] = set()
    builtins.__import__ = timed("imports", builtins.__import__)
    module, place = FIRST_WORK[name]
    owner: Any = importlib.import_module(module)
    *outer, function = place.split(".")
    for one in outer:
        owner = getattr(owner, one)
    setattr(owner, function, stop)
    sys.argv = [*script_words(name, overrides), "--force"]
    runpy.run_path(sys.argv[0], run_name="__main__")


def first_epoch(overrides: str, folder: Path) -> dict[str, float]:
    """Return the seconds until the first epoch of a sweep began: its end less the time that its images took."""
    started = time.time()
    script("sweep", overrides)
    journal = max((folder / "store").glob("demo/journal/*.jsonl"), key=lambda path: path.stat().st_mtime)
    first = next(event for event in files.read_json_lines(journal) if event["event"] == "epoch")
    images = files.read_json(next((folder / "store").glob("demo/registry/**/dataset.json")))["splits"]["train"]
    took = images / first["metrics"]["images_per_s"]
    return {"all": round(datetime.fromisoformat(first["at"]).timestamp() - took - started, 2)}


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = ["| command | seconds |", "|---|---|"]
    for name, found in result["commands"].items():
        lines.append(f"| `{name}` | {pages.spread(found, '.2f')} |")
    lines += ["", "| until the first useful work | seconds | imports | start of Ray |"]
    lines += ["|---|---|---|---|"]
    for name, rows in result["first_work"].items():
        whole = [row["all"] for row in rows]
        parts = [
            f"{statistics.median(row[part] for row in rows):.1f}" if rows[0].get(part) else ""
            for part in ("imports", *PARTS)
        ]
        lines.append(f"| {name} | {pages.spread(whole, '.1f')} | {' | '.join(parts)} |")
    note = (
        f"W&B offline, told by a thread beside the work. Medians of {result['n']} rounds (least to most). "
        f"`{result['command']}`; {result['machine']}."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    cli.main(main)
