"""A sweep that is killed, interrupted or started twice: it can be resumed, and no process is left."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import processes
import psutil
import pytest
import scripts
from waiting import wait_until
from wandb_double import WandbDouble

from flywheel import files
from flywheel.registry import Registry
from flywheel.sweep.journal import Journal, SweepRecord
from flywheel.sweep.report import TrialReport

COMMON = "data.image_size=16 sweep.space.architecture=compact sweep.checkpoint_interval_s=0"
# Long enough: the signal comes when the first trials have started.
LENGTHY = f"{COMMON} sweep.trials=6 sweep.epochs=60 sweep.early_stopping=false"

pytestmark = pytest.mark.long


def run(folder: Path, script: str, overrides: str) -> subprocess.CompletedProcess[str]:
    return scripts.run(folder, script, overrides, FLYWHEEL_TEST_FOLDER=str(folder))


def journal_path(folder: Path) -> Path:
    (path,) = (folder / "store" / "demo" / "journal").glob("*.jsonl")
    return path


def journal(folder: Path) -> SweepRecord:
    return Journal(journal_path(folder)).read()


@contextlib.contextmanager
def sweeping(
    folder: Path, overrides: str = LENGTHY, epochs: int = 1, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """Start a sweep and yield when its journal has so many more epochs; kill it at the end if it still runs."""
    journals = folder / "store" / "demo" / "journal"

    def count() -> int:
        return sum(path.read_bytes().count(b'"event": "epoch"') for path in journals.glob("*.jsonl"))

    assert run(folder, "data", overrides).returncode == 0
    before = count()
    variables |= {"PYTHONUNBUFFERED": "1", "FLYWHEEL_TEST_FOLDER": str(folder)}
    process = scripts.start(folder, "sweep", overrides, **variables)
    with processes.once(process, lambda: count() >= before + epochs, timeout_s=300):
        yield process


def wait_for_none_left(folder: Path, seconds: float) -> None:
    processes.wait_for_none_left(f"FLYWHEEL_TEST_FOLDER={folder}", seconds)


def comparable(record: SweepRecord) -> list[dict[str, object]]:
    """Trials without what differs from run to run."""
    return [TrialReport.of(trial).model_dump() | {"id": None, "time_s": None} for trial in record.trials]


def test_a_sweep_killed_three_times_ends_like_one_that_was_not(tmp_path: Path, random: np.random.Generator) -> None:
    """Twelve trials, one at a time so that the order is the same: same trials, same epochs, same best to the byte.

    Three kill -9 at random moments; before the last start the directory is moved.
    """
    overrides = f"{COMMON} sweep.trials=12 sweep.epochs=4 sweep.max_concurrent_trials=1"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole, "data", overrides).returncode == 0
    assert run(whole, "sweep", overrides).returncode == 0
    for kill in range(3):
        with sweeping(cut, overrides, epochs=int(random.integers(1, 9))) as process:
            time.sleep(float(random.random()) * 0.5)
            process.kill()
        if kill == 1:
            wait_for_none_left(cut, 90)
            shutil.move(cut, tmp_path / "moved")
            cut = tmp_path / "moved"
    ended = journal(cut).ended
    last = run(cut, "sweep", overrides)
    assert last.returncode == 0, last.stderr
    assert f"goes on: {ended} of 12 trials ended" in last.stdout
    assert comparable(journal(cut)) == comparable(journal(whole))
    assert len(journal(cut).trials) == 12
    models = [Registry(folder / "store" / "demo").resolve("digits-classifier:best") for folder in (whole, cut)]
    weights = [model.files["model.safetensors"].sha256 for model in models]
    assert weights[0] == weights[1]
    assert not (cut / "store" / "demo" / "trials" / journal_path(cut).stem).exists()
    # No trial that ended ran again, and one that went on did not begin again.
    seen: dict[str, int] = {}
    for event in files.read_json_lines(journal_path(cut)):
        if event["event"] == "epoch":
            assert event["epoch"] == seen.get(event["trial"], 0) + 1
            seen[event["trial"]] = event["epoch"]
    wait_for_none_left(cut, 90)


def test_a_killed_sweep_with_concurrent_trials_ends_with_exactly_its_trials_and_can_be_extended(
    tmp_path: Path, random: np.random.Generator
) -> None:
    overrides = f"{COMMON} sweep.trials=6 sweep.epochs=3 sweep.keep_checkpoints=2"
    for _ in range(2):
        with sweeping(tmp_path, overrides, epochs=int(random.integers(1, 5))) as process:
            process.kill()
    assert re.search(r"^sweep +to run", run(tmp_path, "status", overrides).stdout, re.MULTILINE)
    assert run(tmp_path, "sweep", overrides).returncode == 0
    six = journal(tmp_path).trials
    assert sorted(trial.number for trial in six) == list(range(6))
    more = run(tmp_path, "sweep", f"{overrides} sweep.trials=9")
    assert more.returncode == 0, more.stderr
    assert "9 trials are asked for, 6 were made" in more.stdout
    nine = journal(tmp_path).trials
    assert nine[:6] == six
    assert len(nine) == 9
    assert all(trial.bayesian for trial in nine[6:])
    models = [name for name in Registry(tmp_path / "store" / "demo").collections() if name.startswith("model-")]
    best = sorted(nine, key=lambda trial: (-(trial.accuracy or 0), trial.number))[:2]
    assert {f"model-{trial.id}" for trial in best} <= set(models)
    assert "up to date" in run(tmp_path, "sweep", f"{overrides} sweep.trials=9").stdout


def test_other_params_begin_a_new_sweep_and_the_old_one_is_named(tmp_path: Path) -> None:
    with sweeping(tmp_path) as process:
        process.kill()
    former = journal_path(tmp_path).stem
    quick = f"{COMMON} sweep.trials=2 sweep.epochs=1"
    again = run(tmp_path, "sweep", quick)
    assert again.returncode == 0, again.stderr
    assert re.search(rf"{former} is left as it is, after 0 of \d trials", again.stdout)
    assert "early_stopping changed: False -> True" in again.stdout
    assert len([n for n in Registry(tmp_path / "store" / "demo").collections() if n.startswith("model-")]) == 1
    wait_for_none_left(tmp_path, 90)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_an_interrupted_sweep_leaves_no_process_and_can_be_resumed(tmp_path: Path, number: signal.Signals) -> None:
    with sweeping(tmp_path) as process:
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted: finished work is kept; run the same command again\n"
    assert "sweep: interrupted after 0 of 6 trials; the same command goes on from there" in said
    wait_for_none_left(tmp_path, 30)
    status = run(tmp_path, "status", LENGTHY).stdout
    assert re.search(r"^sweep +to run +sweep-\S+ goes on, 0 of 6 trials ended$", status, re.MULTILINE), status
    with sweeping(tmp_path) as process:
        process.send_signal(number)
        assert "goes on: 0 of 6 trials ended, 2 go on" in process.communicate(timeout=60)[0]
    runs = [trial.runs for trial in journal(tmp_path).trials]
    assert len(runs) == 2  # those of the first start; the second may have come too early for one of them to run
    assert max(runs) == 2


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_ends_a_sweep_even_if_wandb_hangs(tmp_path: Path, double: WandbDouble, signals: int) -> None:
    """W&B's process is stopped (SIGSTOP), so no call to it returns; the grace period or a second signal ends it all."""
    with sweeping(tmp_path, f"{LENGTHY} tracking.wandb=auto", **double.environment) as process:
        wait_until(lambda: {run.fields.get("jobType") for run in double.runs("flywheel-demo")} == {"sweep", "trial"})
        (core,) = [one for one in psutil.Process(process.pid).children() if "wandb-core" in one.name()]
        core.suspend()
        process.send_signal(signal.SIGINT)
        if signals == 2:
            time.sleep(1.5)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted: finished work is kept; run the same command again\n"
    wait_for_none_left(tmp_path, 5)


def test_a_time_budget_publishes_the_best_so_far_and_a_larger_one_continues(tmp_path: Path) -> None:
    """The budget lies within the first trials, so the best is one that has not ended."""
    with sweeping(tmp_path, epochs=3) as process:
        process.kill()  # now the time that was spent is known
    budget = int(journal(tmp_path).elapsed_s) + 45
    first = run(tmp_path, "sweep", f"{LENGTHY} sweep.time_budget_s={budget}")
    assert first.returncode == 0, first.stderr
    assert "the time budget of" in first.stdout
    report = json.loads((tmp_path / "reports/demo/sweep.json").read_text())
    assert {trial["status"] for trial in report["trials"]} >= {"unfinished"}
    best = max(report["trials"], key=lambda trial: (trial["accuracy"] or 0, -trial["number"]))
    assert report["best"]["trial"] == best["id"]
    same = run(tmp_path, "sweep", f"{LENGTHY} sweep.time_budget_s={budget}")
    assert "up to date" in same.stdout
    with sweeping(tmp_path, f"{LENGTHY} sweep.time_budget_s={budget + 10_000}") as process:
        process.send_signal(signal.SIGTERM)
        assert "goes on: 0 of 6 trials ended" in process.communicate(timeout=60)[0]
    after = {trial.id: len(trial.epochs) for trial in journal(tmp_path).trials}
    assert all(after[trial["id"]] >= trial["epochs"] for trial in report["trials"])
    assert sum(after.values()) > sum(trial["epochs"] for trial in report["trials"])
    wait_for_none_left(tmp_path, 30)


def test_lost_checkpoints_cost_only_time(tmp_path: Path) -> None:
    """After make clean running trials start anew, and a best trial without weights is trained again."""
    overrides = f"{COMMON} sweep.trials=3 sweep.epochs=4 sweep.early_stopping=false sweep.max_concurrent_trials=1"
    with sweeping(tmp_path, overrides, epochs=10) as process:
        process.kill()
    wait_for_none_left(tmp_path, 90)
    before = journal(tmp_path).trials
    assert [trial.status for trial in before] == ["finished", "finished", "running"]
    assert run(tmp_path, "clean", overrides).returncode == 0
    again = run(tmp_path, "sweep", overrides)
    assert again.returncode == 0, again.stderr
    trials = journal(tmp_path).trials
    assert [len(trial.epochs) for trial in trials] == [4, 4, 4]
    assert trials[:2] == before[:2]
    best = max(trials, key=lambda trial: (trial.accuracy or 0, -trial.number))
    assert ("is trained again from its record" in again.stdout) == (best.number < 2)
