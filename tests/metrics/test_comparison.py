"""Two models on the same images: the interval against published examples and its own properties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.metrics import MetricsError
from flywheel.metrics.comparison import DISPUTED, compare, paired_difference, weighted_difference
from flywheel.metrics.report import WeightedDifference

# (pairs where only the first is right, only the second, all pairs) -> Tango's 95 % interval.
# Fagerland, Lydersen & Laake, Statistics in Medicine 33 (2014), 2850-2875: airway hyper-responsiveness (Bentur et al.)
# and complete response (Cavo et al.); the second also in the tests of the R package contingencytables.
PUBLISHED = [((1, 7, 21), (-0.517, -0.026), 3), ((6, 16, 161), (-0.1240, -0.0054), 4)]


@pytest.mark.parametrize(("counts", "limits", "digits"), PUBLISHED)
def test_the_interval_is_the_published_one(
    counts: tuple[int, int, int], limits: tuple[float, float], digits: int
) -> None:
    found = paired_difference(*counts)
    assert (round(found.low, digits), round(found.high, digits)) == limits


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 10_000))
    fixed = draw(st.integers(0, n))
    return fixed, draw(st.integers(0, n - fixed)), n


@given(tables())
def test_the_interval_holds_the_difference_and_mirrors(table: tuple[int, int, int]) -> None:
    fixed, broken, n = table
    found, mirrored = paired_difference(fixed, broken, n), paired_difference(broken, fixed, n)
    assert -1 <= found.low <= found.difference + 1e-9
    assert found.difference - 1e-9 <= found.high <= 1
    assert found.low == pytest.approx(-mirrored.high, abs=1e-6)
    assert found.high > found.low


@given(tables())
def test_more_confidence_is_a_wider_interval(table: tuple[int, int, int]) -> None:
    narrow, wide = paired_difference(*table, confidence=0.8), paired_difference(*table, confidence=0.99)
    assert wide.low <= narrow.low + 1e-9
    assert wide.high >= narrow.high - 1e-9


def test_no_discordant_pair_still_has_an_interval() -> None:
    found = paired_difference(0, 0, 450)
    assert found.difference == 0
    assert found.high == pytest.approx(-found.low)
    assert 0.005 < found.high < 0.02  # z²/(n + z²)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    probabilities = [0.06, 0.04, 0.9]  # fixed, broken, concordant
    draws = random.multinomial(450, probabilities, size=1000)
    covered = [(d := paired_difference(int(b), int(c), 450)).low <= 0.02 <= d.high for b, c, _ in draws]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_fixed_and_broken_images_are_named() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    old = np.array([0, 1, 1, 0, 0])
    new = np.array([1, 0, 1, 1, 0])
    found = compare(old, new, labels, ("a", "b", "absent"))
    assert found.fixed == (1, 3)
    assert found.broken == (0,)
    assert (found.overall.fixed, found.overall.broken, found.overall.n) == (2, 1, 5)
    assert set(found.per_class) == {"a", "b"}
    assert found.per_class["a"].difference == 0
    assert found.per_class["b"].difference == pytest.approx(1 / 3)


def test_mcnemar_is_exact() -> None:
    """10 against 2 discordant pairs: p = 2 * P(X <= 2 | 12, 1/2) = 0.0386."""
    labels = np.zeros(100, np.int64)
    old, new = labels.copy(), labels.copy()
    old[:10], new[10:12] = 1, 1
    assert compare(old, new, labels, ("a", "b")).p_value == pytest.approx(0.038574, abs=1e-6)
    assert compare(old, old, labels, ("a", "b")).p_value == 1.0


def test_per_class_intervals_are_wider_as_they_hold_together() -> None:
    labels = np.repeat([0, 1], 50)
    old, new = labels.copy(), labels.copy()
    new[:10] = 1
    found = compare(old, new, labels, ("a", "b"))
    alone = paired_difference(0, 10, 50)
    assert found.per_class["a"].low < alone.low
    assert found.per_class["a"].high > alone.high


@pytest.mark.parametrize("counts", [(3, 3, 5), (-1, 0, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="fixed"):
        paired_difference(*counts)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 labels"):
        compare(np.zeros(2, np.int64), np.zeros(3, np.int64), np.zeros(3, np.int64), ("a",))


# -- samples with unequal probabilities --------------------------------------------------------------------


def weighted(gains: Sequence[float], weights: Sequence[float]) -> WeightedDifference:
    """Compare models of which the new one alone is right (1), both are (0), or the old one alone is (-1)."""
    gain, labels = np.array(gains), np.zeros(len(gains), np.int64)
    old, new = (gain == 1).astype(np.int64), (gain == -1).astype(np.int64)
    return weighted_difference(old, new, labels, np.array(weights, float), 0.95)


def test_the_weighted_interval_is_that_of_the_linearised_variance() -> None:
    found = weighted([1] * 10 + [-1] * 30 + [0] * 60, [4.0] * 10 + [1.0] * 90)
    assert found.difference == pytest.approx(10 / 130)  # unweighted: -20 of 100
    variance = (160 * (1 - 10 / 130) ** 2 + 30 * (1 + 10 / 130) ** 2 + 60 * (10 / 130) ** 2) / 130**2
    assert found.high - found.difference == pytest.approx(1.959964 * variance**0.5)
    assert found.difference - found.low == pytest.approx(1.959964 * variance**0.5)
    assert (found.n, found.fixed, found.broken, found.disputed) == (100, 10, 30, 0)
    assert found.effective_n == pytest.approx(130**2 / 250)


def test_equal_weights_without_a_discordant_pair_give_tangos_interval() -> None:
    found, same = weighted([0] * 60, [7.0] * 60), paired_difference(0, 0, 60)
    assert (found.low, found.high) == (pytest.approx(same.low), pytest.approx(same.high))
    assert weighted([0] * 60, [7.0] * 30 + [1.0] * 30).high > found.high


def test_one_light_discordant_pair_proves_as_little_as_none() -> None:
    found = weighted([-1] + [0] * 59, [1.0] + [20.0] * 59)
    assert found.high > 0.05


def test_disputed_labels_widen_the_interval_where_the_models_differ() -> None:
    labels = np.zeros(100, np.int64)
    old, weights = labels.copy(), np.ones(100)
    new = np.where(np.arange(100) < 20, 1, 0)  # 20 that only the old model has right
    settled = weighted_difference(old, new, labels, weights, 0.95)
    same, differ = labels.copy(), labels.copy()
    same[-10:] = DISPUTED
    differ[:10] = DISPUTED
    agreed, disputed = (weighted_difference(old, new, known, weights, 0.95) for known in (same, differ))
    assert (agreed.low, agreed.high, agreed.disputed) == (settled.low, settled.high, 10)
    assert disputed.low == pytest.approx(settled.low)  # all against the new model
    assert disputed.high == pytest.approx(weighted([1] * 10 + [-1] * 10 + [0] * 80, [1] * 100).high)  # all for it
    assert disputed.difference == pytest.approx(-0.1)


@given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.floats(1, 1000)), min_size=1))
def test_the_weighted_interval_holds_the_difference_and_is_never_a_point(rows: list[tuple[int, float]]) -> None:
    found = weighted(*map(list, zip(*rows, strict=True)))
    assert -1 <= found.low <= found.difference + 1e-9
    assert found.difference - 1e-9 <= found.high <= 1
    assert found.high > found.low
    assert 1 - 1e-9 <= found.effective_n <= len(rows) + 1e-9


def test_a_sample_without_labels_cannot_be_compared() -> None:
    with pytest.raises(MetricsError, match="0 labels"):
        weighted([], [])
