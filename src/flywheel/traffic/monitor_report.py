"""What monitor.json holds. Imports neither numpy nor torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Alarm(BaseModel, frozen=True):
    """The alarm for a model. `evidence` raises it at `limit`; presumed accuracy is that of the newest predictions.

    Harm is a presumed accuracy below `lowest_accuracy` in the long run. `none`: the model gave no prediction to judge.
    `reference_confidence` is the mean confidence on the test images, in which it presumes `reference_accuracy`.
    """

    state: Literal["alarm", "quiet", "none"] = "none"
    since: str | None = None
    evidence: float = 0.0
    limit: float | None = None
    presumed_accuracy: float | None = None
    newest: int = 0
    reference_accuracy: float | None = None
    reference_n: int = 0
    reference_confidence: float | None = None
    lowest_accuracy: float | None = None


class Distance(BaseModel, frozen=True):
    """The total variation distance of production from the test images, and what chance alone gives on average."""

    distance: float
    by_chance: float


class Row(BaseModel, frozen=True):
    """The predictions of a model from `start` to `end`. `evidence` is the highest of that time."""

    model: str
    start: str
    end: str
    n: int
    presumed_accuracy: float
    evidence: float
    confidence: float
    classes_changed: Distance
    confidence_changed: Distance


class Labelled(BaseModel, frozen=True):
    """The accuracy of a model, with its 95 % interval, by a sample that was drawn at `made`.

    `n` of `drawn` images have a label for certain, `waiting` may get one, `undecided` are in dispute or nobody is sure,
    `foreign` belong to no class, and `lost` have no label and are not on disk any more.
    """

    made: str
    model: str
    drawn: int
    n: int
    waiting: int
    undecided: int = 0
    foreign: int = 0
    lost: int = 0
    accuracy: float
    interval: tuple[float, float]


class Watched(BaseModel, frozen=True):
    """What is known of a model. `predictions` counts each content once; `left_out` those that do not count, by why."""

    model: str | None = None
    label: str = ""
    predictions: int = 0
    left_out: dict[str, int] = Field(default_factory=dict)
    alarm: Alarm = Alarm()
    labelled: Labelled | None = None


class Promotion(BaseModel, frozen=True):
    """A model that went into production."""

    at: str
    model: str


class Traffic(BaseModel, frozen=True):
    """The images kept, the answers not recorded since the server started, and the bytes of records and images."""

    kept: int
    dropped: int | None
    bytes: int


class MonitorReport(Watched, frozen=True):
    """The production model, and the `others` that have records; `change` are the rows of all, the oldest first.

    `unwatched` tells why a model has no reference; `samples` are all that have a label.
    """

    version: Literal[1] = 1
    at: str
    others: tuple[Watched, ...] = ()
    unwatched: dict[str, str] = Field(default_factory=dict)
    change: tuple[Row, ...] = ()
    samples: tuple[Labelled, ...] = ()
    promotions: tuple[Promotion, ...] = ()
    traffic: Traffic
