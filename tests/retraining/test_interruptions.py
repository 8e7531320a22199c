"""A retraining that is killed anywhere and started again: failures are neither lost nor used twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scripts

from flywheel import files
from flywheel.commands import status
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.tracking import run_files

ROOT = Path(__file__).parents[2]
OVERRIDES = "data.image_size=8 tracking.wandb=disabled retrain.control=false"
Collect = Callable[[Any], Version]


def run(root: Path, extra: str = "retrain.epochs=2") -> subprocess.CompletedProcess[str]:
    return scripts.run(root, "retrain", f"{OVERRIDES} {extra}")


def run_until(root: Path, where: str, extra: str, number: int = signal.SIGKILL) -> subprocess.CompletedProcess[str]:
    """Run the script and send its process a signal when it calls the function `where`."""
    module, name = where.rsplit(".", 1)
    probe = (
        f"import os, runpy, signal, sys, {module}\n"
        f"assert hasattr({module}, {name!r})\n{module}.{name} = lambda *a, **k: os.kill(os.getpid(), {int(number)})\n"
        f"sys.argv = {scripts.command(root, 'retrain', f'{OVERRIDES} {extra}')[1:]!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=300)


def training(process: subprocess.Popen[str]) -> None:
    """Wait until a retraining has finished its first epoch."""
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 1 of" in line:
            return
    raise AssertionError("it ended before")


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_ended_in_the_training_it_published_nothing_and_the_next_run_does_all(
    root: Path, registry: Registry, collect: Collect, failed: list[int], number: int, code: int
) -> None:
    collect(failed)
    process = scripts.start(root, "retrain", f"{OVERRIDES} retrain.epochs=500", PYTHONUNBUFFERED="1")
    training(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors == ("interrupted: finished work is kept; run the same command again\n" if code == 130 else "")
    assert registry.versions("retrained-model") == []
    again = run(root)
    assert again.returncode == 0, again.stderr
    assert len(registry.versions("retrained-model")) == 1


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 130, "interrupted: finished work is kept; run the same command again\n"),
        pytest.param(signal.SIGKILL, -9, "", marks=pytest.mark.long),
    ],
)
def test_ended_at_the_gate_the_published_candidate_is_judged_by_the_next_run_without_training(
    root: Path,
    params: Params,
    registry: Registry,
    collect: Collect,
    failed: list[int],
    number: int,
    code: int,
    message: str,
) -> None:
    collect(failed)
    ended = run_until(root, "flywheel.gate.promotion.judge", "retrain.epochs=1", number)
    assert (ended.returncode, ended.stderr) == (code, message)  # it does not say that nothing was published
    (made,) = registry.versions("retrained-model")
    unjudged = "retrained-model:v0 was made by a run that ended before the gate (feedback digits-feedback:v0)"
    assert ("retrain", "to run", unjudged) in list(status.states(params, registry))
    assert not (params.reports / "retrain.json").exists()
    again = run(root, "tracking.wandb=offline")
    assert "retrained-model:v0 was made by a run that ended before the gate; judging it now" in again.stdout
    assert "epoch" not in again.stdout
    assert registry.versions("retrained-model") == [made]
    report = files.read_json(params.reports / "retrain.json")
    assert report["candidate"] == made.ref
    assert report["decision"] == files.read_json(params.reports / "gate.json")["decision"]
    assert len(report["epochs"]) == 1
    (tracked,) = run_files.records(params.store)
    assert (tracked.job_type, tracked.used) == ("retrain", (made.ref,))
    assert (tracked.summary["decision"], tracked.summary["candidate"]) == (report["decision"], made.ref)
    assert {one.name for one in tracked.media} >= {"gate", "retrain"}
    assert "nothing to do" in run(root).stdout


@pytest.mark.long
def test_killed_after_the_promotion_it_is_not_judged_again(
    root: Path, params: Params, registry: Registry, collect: Collect, failed: list[int]
) -> None:
    """Production was moved on by hand meanwhile; the next run completes the reports and leaves production alone."""
    extra = "gate.floor_accuracy=0 gate.allow_unlearned_classes=true retrain.learning_rate_scale=0.001"
    collect(failed)
    (params.store / "audit.jsonl").unlink()
    parent = registry.resolve("model-1")
    registry.link(parent, params.registered_model, ("best",), reason="nothing is in production")
    ended = run_until(root, "flywheel.retraining.plots.draw", f"retrain.epochs=1 {extra}")
    assert ended.returncode == -signal.SIGKILL, ended.stdout + ended.stderr
    (made,) = registry.versions("retrained-model")
    assert registry.aliases(params.registered_model)["production"] == made.ref
    registry.link(parent, params.registered_model, ("production",), reason="rolled back by hand")
    done = run(root, extra)
    assert done.returncode == 0
    assert "since then production was moved; make history shows" in done.stdout
    assert registry.aliases(params.registered_model)["production"] == parent.ref
    report = files.read_json(params.reports / "retrain.json")
    assert (report["decision"], report["promoted"]) == ("first", True)
    assert "nothing to do" in run(root).stdout
