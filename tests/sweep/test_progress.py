"""What a running sweep says, and which checkpoints it keeps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.sweep import SweepError, progress
from flywheel.sweep.checkpoints import CheckpointStore
from flywheel.sweep.journal import Journal, Trial
from flywheel.sweep.progress import Recorder
from flywheel.sweep.state import SweepState
from flywheel.tracking.runs import Tracker

Make = Callable[[str], Recorder]


@pytest.fixture
def make(make_params: Callable[..., Params], tmp_path: Path) -> Make:
    """Return a function that makes the recorder of a sweep with some params."""

    def made(overrides: str) -> Recorder:
        params = make_params(f"tracking.wandb=disabled {overrides}")
        state, tracker = SweepState(params, Journal(tmp_path / "journal")), Tracker(params, Registry(params.store))
        return Recorder(state, CheckpointStore(str(tmp_path / "trials")), tracker)

    return made


def started(recorder: Recorder) -> Trial:
    trial = recorder.state.next_trial(2)
    assert trial is not None
    recorder.state.on_trial_start(trial)
    return trial


def test_the_sweep_says_how_long_it_may_take_and_ends_if_the_disk_is_too_small(
    make: Make, tmp_path: Path, said: list[str]
) -> None:
    recorder = make("sweep.trials=6 sweep.epochs=2 sweep.keep_checkpoints=1")
    recorder.on_speeds([(8.0, 100_000), (20.0, 1)], concurrent=2)  # 3 rounds of 2 epochs; 17 times the weights
    assert said == ["sweep: about 84 s, at most 2 min and 1.7 MB of disk"]
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(SweepError, match=r"trials has .* free and the sweep may need .*; free space or set paths"):
        recorder.on_speeds([(10.0, free)], concurrent=1)


def test_the_checkpoints_of_an_interrupted_sweep_count_as_room_for_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = make("sweep.trials=6 sweep.keep_checkpoints=1")
    recorder.store.write("state", bytes(1_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    recorder.on_speeds([(1.0, 100_000)], concurrent=2)  # 17 times the weights
    with pytest.raises(SweepError, match=r"has 1\.0 MB free and the sweep may need 3\.4 MB"):
        recorder.on_speeds([(1.0, 200_000)], concurrent=2)


def test_a_silent_sweep_tells_every_half_minute_how_far_its_trials_are(
    make: Make, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    recorder = make("sweep.trials=4 sweep.epochs=9")
    first, _ = started(recorder), started(recorder)
    recorder.state.on_trial_result(first, 1, {"accuracy": 0.5})
    for clock in (100.0, 129.0, 130.0, 159.0):  # noqa: B007
        recorder.on_step()
    assert said == ["sweep: 0/4 ended; trial 0 after epoch 1 of 9, trial 1 after epoch 0 of 9"]


def test_the_end_of_a_trial_removes_its_checkpoints_and_not_the_folder_of_a_check_of_nodes(make: Make) -> None:
    """Nodes that join are checked while trials run (preflight.Joining)."""
    recorder = make("sweep.trials=4")
    failed, running = started(recorder), started(recorder)
    for name in (failed.id, running.id, "preflight-0123"):
        recorder.store.subfolder(name).write("driver", b"")
    recorder.state.on_trial_end(failed, "KeyError: 'bug'")
    recorder.on_trial_end(failed)
    assert recorder.store.names() == sorted([running.id, "preflight-0123"])
