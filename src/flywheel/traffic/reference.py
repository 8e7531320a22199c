"""What a model does on test images, which `make monitor` compares production with; computed once for each model."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from flywheel import FlywheelError, files
from flywheel.data import DataError, dataset
from flywheel.metrics import MetricsError
from flywheel.metrics import alarm as alarms
from flywheel.metrics.alarm import Reference
from flywheel.models import ModelError
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.registry import Registry, RegistryError, Version
from flywheel.traffic import feedback
from flywheel.traffic.observed import CONFIDENCE_BINS, Prefixes, confidence_bins

log = logging.getLogger(__name__)


class ModelReference(BaseModel, frozen=True):
    """A model's answers to the test images of a data set: for the alarm, by class, and by confidence in equal bins.

    `problem` tells why there is no alarm for the model.
    """

    version: int = 1
    model: str
    dataset: str
    tolerance: float
    alarm: Reference | None = None
    problem: str = ""
    predicted: tuple[int, ...] = ()
    confidence: tuple[int, ...] = ()


def prefixes(hashes: NDArray[np.uint8]) -> Prefixes:
    """Return the prefixes of content hashes (n, 32) uint8."""
    return np.ascontiguousarray(hashes[:, :8]).view(">u8").ravel().astype(np.uint64)


def trained_on(registry: Registry, model: Version) -> Prefixes:
    """Return the prefixes of the images that a model or one of its ancestors was trained on, sorted.

    Those of versions that are not in the store are not known any more.
    """
    found = [np.zeros(0, np.uint64)]
    for *_, version in registry.lineage(model):
        if version is not None and version.type == "dataset":
            with contextlib.suppress(RegistryError, DataError):
                opened = dataset.open_directory(registry.open(version))
                found += [prefixes(opened.hashes[opened.indices[split]]) for split in ("train", "validation")]
    try:
        found.append(np.array([int(content[:16], 16) for content in feedback.seen(registry, model)], np.uint64))
    except FlywheelError as error:
        log.info(f"monitor: images that {model.label} was trained on are counted: {error}")
    return np.unique(np.concatenate(found))


def load(params: Params, registry: Registry, ref: str) -> ModelReference:
    """Return the reference of a model, from its file or computed. Raises FlywheelError when model or data are gone."""
    path = params.store_paths.monitor / f"{ref.rpartition('@')[2]}.json"
    tolerance = params.monitor.tolerance
    with contextlib.suppress(OSError, ValueError):
        known = ModelReference.model_validate(files.read_json(path))
        if (known.model, known.tolerance) == (ref, tolerance):
            return known
    model = registry.resolve(ref)
    own = model.input("dataset")
    data = registry.resolve(own) if own and registry.has(own) else stage.dataset_of(params, registry)
    made = _compute(registry, model, data, tolerance)
    files.write_json(path, made.model_dump(mode="json"))
    return made


def _compute(registry: Registry, model: Version, data: Version, tolerance: float) -> ModelReference:
    from flywheel.models import classifier

    opened, loaded = dataset.open_directory(registry.open(data)), classifier.load(registry.open(model))
    base = ModelReference(model=model.ref, dataset=data.ref, tolerance=tolerance)
    if (loaded.class_names, loaded.image_size) != (opened.class_names, opened.image_size):
        raise ModelError(f"{model.label} has other classes or another image size than {data.label}")
    known = np.isin(prefixes(opened.hashes[opened.indices["test"]]), trained_on(registry, model))
    test = opened.split("test").take(~known)
    log.info(f"monitor: {model.label} answers {len(test.labels):,} test images, once, as its reference")
    if not len(test.labels):
        return base.model_copy(update={"problem": f"{data.label} has no test images for it"})
    probabilities = loaded.predict(test.images)
    try:
        found = alarms.reference(probabilities, test.labels, tolerance)
    except MetricsError as error:
        return base.model_copy(update={"problem": str(error)})
    predicted = np.bincount(probabilities.argmax(axis=1), minlength=len(loaded.class_names))
    confidence = np.bincount(confidence_bins(probabilities.max(axis=1)), minlength=CONFIDENCE_BINS)
    return base.model_copy(
        update={"alarm": found, "predicted": tuple(predicted.tolist()), "confidence": tuple(confidence.tolist())}
    )
