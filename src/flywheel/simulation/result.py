"""The result of a simulation: figures, plots and table rows, from predictions and true classes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.data.dataset import Dataset, ImageRows
from flywheel.data.splits import is_holdout
from flywheel.metrics import classification
from flywheel.registry import Registry, RegistryError, Version
from flywheel.simulation import plots
from flywheel.simulation.client import NoAnswer, Prediction
from flywheel.traffic import feedback
from flywheel.traffic.feedback import FeedbackError

log = logging.getLogger(__name__)

PERCENTILES = (50, 95, 99)
TABLE_COLUMNS = ("id", "image", "label", "prediction", "confidence", "model")


@dataclass(frozen=True)
class Result:
    """Predictions, and images without one, in the order of the simulation images, and the seconds that all took."""

    dataset: Dataset
    predictions: Sequence[Prediction]
    no_answers: Sequence[NoAnswer]
    wall_s: float
    drift: str = "data"

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """Indices of the predicted images into the data set, (n,) int64."""
        found: NDArray[np.int64] = self.dataset.traffic(self.drift)[[one.index for one in self.predictions]]
        return found

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """True classes, (n,) int64."""
        return np.array(self.dataset.labels[self.index])

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """Predicted classes, (n,) int64."""
        return np.array([one.class_id for one in self.predictions], np.int64)

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """Probabilities of the predicted classes, (n,) float64."""
        return np.array([one.confidence for one in self.predictions], np.float64)

    @cached_property
    def latency_ms(self) -> NDArray[np.float64]:
        """Latency of the last attempt, (n,) float64."""
        return 1000 * np.array([one.latency_s for one in self.predictions], np.float64)

    @property
    def wrong(self) -> NDArray[np.int64]:
        """Indices of the wrong predictions, int64."""
        return np.flatnonzero(self.classes != self.labels)

    @property
    def right(self) -> NDArray[np.int64]:
        """Indices of the right predictions, int64."""
        return np.flatnonzero(self.classes == self.labels)


def measure(result: Result, models: dict[str, Version | None], registry: Registry) -> dict[str, Any]:
    """Return the figures of a SimulationReport. `n` counts predictions; an image without one is not counted."""
    names, confidence, latency_ms = result.dataset.class_names, result.confidence, result.latency_ms
    probabilities = np.stack([one.probabilities for one in result.predictions])
    correct = result.classes == result.labels
    unseen = _unseen(result, models, registry)
    holdout = is_holdout(result.dataset.hashes[result.index])
    edges = plots.latency_edges(latency_ms)
    return {
        **classification.evaluate(probabilities, result.labels, result.dataset.ids[result.index], names),
        "confidence_histogram": {
            "edges": plots.CONFIDENCE_EDGES,
            "right": np.histogram(confidence[result.right], plots.CONFIDENCE_EDGES)[0].tolist(),
            "wrong": np.histogram(confidence[result.wrong], plots.CONFIDENCE_EDGES)[0].tolist(),
        },
        "latency_histogram_ms": {"edges": edges, "count": np.histogram(latency_ms, edges)[0].tolist()},
        "accuracy_unseen": float(correct[unseen].mean()) if unseen else None,
        "n_unseen": len(unseen),
        "accuracy_holdout": float(correct[holdout].mean()) if holdout.any() else None,
        "n_holdout": int(holdout.sum()),
        "requests_per_s": round(len(correct) / result.wall_s, 1),
        "latency_ms": {f"p{rank}": round(float(np.percentile(latency_ms, rank)), 2) for rank in PERCENTILES},
        "wall_s": round(result.wall_s, 3),
        "retries": sum(one.attempts - 1 for part in (result.predictions, result.no_answers) for one in part),
        "errors": dict(sorted(Counter(one.kind for one in result.no_answers).items())),
        "models": dict(sorted(Counter(one.model for one in result.predictions).items())),
        "failures": len(result.wrong),
    }


def models(result: Result, registry: Registry) -> dict[str, Version | None]:
    """Return the versions that predicted, by the name the server gave; None for one that is not in the store."""
    found: dict[str, Version | None] = {}
    for label in sorted({one.model for one in result.predictions}):
        try:
            found[label] = registry.resolve(label)
        except RegistryError:
            found[label] = None
    return found


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw the failures, the confidence of right and wrong predictions, and the latency. Returns the files."""
    wrong, right, confidence = result.wrong, result.right, result.confidence
    return [
        plots.failures(
            ImageRows(result.dataset.images, index=result.index[wrong]), result.labels[wrong], result.classes[wrong],
            confidence[wrong], result.dataset.class_names, len(result.predictions),
            folder / "simulation_failures.png",
        ),
        plots.confidence(confidence[right], confidence[wrong], folder / "simulation_confidence.png"),
        plots.latency(result.latency_ms, folder / "simulation_latency.png"),
    ]  # fmt: skip


def table(result: Result, rows: int, seed: int) -> list[tuple[Any, ...]]:
    """Return rows of right predictions (TABLE_COLUMNS), at most `rows`, a seeded draw in the order of the images."""
    names, dataset = result.dataset.class_names, result.dataset
    chosen = np.sort(np.random.default_rng(seed).permutation(result.right)[:rows])
    return [
        (
            int(dataset.ids[i]), np.array(dataset.images[i]), names[label], names[one.class_id], one.confidence,
            one.model,
        )
        for i, label, one in zip(
            result.index[chosen], result.labels[chosen], (result.predictions[row] for row in chosen), strict=True
        )
    ]  # fmt: skip


def _unseen(result: Result, models: dict[str, Version | None], registry: Registry) -> list[int]:
    """Return which predictions come from a model that was not trained on the image; none when that is unknown."""
    seen: dict[str, frozenset[str]] = {}
    for label, version in models.items():
        try:
            if version is None:
                raise FeedbackError(f"{label} is not in the store")
            seen[label] = feedback.seen(registry, version)
        except FeedbackError as error:
            log.info(f"simulate: accuracy on unseen images cannot be told: {error}")
            return []
    keys = [row.tobytes().hex() for row in result.dataset.hashes[result.index]]
    return [i for i, one in enumerate(result.predictions) if keys[i] not in seen[one.model]]
