"""What came of a simulation: figures, pictures, table rows and the failures, from answers and the truth."""

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

from flywheel.data.dataset import Dataset
from flywheel.data.splits import is_holdout
from flywheel.metrics import classification
from flywheel.registry import Registry, RegistryError, Version
from flywheel.simulation import plots
from flywheel.simulation.client import Answer, Failure
from flywheel.traffic import feedback
from flywheel.traffic.feedback import Example, FeedbackError

log = logging.getLogger(__name__)

PERCENTILES = (50, 95, 99)
DETAILS = frozenset(  # of simulation.json, too long for the summary of a W&B run
    {"per_class", "confusion_matrix", "calibration", "worst", "confidence_histogram", "latency_histogram_ms"}
)
TABLE_COLUMNS = ("id", "image", "label", "prediction", "confidence", "model")


@dataclass(frozen=True)
class Result:
    """Answers and failures in the order of the simulation images, and the seconds that it took."""

    dataset: Dataset
    answers: Sequence[Answer]
    failures: Sequence[Failure]
    wall_s: float

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """Where the answered images stand in the data set, (n,) int64."""
        places = np.array([answer.place for answer in self.answers], np.int64)
        found: NDArray[np.int64] = self.dataset.indices["simulation"][places]
        return found

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """True classes, (n,) int64."""
        return np.array(self.dataset.labels[self.index])

    @cached_property
    def predictions(self) -> NDArray[np.int64]:
        """Predicted classes, (n,) int64."""
        return np.array([answer.prediction for answer in self.answers], np.int64)

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """Probabilities of the predictions, (n,) float64."""
        return np.array([answer.confidence for answer in self.answers], np.float64)

    @cached_property
    def latency_ms(self) -> NDArray[np.float64]:
        """How long each answer took, without what was tried before it, (n,) float64."""
        return 1000 * np.array([answer.latency_s for answer in self.answers], np.float64)

    @property
    def wrong(self) -> NDArray[np.int64]:
        """Which answers are wrong: indices, int64."""
        return np.flatnonzero(self.predictions != self.labels)

    @property
    def right(self) -> NDArray[np.int64]:
        """Which answers are right: indices, int64."""
        return np.flatnonzero(self.predictions == self.labels)


def examples(dataset: Dataset, index: NDArray[np.int64]) -> list[Example]:
    """Return images of a data set as feedback lists them."""
    hashes = dataset.hashes[index]
    holdout = is_holdout(hashes)
    return [
        Example(
            int(dataset.ids[place]),
            hashes[row].tobytes().hex(),
            dataset.class_names[dataset.labels[place]],
            "holdout" if holdout[row] else "train",
        )
        for row, place in enumerate(index)
    ]


def measure(result: Result, models: dict[str, Version | None], registry: Registry) -> Any:
    """Return the figures of simulation.json. `n` counts answers; an image without one is neither right nor wrong."""
    probabilities = np.stack([answer.probabilities for answer in result.answers])
    correct = result.predictions == result.labels
    unseen = _unseen(result, models, registry)
    holdout = is_holdout(result.dataset.hashes[result.index])
    return {
        **classification.evaluate(probabilities, result.labels, result.dataset.class_names),
        "worst": classification.confident_mistakes(
            probabilities, result.labels, result.dataset.ids[result.index], result.dataset.class_names
        ),
        "confidence_histogram": {
            "edges": plots.CONFIDENCE_EDGES,
            "right": np.histogram(result.confidence[result.right], plots.CONFIDENCE_EDGES)[0].tolist(),
            "wrong": np.histogram(result.confidence[result.wrong], plots.CONFIDENCE_EDGES)[0].tolist(),
        },
        "latency_histogram_ms": _histogram(result.latency_ms, plots.latency_edges(result.latency_ms)),
        "accuracy_unseen": float(correct[unseen].mean()) if unseen else None,
        "n_unseen": len(unseen),
        "accuracy_holdout": float(correct[holdout].mean()) if holdout.any() else None,
        "n_holdout": int(holdout.sum()),
        "requests_per_s": round(len(result.answers) / result.wall_s, 1),
        "latency_ms": {f"p{rank}": round(float(np.percentile(result.latency_ms, rank)), 2) for rank in PERCENTILES},
        "wall_s": round(result.wall_s, 2),
        "retries": sum(answer.attempts - 1 for answer in result.answers)
        + sum(failure.attempts - 1 for failure in result.failures),
        "errors": dict(sorted(Counter(failure.kind for failure in result.failures).items())),
        "models": dict(sorted(Counter(answer.model for answer in result.answers).items())),
        "failures": len(result.wrong),
    }


def models(result: Result, registry: Registry) -> dict[str, Version | None]:
    """Return which versions answered, by the name they gave; None for one that is not in the store."""
    found: dict[str, Version | None] = {}
    for label in sorted({answer.model for answer in result.answers}):
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
            result.dataset.images[result.index[wrong]], result.labels[wrong], result.predictions[wrong],
            confidence[wrong], result.dataset.class_names, len(result.answers), folder / "simulation_failures.png",
        ),
        plots.confidence(confidence[right], confidence[wrong], folder / "simulation_confidence.png"),
        plots.latency(result.latency_ms, folder / "simulation_latency.png"),
    ]  # fmt: skip


def table(result: Result, rows: int, seed: int) -> list[tuple[Any, ...]]:
    """Return rows of right predictions (TABLE_COLUMNS), at most `rows`, a seeded draw in the order of the images."""
    right, names = result.right, result.dataset.class_names
    chosen = np.sort(np.random.default_rng(seed).permutation(right)[:rows])
    return [
        (
            int(result.dataset.ids[result.index[i]]), np.array(result.dataset.images[result.index[i]]),
            names[result.labels[i]], names[result.predictions[i]], result.answers[i].confidence,
            result.answers[i].model,
        )
        for i in chosen
    ]  # fmt: skip


def _histogram(values: NDArray[np.float64], edges: list[float]) -> dict[str, list[float]]:
    return {"edges": edges, "count": np.histogram(values, edges)[0].tolist()}


def _unseen(result: Result, models: dict[str, Version | None], registry: Registry) -> list[int]:
    """Return which answers come from a model that was not trained on the image; none when that cannot be known."""
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
    return [i for i, answer in enumerate(result.answers) if keys[i] not in seen[answer.model]]
