"""ASHA: the published decisions, the same as Ray's, and rebuilt from repeated results."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from flywheel.sweep.asha import Asha


@pytest.mark.parametrize(("epochs", "rungs"), [(1, []), (2, [1]), (3, [1, 2]), (8, [3, 6]), (30, [10, 20])])
def test_rungs_are_at_one_and_two_thirds_of_the_epochs(epochs: int, rungs: list[int]) -> None:
    assert list(Asha(epochs).rungs) == rungs


def test_a_trial_below_the_median_of_a_rung_stops() -> None:
    asha = Asha(3)
    results = (("a", 0.5), ("b", 0.4), ("c", 0.45), ("d", 0.4), ("e", 0.44))
    assert [asha.should_stop(trial, 1, accuracy) for trial, accuracy in results] == [False, True, False, True, False]
    assert asha.rungs == {1: dict(results), 2: {}}


def test_a_repeated_epoch_never_stops_a_trial() -> None:
    asha = Asha(3)
    assert not asha.should_stop("a", 1, 0.5)
    assert asha.should_stop("b", 1, 0.4)
    assert not asha.should_stop("b", 1, 0.9)
    assert asha.rungs[1] == {"a": 0.5, "b": 0.4}


@pytest.mark.parametrize("epochs", [3, 8, 30])
def test_decisions_equal_those_of_rays_scheduler(random: np.random.Generator, epochs: int) -> None:
    """Forty trials, five at a time, epochs in random order."""
    asha = Asha(epochs)
    rays = AsyncHyperBandScheduler(
        time_attr="epoch", metric="accuracy", mode="max", max_t=epochs, grace_period=-(-epochs // 3), reduction_factor=2
    )
    waiting, running, stopped = [f"t{i}" for i in range(40)], {}, 0
    while waiting or running:
        while waiting and len(running) < 5:
            trial = SimpleNamespace(trial_id=waiting.pop(0), stopping_criterion={})
            rays.on_trial_add(None, trial)
            running[trial.trial_id] = (trial, 1)
        name = str(random.choice(sorted(running)))
        trial, epoch = running[name]
        accuracy = float(random.random())
        theirs = rays.on_trial_result(None, trial, {"epoch": epoch, "accuracy": accuracy})
        if epoch == epochs:  # Ray stops there in any case
            del running[name]
            continue
        ours = asha.should_stop(name, epoch, accuracy)
        assert ours == (theirs == TrialScheduler.STOP), (name, epoch)
        stopped += ours
        running[name] = (trial, epoch + 1)
        if ours:
            del running[name]
    assert stopped > 5
