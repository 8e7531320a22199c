"""Samples of predictions that were drawn for labelling, with the probability of each: only these prove an accuracy.

samples/<number>.json   {number, made, model, labeller, population, mean_confidence, images: [a Drawn each, …]}
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from flywheel import files
from flywheel.params import StorePaths


class Drawn(BaseModel, frozen=True):
    """An answered image in a sample, and how probable it was that it would be drawn."""

    prediction_id: str
    hash: str
    probability: float
    prediction: str
    confidence: float


class Sample(BaseModel, frozen=True):
    """A sample: `images` in random order, which is the order in which people label them.

    They are drawn from `population` images of a model, whose mean confidence the accuracy needs. Only labels that were
    given for the sample count: those of `labeller`, or, if that is None, of people on the page of `make label`.
    """

    version: Literal[2] = 2
    number: int
    made: str
    model: str
    population: int
    mean_confidence: float
    images: tuple[Drawn, ...]
    labeller: str | None = None


def next_number(paths: StorePaths) -> int:
    """Return the number of the next sample."""
    return max((int(path.stem) for path in _files(paths)), default=0) + 1


def write(paths: StorePaths, sample: Sample) -> None:
    """Write a sample under its number."""
    files.write_json(paths.traffic_samples / f"{sample.number}.json", sample.model_dump(mode="json"))


def read(paths: StorePaths) -> Iterator[Sample]:
    """Yield the samples, the oldest first; other files are skipped, also those of version 1, which prove nothing."""
    for path in sorted(_files(paths), key=lambda path: int(path.stem)):
        with contextlib.suppress(OSError, ValueError):
            yield Sample.model_validate(files.read_json(path))


def _files(paths: StorePaths) -> list[Path]:
    return [path for path in paths.traffic_samples.glob("*.json") if path.stem.isdigit()]
