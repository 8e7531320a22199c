"""What retrain.json holds. Imports neither numpy nor torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel

ARM_TITLES = {
    "all": "all labelled",
    "failures": "the failures",
    "random": "as many random",
    "none": "only more epochs",
    "right": "as many right answers",
}


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
    unseen: all that no arm or ancestor trained on; with `failures`, its images of the side `train` are those that
    were answered rightly, so it flatters the parent.
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


class ArmScores(Scores, frozen=True):
    """Another arm: as many optimizer steps from the same parent on other production images.

    `examples` counts these, `labels` those that had to be labelled to find them. `gain` is the candidate against this
    arm on holdout. Version 1 of the report had one arm, `right`: as many images that the parent gets right.
    """

    arm: Literal["all", "failures", "random", "none", "right"] = "right"
    examples: int
    labels: int | None = None
    epochs: tuple[Epoch, ...]
    kept_epoch: int
    gain: Change | None = None


class LabelCounts(BaseModel, frozen=True):
    """How many labelled images of the side `train` there are, by the first answer; disputed ones train nothing."""

    right: int
    wrong: int
    disputed: int


class Trained(BaseModel, frozen=True):
    """What the training of a candidate gave; the candidate's metadata keeps it as `metrics`.

    `arm` is what it was trained on: all labelled images or the `hard_examples`, those answered wrongly. `control` is
    the arm `random`; `arms` holds all others, where a study trained them.
    """

    arm: Literal["all", "failures"] = "failures"
    hard_examples: int
    examples: LabelCounts | None = None  # unknown in version 1
    dropped: dict[str, list[int | str]]  # ids of images left out, by reason
    epochs: tuple[Epoch, ...]
    kept_epoch: int
    before: ParentScores
    after: Scores
    control: ArmScores | None = None
    arms: dict[str, ArmScores] = {}
    wall_s: float = 0.0

    @property
    def labels(self) -> int | None:
        """How many images were labelled; the failures, too, are found by labelling all."""
        return self.examples.right + self.examples.wrong if self.examples else None

    def rows(self) -> Iterator[tuple[str, int | None, Scores]]:
        """Yield (what it was trained on, labels needed, scores) of the parent, the candidate and each other arm."""
        yield "before", None, self.before
        yield ARM_TITLES[self.arm], self.labels, self.after
        for arm in self.arms.values() or filter(None, [self.control]):
            yield ARM_TITLES[arm.arm], arm.labels, arm


class RetrainReport(Trained, frozen=True):
    """A training, its inputs and the gate's decision. Models, feedback and data set are refs, name@digest."""

    version: Literal[1, 2] = 2
    dataset: str
    feedback: str
    parent: str
    candidate: str
    decision: Literal["first", "promote", "keep"]
    reasons: tuple[str, ...]
    promoted: bool
