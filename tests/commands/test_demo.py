"""The table that `make demo` prints, and the whole demo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import processes
import pytest
import scripts
from served import free_port

from flywheel import files
from flywheel.commands import demo
from flywheel.registry import Registry
from flywheel.retraining.report import ArmScores, LabelCounts, RetrainReport, Score, Scores
from flywheel.simulation.report import SimulationReport

SIMULATED = SimulationReport.model_construct(n=547, accuracy=0.9, models={"retrained-model:v0": 547})


def scores(test: float, holdout: float | None) -> Scores:
    def score(accuracy: float | None) -> Score:
        return Score(n=9, accuracy=accuracy, interval=None)

    return Scores(test=score(test), holdout=score(holdout), unseen=score(0.5), per_class={})


def retrained(**changes: Any) -> RetrainReport:
    control = ArmScores(**dict(scores(0.985, None)), arm="random", examples=120, labels=120, epochs=(), kept_epoch=1)
    values = {
        "parent": "model-1@abc", "candidate": "retrained-model@def", "before": scores(0.99, 0.72),
        "after": scores(0.98, 0.891), "promoted": True, "reasons": ("no harm",), "arm": "all", "hard_examples": 120,
        "examples": LabelCounts(right=260, wrong=120, disputed=0),
        "control": control,
    }  # fmt: skip
    return RetrainReport.model_construct(None, **{**values, **changes})


def test_the_table_shows_before_after_and_the_other_arm_with_their_label_costs(registry: Registry) -> None:
    lines = list(demo.table(registry, retrained(), SIMULATED))
    rows = {line.split("  ")[0]: line.split()[-3:] for line in lines}
    assert rows["before"] == ["–", "99.0%", "72.0%"]
    assert rows["all labelled"] == ["380", "98.0%", "89.1%"]
    assert rows["as many random"] == ["120", "98.5%", "–"]
    assert "retrained-model@def is in production: no harm" in lines
    assert "served last: 90.0% of 547 simulated requests, by retrained-model:v0" in lines


def test_without_a_control_arm_there_is_no_row(registry: Registry) -> None:
    report = retrained(control=None, promoted=False, reasons=("perhaps worse",))
    lines = list(demo.table(registry, report, SIMULATED))
    assert not [line for line in lines if line.startswith("as many")]
    assert "retrained-model@def is not promoted: perhaps worse" in lines


def start(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a small demo; return its process and its store."""
    overrides = (
        f"{scripts.overrides(place)} serve.port={free_port()} sweep.trials=2 "
        "sweep.epochs=4 sweep.space.architecture=compact gate.floor_accuracy=0.1 retrain.epochs=2 "
        "gate.allow_unlearned_classes=true "
        "sweep.space.learning_rate=0.05 sweep.space.batch_size=64 sweep.space.optimizer=sgd"
    )
    process = subprocess.Popen(
        ["make", "demo", f"SET={overrides}"], cwd=scripts.ROOT, env=scripts.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    return process, place / "store" / "demo"


def test_a_command_that_fails_ends_the_demo_below_its_heading(tmp_path: Path) -> None:
    overrides = f"{scripts.overrides(tmp_path)} data.source=folder data.path={tmp_path}/missing"
    words = [sys.executable, "scripts/demo.py", "--profile", "demo", "--set", overrides]
    done = subprocess.run(words, cwd=scripts.ROOT, env=scripts.environment(), text=True, capture_output=True)
    assert done.returncode == 1
    assert done.stdout.startswith("\n$ make data PROFILE=demo\n")
    assert done.stderr.endswith("error: make data failed (exit 1); the reason is above\n")


@pytest.mark.long
def test_the_demo_runs_and_leaves_no_process(tmp_path: Path) -> None:
    process, store = start(tmp_path)
    printed = process.communicate(timeout=900)[0]
    assert process.returncode == 0, printed
    assert printed.count("$ make simulate PROFILE=demo") == 2
    for line in ("before  ", "all labelled  ", "as many random  ", "stop: stopped", "served last:"):
        assert line in printed
    assert processes.gone(store, 10)
    assert (tmp_path / "reports" / "demo" / "index.html").exists()
    report = files.read_json(tmp_path / "reports" / "demo" / "retrain.json")
    served = files.read_json(tmp_path / "reports" / "demo" / "simulation.json")
    if report["promoted"]:
        assert list(served["models"]) == ["retrained-model:v0"]
    registry = Registry(store)
    assert {one.ref.partition("@")[0] for one in registry.lineage(registry.resolve("retrained-model"))} >= {
        "digits_dataset", "digits-feedback",
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("moment", ["sweep: running", "simulate: 547 images", "retrain: all, epoch 1"])
def test_an_interrupt_anywhere_leaves_no_process(tmp_path: Path, moment: str) -> None:
    process, store = start(tmp_path)
    assert process.stdout is not None
    until = time.monotonic() + 600
    for line in process.stdout:
        assert time.monotonic() < until
        if moment in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to all of them
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert processes.gone(store, 10)
