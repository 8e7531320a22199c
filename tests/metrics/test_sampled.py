"""The accuracy from a sample: no bias, intervals that hold, also of a half-labelled sample."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flywheel.metrics import sampled
from flywheel.metrics.sampled import Estimate

Scores = tuple[NDArray[np.float64], NDArray[np.float64]]  # confidence, right
NAN = float("nan")


def scores(n: int, a: float, b: float, overconfidence: float) -> Scores:
    """Return made confidences, Beta(a, b), of answers that are right less often than that by a factor."""
    random = np.random.default_rng(n)
    confidence = random.beta(a, b, n).clip(0.1, 1)
    return confidence, (random.random(n) < confidence * (1 - overconfidence)).astype(float)


def estimate(made: Scores, chosen: NDArray[np.int64], probability: NDArray[np.float64]) -> Estimate:
    confidence, right = made
    return sampled.accuracy(
        right[chosen], confidence[chosen], probability[chosen],
        drawn=round(probability.sum()), population=len(right), mean_confidence=float(confidence.mean()),
    )  # fmt: skip


def test_unsure_answers_are_drawn_more_often_and_none_more_than_once() -> None:
    confidence = np.array([0.5] * 3 + [0.999] * 97)
    probability = sampled.probabilities(confidence, 20)
    assert probability[:3].tolist() == [1, 1, 1]
    assert probability[3:] == pytest.approx(17 / 97)
    assert sampled.probabilities(np.ones(40), 20) == pytest.approx(0.5)
    assert sampled.probabilities(confidence, 100).tolist() == [1] * 100
    random = np.random.default_rng(0)
    draws = [sampled.draw(probability, random) for _ in range(2000)]
    assert all(len(set(drawn)) == 20 for drawn in draws)
    assert np.bincount(np.concatenate(draws)) / 2000 == pytest.approx(probability, abs=0.045)  # 5 standard errors
    assert np.mean([(drawn[:10] < 3).sum() for drawn in draws]) == pytest.approx(1.5, abs=0.1)  # in random order


@pytest.mark.parametrize("labelled", [200, 70])
@pytest.mark.parametrize(
    "made", [scores(8000, 8, 0.8, 0), scores(8000, 3, 1, 0.4), scores(500, 20, 0.3, 0), scores(500, 8, 0.8, 0.3)],
    ids=["many", "many overconfident", "few", "few overconfident"],
)  # fmt: skip
def test_the_estimate_has_no_bias_and_its_interval_holds(made: Scores, labelled: int) -> None:
    confidence, right = made
    probability, random = sampled.probabilities(confidence, 200), np.random.default_rng(0)
    found = [estimate(made, sampled.draw(probability, random)[:labelled], probability) for _ in range(500)]
    estimates = np.array([one.accuracy for one in found])
    assert estimates.mean() == pytest.approx(right.mean(), abs=4 * estimates.std() / 500**0.5)
    assert np.mean([one.low <= right.mean() <= one.high for one in found]) >= 0.92
    assert all(0 <= one.low <= one.accuracy <= one.high <= 1 for one in found)


def test_all_labels_give_the_accuracy_itself() -> None:
    for made in (scores(300, 8, 0.8, 0.1), scores(300, 50, 0.05, 0)):
        found = estimate(made, np.arange(300), np.ones(300))
        assert (found.low, found.accuracy, found.high) == pytest.approx((made[1].mean(),) * 3)


def test_few_errors_leave_the_interval_wide() -> None:
    confidence = np.full(1000, 0.999)
    found = estimate((confidence, np.ones(1000)), np.arange(100), np.full(1000, 0.1))
    assert found.high == 1
    assert 0.95 < found.low < 0.97  # Wilson for 100 of 100: 0.963


def test_undecided_images_widen_the_interval_and_foreign_ones_do_not_count() -> None:
    right = np.array([1.0] * 60 + [0.0] * 20)
    confidence, probability = np.full(100, 0.8), np.full(100, 0.1)

    def found(*more: float, foreign: int = 0) -> Estimate:
        given = np.array([*right, *more, *[0.0] * foreign])
        n = len(given)
        return sampled.accuracy(
            given, confidence[:n], probability[:n], drawn=n, population=10 * n, mean_confidence=0.8,
            foreign=np.arange(n) >= n - foreign,
        )  # fmt: skip

    decided, undecided, foreign = found(), found(NAN, NAN, NAN, NAN), found(foreign=4)
    assert [one.accuracy for one in (decided, undecided, foreign)] == pytest.approx([0.75] * 3)
    assert undecided.low == pytest.approx(found(0, 0, 0, 0).low)
    assert undecided.high == pytest.approx(found(1, 1, 1, 1).high)
    assert foreign.low == pytest.approx(decided.low, abs=0.002)
