"""ASHA as published, and as Ray does it; and rebuilt from what was told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from flywheel.sweep.asha import Asha


@pytest.mark.parametrize(("epochs", "rungs"), [(1, []), (2, [1]), (3, [1, 2]), (8, [3, 6]), (30, [10, 20])])
def test_rungs_lie_at_a_third_and_two_thirds(epochs: int, rungs: list[int]) -> None:
    assert list(Asha(epochs).rungs) == rungs


def test_the_first_at_a_rung_goes_on_and_the_next_must_not_be_below_the_median() -> None:
    asha = Asha(3)
    told = (("a", 0.5), ("b", 0.4), ("c", 0.45), ("d", 0.4), ("e", 0.44))
    assert [asha.stops(trial, 1, accuracy) for trial, accuracy in told] == [False, True, False, True, False]
    assert asha.rungs == {1: dict(told), 2: {}}


def test_what_is_told_again_decides_nothing_new() -> None:
    asha = Asha(3)
    assert not asha.stops("a", 1, 0.5)
    assert asha.stops("b", 1, 0.4)
    assert not asha.stops("b", 1, 0.9)
    assert asha.rungs[1] == {"a": 0.5, "b": 0.4}


@pytest.mark.parametrize("epochs", [3, 8, 30])
def test_it_decides_as_rays_scheduler_does(random: np.random.Generator, epochs: int) -> None:
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
        ours = asha.stops(name, epoch, accuracy)
        assert ours == (theirs == TrialScheduler.STOP), (name, epoch)
        stopped += ours
        running[name] = (trial, epoch + 1)
        if ours:
            del running[name]
    assert stopped > 5
