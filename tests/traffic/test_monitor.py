"""`make monitor` counts each prediction once, however often and when it runs, and raises its alarm in time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import made_models
import numpy as np
import pytest
import scripts
from made_traffic import record, write_records

from flywheel import files
from flywheel.commands import status
from flywheel.data.dataset import Dataset
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.tracking import run_files
from flywheel.traffic import feedback, monitor, monitor_text, observed, records, sampling
from flywheel.traffic.labels import LabelLog
from flywheel.traffic.monitor_report import MonitorReport
from flywheel.traffic.sampling import Drawn, Sample

START = datetime(2026, 11, 28, 9, 58, tzinfo=UTC)
SETTINGS = "data.image_size=8 tracking.wandb=disabled"
SURE, UNSURE = [0.991] + [0.001] * 9, [0.19] + [0.09] * 9
Rows = list[dict[str, Any]]


@pytest.fixture
def params(tmp_path: Path) -> Params:
    return scripts.load(tmp_path, SETTINGS)


@pytest.fixture
def data(params: Params, registry: Registry) -> Dataset:
    made = made_models.dataset(params)
    made_models.publish_dataset(registry, params, made)
    return made


def produced(params: Params, registry: Registry, name: str, **inputs: Sequence[str]) -> Version:
    """Publish a model of the data set and put it into production."""
    inputs = {"dataset": [registry.resolve(params.dataset_name).ref], **inputs}
    version = made_models.publish(registry, params, name, made_models.model(wrong=(1,)), inputs=inputs)
    registry.link(version, params.registered_model, ("production",), reason="a test")
    return version


@pytest.fixture
def model(params: Params, registry: Registry, data: Dataset) -> Version:
    return produced(params, registry, "model-a")


def content(number: object) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def traffic(model: Version, mistakes: Iterable[bool], start: datetime = START, *, every_s: float = 1.0) -> Rows:
    """Return records of different images that a model answered, surely or as it answers presumed mistakes."""
    return [
        record(model.ref, UNSURE if mistake else SURE, at, content((start, i)), i)
        for i, mistake in enumerate(mistakes)
        for at in [start + timedelta(seconds=i * every_s)]
    ]


def share(n: int, mistakes: float) -> list[bool]:
    """Return n truth values of which a share, spread evenly, is true."""
    return [int((i + 1) * mistakes) > int(i * mistakes) for i in range(n)]


def run(params: Params, registry: Registry) -> MonitorReport:
    report = monitor.run(params, registry)
    assert report is not None
    assert monitor.read(params) == report
    return report


def comparable(params: Params) -> bytes:
    """Return monitor.json apart from the time at which it was written."""
    report = files.read_json(params.reports / "monitor.json")
    return json.dumps({**report, "at": ""}).encode()


def test_without_traffic_it_says_what_to_do(tmp_path: Path, params: Params) -> None:
    done = scripts.run(tmp_path, "monitor", SETTINGS, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "monitor: no prediction is recorded yet; make serve PROFILE=demo records what it answers\n"
    assert not params.reports.exists()


def test_quiet_traffic_raises_no_alarm(params: Params, registry: Registry, model: Version) -> None:
    write_records(params.store_paths, traffic(model, share(700, 0.04)))
    report = run(params, registry)
    assert (report.model, report.predictions, report.alarm.state) == (model.ref, 700, "quiet")
    assert report.alarm.presumed_accuracy == pytest.approx(0.96, abs=0.002)
    assert sum(row.n for row in report.change) == 700
    assert all(row.classes_changed.distance > 0.8 > row.classes_changed.by_chance for row in report.change)
    told = " ".join(monitor_text.lines(params, report))
    assert "no alarm" in told
    assert "may fail without an alarm" not in told
    unsure = report.alarm.model_copy(update={"reference_confidence": 0.3})
    told = " ".join(monitor_text.lines(params, report.model_copy(update={"alarm": unsure})))
    assert "on average only 30% sure of the test images: it may fail without an alarm" in told
    counts = [0] * observed.CONFIDENCE_BINS
    counts[0], counts[-1] = 1, 3
    assert observed.mean_confidence(counts) == pytest.approx(0.025 / 4 + 0.975 * 3 / 4)


def test_an_alarm_is_up_until_another_model_is_in_production(
    tmp_path: Path, params: Params, registry: Registry, model: Version
) -> None:
    write_records(params.store_paths, traffic(model, [*share(300, 0.04), *share(300, 0.5)]))
    done = scripts.run(tmp_path, "monitor", f"{SETTINGS} tracking.wandb=offline", "--check")
    assert done.returncode == 3, done.stderr
    assert "600 new predictions: 600 count" in done.stdout
    assert "model-a:v0 (production): ALARM since 2026-11-28 10:" in done.stdout
    assert "make label PROFILE=demo" in done.stdout
    report = monitor.read(params)
    assert report is not None
    assert report.alarm.since is not None
    assert 0 < (datetime.fromisoformat(report.alarm.since) - START).total_seconds() - 300 < 60
    assert max(row.evidence for row in report.change) >= (report.alarm.limit or 0)
    assert 'flywheel_monitor_alarm{model="model-a:v0"} 1\n' in params.store_paths.monitor_metrics.read_text()
    (tracked,) = run_files.records(params.store)
    assert (tracked.job_type, [medium.name for medium in tracked.media]) == ("monitor", ["monitor"])
    assert [row["n"] for row in tracked.rows] == [row.n for row in report.change]
    assert tracked.summary["alarm/state"] == "alarm"
    assert scripts.run(tmp_path, "monitor", SETTINGS).returncode == 0
    produced(params, registry, "model-b")
    report = run(params, registry)
    assert (report.alarm.state, report.others[0].alarm.state) == ("none", "alarm")
    assert any("model-a:v0: ALARM" in line for line in monitor_text.lines(params, report))
    assert "model-b:v0 in production has no prediction that counts" in status._monitor(params)[1]
    for path in params.store_paths.traffic_records.iterdir():
        path.unlink()
    assert run(params, registry).others == ()
    registry.link(model, params.registered_model, ("production",), reason="back")
    assert run(params, registry).alarm.state == "alarm"
    assert status._monitor(params)[0] == "alarm"


def test_labels_drawn_after_an_alarm_end_it(params: Params, registry: Registry, model: Version) -> None:
    """Half of the sample is labelled: the alarm stays up. All: the labels are the truth, and the detector restarts."""
    paths = params.store_paths
    rows = traffic(model, share(300, 0.5))
    write_records(paths, rows)
    run(params, registry)
    for number, made in enumerate((START, START + timedelta(hours=1)), start=1):
        drawn = tuple(
            Drawn(prediction_id=row["prediction_id"], hash=row["hash"], probability=0.1, prediction="0", confidence=0.6)
            for row in rows[number::10]
        )
        for one in drawn:
            files.write_text(records.image_path(paths, one.hash), "pixels")
        sampling.write(paths, Sample(number=number, made=made.isoformat(), model=model.ref, population=300,
                                    mean_confidence=0.6, images=drawn))  # fmt: skip
        taker = LabelLog(paths, f"page{number}-ann", lambda: made_models.DIGITS, 1e6)
        for part, state in ((drawn[:15], "alarm"), (drawn[15:], "alarm" if number == 1 else "quiet")):
            answers = taker.add([{"prediction_id": one.prediction_id, "label": "0"} for one in part])
            assert {answer.status for answer in answers} == {"accepted"}
            report = run(params, registry)
            assert report.alarm.state == state
            assert report.labelled == report.samples[-1]
    assert report.labelled is not None
    assert (report.labelled.n, report.labelled.waiting, report.labelled.interval[1]) == (30, 0, 1.0)
    text = " ".join(monitor_text.lines(params, report))
    assert re.search(
        r"accuracy 100.0% by 30 labels of the sample of \S+ \S+ UTC \(95 % interval \S+% to 100.0%\)", text
    )
    everything = report.labelled.model_copy(update={"interval": (1.0, 1.0)})
    harm = everything.model_copy(update={"accuracy": 0.7, "interval": (0.7, 0.7)})
    for labelled, also in (
        (everything, ""),
        (harm, "; that is harm: make collect retrain PROFILE=demo trains on them"),
    ):
        text = " ".join(monitor_text.lines(params, report.model_copy(update={"labelled": labelled})))
        assert f"UTC (it has every image that could be drawn){also}" in text
        assert ("that is harm" in text) == bool(also)
    old = report.model_copy(update={"labelled": None, "others": (report.model_copy(update={"labelled": harm}),)})
    assert "; that is harm: it is not in production" in " ".join(monitor_text.lines(params, old))
    write_records(paths, traffic(model, share(300, 0.5), START + timedelta(hours=2)))
    assert run(params, registry).alarm.state == "alarm"


def test_many_runs_count_as_one_does(
    params: Params, registry: Registry, model: Version, random: np.random.Generator
) -> None:
    """Lines are read while they are being written, over three hours and two models."""
    paths = params.store_paths
    second = produced(params, registry, "model-b")
    rows = [
        record((model, second)[i > 800].ref, UNSURE if random.random() < 0.1 else SURE, at, content(i % 1500), i)
        for i in range(1800)
        for at in [START + timedelta(seconds=4 * i)]
    ]
    write_records(paths, rows)
    whole = {path.name: path.read_bytes() for path in sorted(paths.traffic_records.iterdir())}
    assert len(whole) == 3
    for path in paths.traffic_records.iterdir():
        path.unlink()
    for name, text in whole.items():
        for cut in sorted([*random.integers(0, len(text), 2), len(text)]):
            (paths.traffic_records / name).write_bytes(text[:cut])
            monitor.run(params, registry)
    often = comparable(params)
    paths.monitor_state.unlink()
    report = run(params, registry)
    assert comparable(params) == often
    assert [one.predictions for one in (report, *report.others)] == [999, 801]
    assert (report.left_out["repeated"], report.others[0].left_out["repeated"]) == (0, 0)


def test_killed_before_it_saves_nothing_is_counted_twice(
    tmp_path: Path, params: Params, registry: Registry, model: Version
) -> None:
    rows = traffic(model, share(400, 0.1))
    write_records(params.store_paths, rows[:200])
    run(params, registry)
    write_records(params.store_paths, rows[200:])
    command = scripts.command(tmp_path, "monitor", SETTINGS)[1:]
    probe = (
        "import os, runpy, sys\nimport flywheel.traffic.observed as observed\n"
        f"observed.save = lambda *_: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        f"sys.argv = {command!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    killed = subprocess.run([sys.executable, "-c", probe], cwd=scripts.ROOT, env=os.environ, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    written = comparable(params)
    assert run(params, registry).predictions == 400
    assert comparable(params) == written


def test_a_content_counts_once_and_an_image_trained_on_never(
    params: Params, registry: Registry, data: Dataset, model: Version
) -> None:
    learned = content("learned")
    listed = [feedback.Example(hash=learned, label="1", side="train", source="traffic")]
    published, _ = feedback.publish(params, registry, listed, {}, {})
    assert published is not None
    child = produced(params, registry, "child", parent=[model.ref], feedback=[published.ref])
    grandchild = produced(params, registry, "grandchild", parent=[child.ref])
    trained = data.hashes[data.indices["train"][0]].tobytes().hex()
    tested = data.hashes[data.indices["test"][0]].tobytes().hex()
    rows = [
        record(version.ref, SURE, START + timedelta(seconds=i), hashed, i)
        for version in (model, grandchild)
        for i, hashed in enumerate([learned, trained, tested, content("new"), content("new"), learned])
    ]
    write_records(params.store_paths, rows)
    report = run(params, registry)
    assert (report.predictions, report.left_out) == (2, {"repeated": 1, "trained on": 3})
    assert report.others[0].label == "model-a:v0"
    assert (report.others[0].predictions, report.others[0].left_out) == (3, {"repeated": 2, "trained on": 1})
    write_records(params.store_paths, rows)
    assert run(params, registry).predictions == 2


def test_records_that_come_late_or_go_are_handled(params: Params, registry: Registry, model: Version) -> None:
    paths = params.store_paths
    rows = traffic(model, share(300, 0.0))
    write_records(paths, rows[::2], "r1")
    write_records(paths, rows[1::2], "r2")
    first = run(params, registry)
    early = traffic(model, share(60, 0.0), START - timedelta(hours=1))
    write_records(paths, early, "late")
    report = run(params, registry)
    assert report.predictions == first.predictions + 60 == 360
    assert report.change[0].start == (START - timedelta(hours=1)).isoformat(timespec="seconds")
    next(paths.traffic_records.glob("late-*")).unlink()
    for path in paths.traffic_records.glob("r1-*"):  # as make forget does
        path.write_bytes(b"".join(b" " * (len(line) - 1) + b"\n" for line in path.read_bytes().splitlines(True)))
    report = run(params, registry)
    assert report.predictions == 360
    assert report.change[0].start == START.isoformat(timespec="seconds")
    write_records(paths, early, "late")  # its contents were forgotten with the records
    assert run(params, registry).predictions == 420


def lines_that_are_no_records(model: Version) -> Iterator[object]:
    good, other = (record(model.ref, SURE, START + timedelta(days=days), content("x")) for days in (0, 9))
    for key, wrong in {
        "prediction_id": ("é" * 36, "short", 5, other["prediction_id"]),
        "hash": ("xyz" * 8, None), "model": (None,), "probabilities": ([1.0], ["a"] * 10, [float("nan")] * 10, 0.5),
    }.items():  # fmt: skip
        yield from ({**good, key: value} for value in wrong)
    yield from ([], 5, {})


def test_what_is_no_record_or_has_no_reference_is_left_out(params: Params, registry: Registry, model: Version) -> None:
    gone = produced(params, registry, "gone")
    registry.remove([gone])
    write_records(params.store_paths, [*traffic(model, share(3, 0.0)), *traffic(gone, share(2, 0.0))])
    path = next(params.store_paths.traffic_records.iterdir())
    with path.open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines_that_are_no_records(model))
        file.write("{")
    report = run(params, registry)
    assert (report.model, report.predictions) == (gone.ref, 0)
    assert [one.predictions for one in report.others] == [3]
    assert "gone" in report.unwatched[gone.ref]
    assert any("gone" in line for line in monitor_text.lines(params, report))


def test_without_production_or_data_set_it_still_answers(params: Params, registry: Registry) -> None:
    version = made_models.publish(registry, params, "model-a", made_models.model())
    write_records(params.store_paths, traffic(version, share(3, 0.0)))
    report = run(params, registry)
    assert (report.model, report.alarm.state) == (None, "none")
    told = " ".join(monitor_text.lines(params, report))
    assert "there is no production model" in told
    assert "digits_dataset" in told


def test_the_bins_grow_with_the_time_and_stay_few(params: Params, registry: Registry, model: Version) -> None:
    rows = traffic(model, share(3_000, 0.04), START - timedelta(days=2), every_s=57.0)
    write_records(params.store_paths, rows[:100])
    assert {len(observed.load(params.store_paths).models), run(params, registry).predictions} == {0, 100}
    write_records(params.store_paths, rows[100:])
    report = run(params, registry)
    state = observed.load(params.store_paths)
    assert observed.MAX_BINS / 2 < len(state.models[model.ref].starts) <= observed.MAX_BINS
    assert min(row.n for row in report.change) >= monitor.FEWEST
    assert sum(row.n for row in report.change) == 3_000
    assert len(report.change) <= observed.MAX_BINS


@pytest.mark.parametrize("damaged", [b"PK\x03\x04 damaged", b""])
def test_a_damaged_state_counts_all_records_again(
    params: Params, registry: Registry, model: Version, damaged: bytes
) -> None:
    write_records(params.store_paths, traffic(model, share(60, 0.0)))
    run(params, registry)
    params.store_paths.monitor_state.write_bytes(damaged)
    assert run(params, registry).predictions == 60
