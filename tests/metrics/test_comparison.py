"""Two models on the same images: the interval against published examples and its own properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.metrics.comparison import compare, paired_difference

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
