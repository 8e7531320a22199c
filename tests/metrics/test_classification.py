"""The numbers of evaluation.json, against cases worked out by hand and published ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from flywheel.metrics import classification

NAMES = ("cat", "dog", "fox")


def confident(predictions: list[int], confidence: float = 0.8) -> np.ndarray:
    rows = np.full((len(predictions), 3), (1 - confidence) / 2, np.float32)
    rows[np.arange(len(predictions)), predictions] = confidence
    return rows


def evaluate(probabilities: np.ndarray, labels: np.ndarray, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    return classification.evaluate(probabilities, labels, np.arange(len(labels)), names)


def test_a_case_worked_out_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    result = evaluate(confident([0, 0, 1, 1, 1, 0]), labels)
    assert result["n"] == 6
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["confusion_matrix"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert result["per_class"]["cat"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert result["per_class"]["dog"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2})
    assert result["per_class"]["fox"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert result["ece"] == pytest.approx(0.8 - 4 / 6, abs=1e-6)
    assert result["calibration"] == {
        "confidence": pytest.approx([0.8]),
        "accuracy": pytest.approx([4 / 6]),
        "count": [6],
    }
    assert result["most_confused"] == [
        {"label": "cat", "prediction": "dog", "count": 1},
        {"label": "fox", "prediction": "cat", "count": 1},
    ]


def test_the_figures_are_scikit_learns_and_scipys() -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 4, 50), rng.dirichlet(np.ones(6), 50).astype(np.float32)
    predictions, names = probabilities.argmax(axis=1), tuple("abcdef")
    result = evaluate(probabilities, labels, names)
    assert result["confusion_matrix"] == confusion_matrix(labels, predictions, labels=range(6)).tolist()
    expected = precision_recall_fscore_support(labels, predictions, labels=range(6), zero_division=0)
    for name, *figures in zip(names, *expected, strict=True):
        assert list(result["per_class"][name].values()) == pytest.approx(figures)
    for right in range(51):
        interval = binomtest(right, 50).proportion_ci(0.9, method="wilson")
        assert classification.wilson_interval(right, 50, 0.9) == pytest.approx((interval.low, interval.high))


def test_a_class_that_does_not_occur_keeps_its_row() -> None:
    result = evaluate(confident([0, 1]), np.array([0, 1]))
    assert np.shape(result["confusion_matrix"]) == (3, 3)
    assert result["per_class"]["fox"]["support"] == 0
    assert result["most_confused"] == []


def test_balanced_accuracy_is_the_mean_recall_with_a_bound_that_knows_how_few_images_there_are() -> None:
    def balanced(*counts: tuple[int, int]) -> tuple[float, float]:
        return classification.balanced_accuracy(*np.array(counts).T)

    assert balanced((95, 95), (0, 5)) == pytest.approx((0.5, 0.4806), abs=5e-5)
    assert balanced((95, 95), (0, 5), (0, 0)) == balanced((95, 95), (0, 5))  # a class without images is left out
    assert balanced((81, 263)) == pytest.approx((81 / 263, 0.2553), abs=5e-5)  # one class: Wilson's interval
    # Of models that guess, the bound is above the truth about once in forty.
    draws = np.random.default_rng(0).binomial(30, 0.25, (1000, 4))
    above = [classification.balanced_accuracy(right, np.full(4, 30))[1] > 0.25 for right in draws]
    assert np.mean(above) < 0.04


def test_mistakes_come_most_confident_first_with_the_images_own_ids() -> None:
    probabilities = np.concatenate([confident([1], 0.6), confident([0]), confident([2], 0.9), confident([1], 0.7)])
    labels, ids = np.array([0, 0, 1, 2]), np.array([70, 10, 50, 30])
    found = classification.evaluate(probabilities, labels, ids, NAMES)["worst"]
    assert [(one["id"], one["label"], one["prediction"]) for one in found] == [
        (50, "dog", "fox"),
        (30, "fox", "dog"),
        (70, "cat", "dog"),
    ]
    assert [one["confidence"] for one in found] == pytest.approx([0.9, 0.7, 0.6])


def test_certainty_falls_into_the_last_bin() -> None:
    result = classification.calibration(confident([0, 1], 1.0), np.array([0, 1]))
    assert (result["confidence"], result["accuracy"], result["ece"]) == ([1.0], [1.0], 0.0)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (confident([0, 1]), np.array([0])),
        (confident([0, 1])[:, :2], np.array([0, 1])),
        (confident([0, 1]) * np.nan, np.array([0, 1])),
        (confident([]), np.array([], np.int64)),
    ],
)
def test_what_cannot_be_judged_is_refused(probabilities: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"predictions|finite"):
        evaluate(probabilities, labels)
