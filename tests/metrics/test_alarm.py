"""The alarm without labels: presumed mistakes, the level of the detector, its false alarms and its delays."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import entr
from scipy.stats import beta

from flywheel.metrics import MetricsError, alarm

LINE = alarm.alarm_level(1_000_000)


def predictions(n: int, errors: int, classes: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (n, classes) float32 and labels of which so many are not the most probable class."""
    probabilities = np.random.default_rng(seed).dirichlet(np.full(classes, 0.1), n).astype(np.float32)
    labels = probabilities.argmax(axis=1)
    labels[:errors] = (labels[:errors] + 1) % classes
    return probabilities, labels


def reference_of(n: int, errors: int) -> alarm.Reference:
    return alarm.reference(*predictions(n, errors), tolerance=0.02)


def test_negative_entropy_is_zero_for_a_sure_answer_and_lowest_for_an_even_one() -> None:
    rows = np.array([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]], np.float32)
    assert alarm.negative_entropy(rows) == pytest.approx([0, -math.log(4), -math.log(2)])
    probabilities, _ = predictions(100, 0)
    assert alarm.negative_entropy(probabilities) == pytest.approx(-entr(probabilities).sum(axis=1), abs=1e-4)
    recorded = np.array([[round(value, 6) for value in row] for row in probabilities.tolist()])
    assert np.array_equal(alarm.negative_entropy(recorded), alarm.negative_entropy(probabilities))


@pytest.mark.parametrize(("n", "errors", "presumed"), [(2000, 140, 140), (450, 3, 5), (7, 0, 5)])
def test_as_many_are_presumed_wrong_as_are_wrong_but_five_at_least(n: int, errors: int, presumed: int) -> None:
    found = reference_of(n, errors)
    assert (found.n, found.errors, found.presumed) == (n, errors, presumed)
    assert found.bound == pytest.approx(beta.ppf(0.95, presumed + 1, n - presumed) + 0.02)
    assert found.mistakes(predictions(n, errors)[0]).sum() == presumed


def test_ties_at_the_threshold_are_presumed_right() -> None:
    sure = np.tile(np.array([1, 0], np.float32), (100, 1))
    sure[:4] = 0.5
    found = alarm.reference(sure, np.zeros(100, np.int64), 0.02)
    assert (found.presumed, found.threshold) == (4, 0)
    assert found.mistakes(sure).tolist() == [True] * 4 + [False] * 96


@pytest.mark.parametrize(("n", "errors"), [(0, 0), (4, 0), (5, 0), (6, 0), (300, 299), (300, 300)])
def test_a_reference_that_no_traffic_could_exceed_is_refused(n: int, errors: int) -> None:
    with pytest.raises(MetricsError, match=f"{errors} of {n} are wrong"):
        reference_of(n, errors)


def test_unequal_lengths_and_nan_are_refused() -> None:
    probabilities, labels = predictions(100, 10)
    with pytest.raises(MetricsError, match="99 labels"):
        alarm.reference(probabilities, labels[1:], 0.02)
    probabilities[7, 3] = np.nan
    with pytest.raises(MetricsError, match="finite"):
        alarm.reference(probabilities, labels, 0.02)


@given(st.lists(st.booleans(), max_size=80), st.floats(0.005, 0.99), st.integers(0, 80))
def test_the_level_is_that_of_the_recursion_in_one_call_or_two(seen: list[bool], bound: float, cut: int) -> None:
    bets = [min(distance / (bound * (1 - bound)), 0.9 / bound) for distance in (0.02, 0.05, 0.1, 0.2, 0.4)]
    sums, expected = [0.0] * 5, []
    for mistake in seen:
        sums = [max(s, 0) + math.log(1 + b * (mistake - bound)) for s, b in zip(sums, bets, strict=True)]
        expected.append(math.log(sum(map(math.exp, sums)) / 5))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(alarm, "BLOCK", 7)
        found, state = alarm.levels(np.array(seen, bool), bound)
    assert found == pytest.approx(expected, abs=1e-9)
    assert state == pytest.approx(sums, abs=1e-9)
    first, between = alarm.levels(np.array(seen[:cut], bool), bound)
    second, last = alarm.levels(np.array(seen[cut:], bool), bound, json.loads(json.dumps(between)))
    assert [*first, *second] == pytest.approx(expected, abs=1e-9)
    assert last == pytest.approx(sums, abs=1e-9)


def first_alarms(share: float, bound: float, streams: int, length: int) -> np.ndarray:
    """Return after how many predictions each stream alarms, its length + 1 if it does not."""
    random = np.random.default_rng(0)
    reached = (alarm.levels(random.random(length) < share, bound)[0] >= LINE for _ in range(streams))
    return np.array([np.argmax(hit) + 1 if hit.any() else length + 1 for hit in reached])


@pytest.mark.parametrize(
    ("n", "errors", "loss", "median"),
    [(8000, 0.07, 0.1, 500), (2000, 0.27, 0.1, 1600), (8000, 0.07, 0.2, 300), (2000, 0.27, 0.2, 300)],
)
def test_a_loss_is_seen_soon(n: int, errors: float, loss: float, median: int) -> None:
    bound = reference_of(n, round(errors * n)).bound
    assert np.median(first_alarms(errors + loss, bound, 200, 8000)) <= median


def test_false_alarms_are_as_rare_as_stated_even_at_the_bound() -> None:
    """At the bound itself every bet is fair; without harm the share is lower and nothing alarms."""
    bound = reference_of(2000, 140).bound
    assert (first_alarms(bound, bound, 100, 10_000) <= 10_000).mean() <= 0.01
    assert (first_alarms(0.07, bound, 20, 100_000) > 100_000).all()


def test_the_level_falls_slowly_after_an_alarm_unless_the_detector_restarts() -> None:
    harm, recovered = np.ones(200, bool), np.zeros(50, bool)
    level, state = alarm.levels(harm, 0.1)
    assert level[-1] > LINE
    assert alarm.levels(recovered, 0.1, state)[0][-1] > LINE
    assert alarm.levels(recovered, 0.1)[0].max() < 0
