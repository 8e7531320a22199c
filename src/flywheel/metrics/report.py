"""The figures of the metrics as reports hold them. Imports neither numpy nor scipy."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel


@dataclass(frozen=True)
class Difference:
    """Accuracy of a model minus accuracy of another on the same images, with a score interval."""

    n: int
    fixed: int
    broken: int
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class WeightedDifference(Difference):
    """The difference on images with weights, which are worth `effective_n` of equal weight.

    Of `disputed` images the right class is unknown; the interval holds whatever it is.
    """

    effective_n: float
    disputed: int


class ClassFigures(BaseModel, frozen=True):
    """How well a class is recognized; `support` counts its images."""

    precision: float
    recall: float
    f1: float
    support: int


class Calibration(BaseModel, frozen=True):
    """Mean confidence, accuracy and number of images of each bin of confidence that is not empty."""

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]


class ConfusedPair(BaseModel, frozen=True):
    """How many images of the class `label` were predicted as `prediction`."""

    label: str
    prediction: str
    count: int


class Mistake(BaseModel, frozen=True):
    """A wrong prediction; `id` is the image's in its split."""

    id: int
    label: str
    prediction: str
    confidence: float


class Figures(BaseModel, frozen=True):
    """What `classification.evaluate` returns. `interval` holds 95 %."""

    n: int
    accuracy: float
    interval: tuple[float, float]
    per_class: dict[str, ClassFigures]
    confusion_matrix: tuple[tuple[int, ...], ...]
    ece: float
    calibration: Calibration
    most_confused: tuple[ConfusedPair, ...]
    worst: tuple[Mistake, ...]
