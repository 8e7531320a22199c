"""The table that `make demo` prints, and the whole demo."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import made_models
import numpy as np
import processes
import pytest
import scripts
from made_traffic import record, write_records
from PIL import Image
from served import free_port

from flywheel import FlywheelError, files
from flywheel.commands import demo_story
from flywheel.commands.demo_story import Part
from flywheel.registry import Registry
from flywheel.retraining.report import ArmScores, LabelCounts, RetrainReport, Score, Scores
from flywheel.traffic.monitor_report import Alarm, MonitorReport, Traffic


def part(title: str, right: Sequence[bool], alarm_after: tuple[int, int] | None = None) -> Part:
    return Part(title, "model-1:v0", np.array(right), alarm_after)


def retrained(**changes: Any) -> RetrainReport:
    none = Score(n=9, accuracy=None, interval=None)
    scores = Scores(test=none, holdout=none.model_copy(update={"accuracy": 0.934}), unseen=none, per_class={})
    control = ArmScores(**dict(scores), arm="random", examples=94, labels=94, epochs=(), kept_epoch=1)
    values = {
        "promoted": True, "reasons": ("no harm",), "control": control,
        "examples": LabelCounts(right=111, wrong=94, disputed=0),
    }  # fmt: skip
    return RetrainReport.model_construct(None, **{**values, **changes})


PARTS = [
    part("as in training", [True] * 40),
    part("drifted", [True] * 10 + [False] * 30, (21, 14)),
    part("drifted, after retraining", [True] * 39 + [False]),
]


def test_the_table_has_a_row_for_each_part_and_the_other_arm_with_their_label_costs() -> None:
    lines = list(demo_story.table(PARTS, retrained()))
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert rows[1:5] == [
        ["as in training", "model-1:v0", "–", "100.0%", "quiet"],
        ["drifted", "model-1:v0", "–", "25.0%", "ALARM after 21 answers"],
        ["drifted, after retraining", "model-1:v0", "205", "97.5%", "quiet"],
        ["instead, with fewer labels", "not served", "94", "93.4%", "–"],
    ]
    assert lines[5:] == [
        "right: of 40 production images on which no model ever trains", "the gate: promoted, no harm"
    ]  # fmt: skip


def test_a_table_without_a_new_retraining_or_another_arm_names_none() -> None:
    assert len(list(demo_story.table(PARTS, retrained(control=None)))) == 6
    assert len(list(demo_story.table(PARTS, None))) == 5


def test_an_alarm_that_was_up_before_is_no_new_one() -> None:
    still = part("drifted, after retraining", [True] * 4, (0, 0))
    assert list(demo_story.table([*PARTS[:2], still], None))[3].endswith("ALARM, still")


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    with Image.open(demo_story.draw(PARTS, retrained(), tmp_path / "demo.png")) as picture:
        assert picture.size == (1440, 570)


def test_a_part_counts_what_was_answered_meanwhile_for_images_that_no_model_trains_on(
    tmp_path: Path, registry: Registry
) -> None:
    params = scripts.load(tmp_path, "data.image_size=8 tracking.wandb=disabled")
    data = made_models.dataset(params)
    made_models.publish_dataset(registry, params, data)
    index, start = data.indices["simulation"], datetime(2026, 11, 28, 9, 58, tzinfo=UTC)
    rows = []
    for number, row in enumerate(index):  # every fifth answer is wrong
        answer = data.labels[row] if number % 5 else (data.labels[row] + 1) % 10
        probabilities = np.eye(10)[answer].tolist()
        at = start + timedelta(seconds=number)
        rows.append(record("model-1@sha256:00", probabilities, at, data.hashes[row].tobytes().hex(), number))
    write_records(params.store_paths, rows)
    alarm = Alarm(state="alarm", since=(start + timedelta(seconds=59)).isoformat())
    none = Traffic(kept=0, dropped=None, bytes=0)
    report = MonitorReport(model=None, label="", at=start.isoformat(), alarm=alarm, traffic=none)
    files.write_json(params.reports / "monitor.json", report.model_dump(mode="json"))

    at = start.timestamp()
    found = demo_story.measure(params, registry, "drifted", (at + 20, at + 99))
    held = data.holdout[20:100]
    assert found.right.tolist() == (np.arange(20, 100) % 5 > 0)[held].tolist()
    assert found.alarm_after == (40, held[:40].sum())
    assert found.model == "model-1@sha256:00"
    with pytest.raises(FlywheelError, match="the server recorded no answer"):
        demo_story.measure(params, registry, "later", (at + 1000, at + 2000))


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
    assert "\n$ make data PROFILE=demo\n" in done.stdout
    assert done.stderr.endswith("error: make data failed (exit 1); the reason is above\n")


@pytest.mark.long
def test_the_demo_runs_and_leaves_no_process(tmp_path: Path) -> None:
    process, store = start(tmp_path)
    printed = process.communicate(timeout=900)[0]
    assert process.returncode == 0, printed
    for line in ("as in training  ", "drifted  ", "drifted, after retraining  ", "stop: stopped", "what to type next"):
        assert line in printed
    assert re.search(r"production changed: [1-9]\d*, failed: 0\n", printed)
    assert processes.gone(store, 10)
    for name in ("index.html", "demo.png", "monitor.png"):
        assert (tmp_path / "reports" / "demo" / name).exists()
    report = files.read_json(tmp_path / "reports" / "demo" / "retrain.json")
    served = files.read_json(tmp_path / "reports" / "demo" / "simulation.json")
    assert "an earlier demo" not in printed
    if report["promoted"]:
        assert list(served["models"]) == ["retrained-model:v0"]
        process, _ = start(tmp_path)
        again = process.communicate(timeout=900)[0]
        assert f"an earlier demo had retrained on these images; remove {store} for the story from its start" in again
    registry = Registry(store)
    assert {one.ref.partition("@")[0] for one in registry.lineage(registry.resolve("retrained-model"))} >= {
        "digits_dataset", "digits-feedback",
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("moment", ["sweep: running", "simulate: 300 images", "retrain: all, epoch 1"])
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
