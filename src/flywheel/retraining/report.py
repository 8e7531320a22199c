"""What retrain.json holds. Imports neither numpy nor torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Epoch(BaseModel, frozen=True):
    """An epoch; losses are means over images, `accuracy` is on validation. The weights of one epoch are kept."""

    epoch: int
    train_loss: float
    loss: float
    accuracy: float
    learning_rate: float
    images_per_s: float
    kept: bool


class Score(BaseModel, frozen=True):
    """Accuracy on some images with its 95 % interval and, against the parent, what changed; None where unknown."""

    n: int
    accuracy: float | None
    interval: tuple[float, float] | None
    fixed: int | None = None
    broken: int | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None


class Scores(BaseModel, frozen=True):
    """A model on the three sets of images.

    holdout: all simulation images of that side, right and wrong alike, which no model ever trains on: the fair one.
    unseen: all that no arm or ancestor trained on. Its images of the side `train` are those that were answered
    rightly, so it flatters the parent.
    """

    test: Score
    holdout: Score
    unseen: Score
    per_class: dict[str, dict[str, float]]


class ParentScores(Scores, frozen=True):
    """The parent; `validation` is its accuracy there."""

    validation: float


class Change(BaseModel, frozen=True):
    """How many images one model gets right that another does not, and the difference in accuracy (95 % interval)."""

    fixed: int
    broken: int
    difference: float
    difference_interval: tuple[float, float]


class ControlScores(Scores, frozen=True):
    """The control arm: trained on `examples` images that the parent gets right."""

    examples: int
    epochs: tuple[Epoch, ...]
    kept_epoch: int
    failures_against_control: Change | None


class Trained(BaseModel, frozen=True):
    """What the training of a candidate gave; the candidate's metadata keeps it as `metrics`."""

    hard_examples: int
    hard_example_copies: int
    dropped: dict[str, list[int]]  # ids of images left out, by reason
    epochs: tuple[Epoch, ...]
    kept_epoch: int
    before: ParentScores
    after: Scores
    control: ControlScores | None = None
    wall_s: float = 0.0


class RetrainReport(Trained, frozen=True):
    """A training, its inputs and the gate's decision. Models, feedback and data set are refs, name@digest."""

    version: Literal[1] = 1
    dataset: str
    feedback: str
    parent: str
    candidate: str
    decision: Literal["first", "promote", "keep"]
    reasons: tuple[str, ...]
    promoted: bool
