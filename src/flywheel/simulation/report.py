"""What simulation.json holds. Imports neither numpy nor torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from flywheel.metrics.report import Figures

DETAILS = frozenset(  # too long for the summary of a W&B run
    {"per_class", "confusion_matrix", "calibration", "worst", "confidence_histogram", "latency_histogram_ms"}
)


class ConfidenceHistogram(BaseModel, frozen=True):
    """How many right and wrong predictions have a confidence between two edges."""

    edges: tuple[float, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]


class Histogram(BaseModel, frozen=True):
    """How many values lie between two edges."""

    edges: tuple[float, ...]
    count: tuple[int, ...]


class Percentiles(BaseModel, frozen=True):
    """Percentiles of a distribution."""

    p50: float
    p95: float
    p99: float


class SimulationReport(Figures, frozen=True):
    """The predictions of a simulation: `n` counts them, `errors` the images without one, by kind.

    `labels` counts those sent to the server (simulate.truth=api), by what became of them.
    """

    version: Literal[1] = 1
    at: str
    dataset: str
    drift: str = "data"
    url: str | None = None
    accuracy_unseen: float | None
    n_unseen: int
    accuracy_holdout: float | None
    n_holdout: int
    confidence_histogram: ConfidenceHistogram
    latency_histogram_ms: Histogram
    latency_ms: Percentiles
    requests_per_s: float
    wall_s: float
    retries: int
    errors: dict[str, int]
    models: dict[str, int]
    failures: int
    feedback: str | None
    feedback_new: int
    labels: dict[str, int] = Field(default_factory=dict)
