"""The images that the gate compares models on, and what a model predicts: test, holdout, and labels of real traffic."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.data import DataError, dataset, images
from flywheel.data.dataset import Dataset, ImageRows, Images
from flywheel.data.images import Pixels
from flywheel.gate.rules import NO_ANSWER, GateLabels, Predictions
from flywheel.metrics import classification
from flywheel.metrics.comparison import DISPUTED
from flywheel.models.classifier import Classifier
from flywheel.registry import Registry, RegistryError, Version
from flywheel.traffic import feedback
from flywheel.traffic.feedback import Example, FeedbackError

log = logging.getLogger(__name__)

SCALED = 1024  # images at a time


@dataclass(frozen=True)
class GateImages:
    """Images and their labels; `kept` tells which of all test images (n,) are among them.

    Images of `traffic` have the size of the data set when they were labelled.
    """

    labels: GateLabels
    test: Images
    holdout: Images
    kept: NDArray[np.bool_]
    traffic: Sequence[Pixels] = ()


def prepare(
    registry: Registry, version: Version, models: Sequence[Version], labelled: Version | None = None
) -> GateImages:
    """Return the images of a data set, without those that one of the models was trained on as part of another.

    Within one data set no training sees test or holdout images; but where splits or sources changed, an image
    that is now in test may have been in an older version's training images. `labelled` is feedback, of which the
    sampled labels of real traffic are compared, too.
    """
    opened = dataset.open_directory(registry.open(version))
    seen = _seen(registry, models, version)
    test, simulation = opened.split("test"), opened.split("simulation")
    kept = _unseen(opened, opened.indices["test"], seen)
    held = opened.holdout & _unseen(opened, opened.indices["simulation"], seen)
    traffic = _traffic(registry, labelled, models, opened, seen) if labelled else []
    names = opened.class_names
    labels = GateLabels(
        version.ref, names, test.labels[kept], simulation.labels[held],
        left_out=int((~kept).sum() + (opened.holdout & ~held).sum()),
        traffic=np.array([DISPUTED if e.disputed else names.index(e.label) for e, _ in traffic], np.int64),
        weights=np.array([1 / (e.probability or 1) for e, _ in traffic]),
    )  # fmt: skip
    return GateImages(
        labels, test.take(kept).images, simulation.take(held).images, kept, [image for _, image in traffic]
    )


def predict(
    version: Version, model: Classifier, compared: GateImages, probabilities: NDArray[np.float32] | None = None
) -> Predictions:
    """Return what a model predicts.

    `probabilities` of all test images (n, classes), where the caller has them, are not computed again. Images of
    another size than the model's are scaled as the decoder does for it.
    """
    if model.class_names != compared.labels.class_names:
        nothing = np.zeros(0, np.int64)
        return Predictions(version.ref, version.label, model.class_names, nothing, nothing)
    test = _predict(model, compared.test) if probabilities is None else probabilities[compared.kept]
    holdout, traffic = _predict(model, compared.holdout), _predict(model, compared.traffic)
    ece = None
    if len(test) and np.isfinite(test).all():
        ece = classification.calibration(test, compared.labels.test)["ece"]
    return Predictions(
        version.ref, version.label, model.class_names, classes_of(test), classes_of(holdout), ece, classes_of(traffic)
    )


def sized(pixels: Pixels | Sequence[Pixels], model: Classifier) -> Pixels:
    """Return images as (n, s, s, 3) of the model's size."""
    size = model.image_size
    return np.stack([image if len(image) == size else images.from_array(image, size) for image in pixels])


def classes_of(probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the predicted classes (n,), NO_ANSWER where a probability is not finite."""
    finite = np.isfinite(probabilities).all(axis=1)
    return np.where(finite, probabilities.argmax(axis=1), NO_ANSWER).astype(np.int64)


def _predict(model: Classifier, pixels: Images | Sequence[Pixels]) -> NDArray[np.float32]:
    if not len(pixels):
        return np.zeros((0, len(model.class_names)), np.float32)
    if isinstance(pixels, np.ndarray | ImageRows) and pixels.shape[1] == model.image_size:
        return model.predict(pixels)
    parts = (pixels[start : start + SCALED] for start in range(0, len(pixels), SCALED))
    return np.concatenate([model.predict(sized(part, model)) for part in parts])


def _traffic(
    registry: Registry, version: Version, models: Iterable[Version], opened: Dataset, seen: set[bytes]
) -> list[tuple[Example, Pixels]]:
    """Return the sampled holdout labels of real traffic that no model was trained on, with their pixels.

    A volunteered label proves nothing: mostly it is sent because the model erred.
    """
    try:
        listed = [
            example
            for example in feedback.read(registry, version)
            if (example.source, example.side) == ("traffic", "holdout")
            and example.chosen != "volunteered"
            and example.label in opened.class_names
        ]
        if not listed:
            return []
        apart = {row.hex() for row in seen}.union(*(feedback.seen(registry, model) for model in models))
        for split in ("train", "validation"):
            apart |= {row.tobytes().hex() for row in opened.hashes[opened.indices[split]]}
        listed = [example for example in listed if example.hash not in apart]
        stored = feedback.pixels(registry, version, listed)
    except (FeedbackError, RegistryError) as error:
        log.info(f"gate: no label of real traffic is compared: {error}")
        return []
    rows = opened.simulation_rows
    pixels = ((e, opened.images[rows[e.hash]] if e.hash in rows else stored.get(e.hash)) for e in listed)
    return [(example, image) for example, image in pixels if image is not None]


def _seen(registry: Registry, models: Iterable[Version], current: Version) -> set[bytes]:
    """Return the content hashes of what other data sets in the models' ancestry hold outside test and holdout."""
    ancestors = {
        version.ref: version
        for model in models
        for *_, version in registry.lineage(model)
        if version is not None and version.type == "dataset" and version.ref != current.ref
    }
    seen: set[bytes] = set()
    for ancestor in ancestors.values():
        try:
            other = dataset.open_directory(registry.open(ancestor))
        except (RegistryError, DataError):
            continue  # damaged: what it held is not known any more
        simulation = other.indices["simulation"][~other.holdout]
        clean = other.indices.get("clean", other.indices["simulation"])[~other.holdout]
        for index in (other.indices["train"], other.indices["validation"], simulation, clean):
            seen |= {row.tobytes() for row in other.hashes[index]}
    return seen


def _unseen(opened: Dataset, index: NDArray[np.int64], seen: set[bytes]) -> NDArray[np.bool_]:
    return np.array([row.tobytes() not in seen for row in opened.hashes[index]], bool)
