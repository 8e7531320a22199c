"""A retraining that is killed anywhere and started again: failures are neither lost nor used twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel import files
from flywheel.params import Params
from flywheel.registry import LocalRegistry, Registry, Version

ROOT = Path(__file__).parents[2]
OVERRIDES = "data.image_size=16 tracking.wandb=disabled retrain.control=false"
Collect = Callable[[Any], Version]

pytestmark = pytest.mark.long


def arguments(place: Path, extra: str) -> list[str]:
    paths = f"paths.store={place}/store paths.reports={place}/reports"
    return ["scripts/retrain.py", "--profile", "demo", "--set", f"{paths} {OVERRIDES} {extra}"]


def run(place: Path, extra: str = "retrain.epochs=2") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments(place, extra)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def start(place: Path, extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments(place, extra)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def run_until(place: Path, where: str, extra: str) -> None:
    """Run the script and kill its process, by SIGKILL, when it calls the function `where`."""
    module, name = where.rsplit(".", 1)
    probe = (
        f"import os, runpy, signal, sys, {module}\n"
        f"assert hasattr({module}, {name!r})\n{module}.{name} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"sys.argv = {arguments(place, extra)!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stdout + ended.stderr


def training(process: subprocess.Popen[str]) -> None:
    """Wait until a retraining has finished its first epoch."""
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 1 of" in line:
            return
    raise AssertionError("it ended before")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_ended_in_the_training_it_published_nothing_and_the_next_run_does_all(
    place: Path, registry: Registry, collect: Collect, failed: list[int], number: int, code: int
) -> None:
    collect(failed)
    process = start(place, "retrain.epochs=500")
    training(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors == ("interrupted: finished work is kept; run the same command again\n" if code == 130 else "")
    assert registry.versions("retrained-model") == []
    again = run(place)
    assert again.returncode == 0, again.stderr
    assert len(registry.versions("retrained-model")) == 1


def test_killed_before_the_gate_it_is_judged_by_the_next_run_without_training(
    place: Path, params: Params, registry: Registry, collect: Collect, failed: list[int]
) -> None:
    collect(failed)
    run_until(place, "flywheel.gate.promotion.judge", "retrain.epochs=1")
    (made,) = registry.versions("retrained-model")
    assert not (params.reports / "retrain.json").exists()
    again = run(place)
    assert "retrained-model:v0 was made by a run that ended before the gate; judging it now" in again.stdout
    assert "epoch" not in again.stdout
    assert registry.versions("retrained-model") == [made]
    report = files.read_json(params.reports / "retrain.json")
    assert (report["candidate"], report["decision"]) == (made.ref, "keep")
    assert len(report["epochs"]) == 1
    assert "nothing to do" in run(place).stdout


def test_killed_after_the_promotion_it_is_not_judged_again(
    place: Path, params: Params, registry: Registry, collect: Collect, failed: list[int]
) -> None:
    """Production was moved on by hand meanwhile; the next run completes the reports and leaves production alone."""
    collect(failed)
    (params.store / "audit.jsonl").unlink()
    parent = registry.resolve("model-1")
    registry.link(parent, params.registered_model, ("best",), reason="nothing is in production")
    run_until(place, "flywheel.retraining.plots.draw", "retrain.epochs=1 gate.floor_accuracy=0.1")
    (made,) = registry.versions("retrained-model")
    assert registry.aliases(params.registered_model)["production"] == made.ref
    registry.link(parent, params.registered_model, ("production",), reason="rolled back by hand")
    assert run(place, "gate.floor_accuracy=0.1").returncode == 0
    assert registry.aliases(params.registered_model)["production"] == parent.ref
    report = files.read_json(params.reports / "retrain.json")
    assert (report["decision"], report["promoted"]) == ("first", True)
    assert "nothing to do" in run(place).stdout


def test_a_second_retraining_at_once_exits_75_and_names_the_first(
    place: Path, collect: Collect, failed: list[int]
) -> None:
    collect(failed)
    process = start(place, "retrain.epochs=500")
    try:
        training(process)
        second = run(place)
        assert second.returncode == 75
        assert second.stderr == f"error: another run holds retrain (pid {process.pid}); wait for it to end\n"
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_killed_at_random_moments_the_failures_are_used_exactly_once(
    place: Path, collect: Collect, failed: list[int]
) -> None:
    """Five times from the same store: killed at a moment between its first import and its end, then run again."""
    collect(failed)
    draw = random.Random(0)

    def fresh(name: str) -> Path:
        shutil.copytree(place / "store", place / name / "store")
        return place / name

    started = time.monotonic()
    assert run(fresh("whole"), "retrain.epochs=1").returncode == 0
    duration_s = time.monotonic() - started
    kills = 0
    for turn in range(5):
        copy = fresh(f"turn-{turn}")
        registry, store = LocalRegistry(copy / "store" / "demo"), copy / "store" / "demo"
        process = start(copy, "retrain.epochs=1")
        time.sleep(draw.uniform(0.3, 1.0) * duration_s)
        kills += process.poll() is None
        process.kill()
        process.communicate()
        assert len(registry.versions("retrained-model")) <= 1
        assert registry.damaged() == []
        assert run(copy, "retrain.epochs=1").returncode == 0
        (made,) = registry.versions("retrained-model")
        registry.verify(made)
        assert files.read_json(store / "receipts" / "retrain.json")["outputs"] == [made.ref]
        assert files.read_json(copy / "reports" / "demo" / "retrain.json")["candidate"] == made.ref
        assert registry.aliases("digits-classifier")["candidate"] == made.ref
        assert "was used already" in run(copy).stdout
    assert kills >= 2
