"""Draw the images that people are asked to label, and estimate the accuracy from the labels.

samples/<number>.json   {number, made, model, labeller, population, mean_confidence, images: [a Drawn each, …]}

Only these images prove an accuracy, because the probability is known with which each was drawn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from flywheel import files
from flywheel.params import StorePaths
from flywheel.traffic import labels, records, retention
from flywheel.traffic.labels import Label
from flywheel.traffic.monitor_report import Labelled

Chosen = Literal["all", "sample", "volunteered"]
Said = Mapping[str, Sequence[Label]]  # by content hash


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
    return max(_files(paths), default=0) + 1


def write(paths: StorePaths, sample: Sample) -> None:
    """Write a sample under its number."""
    files.write_json(paths.traffic_samples / f"{sample.number}.json", sample.model_dump(mode="json"))


def read(paths: StorePaths) -> Iterator[Sample]:
    """Yield the samples, the oldest first; other files are skipped, also those of version 1, which prove nothing."""
    for _, path in sorted(_files(paths).items()):
        with contextlib.suppress(OSError, ValueError):
            yield Sample.model_validate(files.read_json(path))


def unfinished(paths: StorePaths, model: str) -> Sample | None:
    """Return the newest sample of a model for the page if some of its images still wait for a label."""
    *_, newest = (None, *(one for one in read(paths) if one.model == model and one.labeller is None))
    return newest if newest is not None and waiting(paths, newest) else None


def waiting(paths: StorePaths, sample: Sample) -> list[Drawn]:
    """Return the kept images of a sample that have no label from the page, in their order."""
    done = labelled_on_page(paths, sample)
    return [one for one in sample.images if one.prediction_id not in done and has_pixels(paths, one.hash)]


def labelled_on_page(paths: StorePaths, sample: Sample) -> set[str]:
    """Return the ids of the images of a sample that have a label or a verdict from the page."""
    said = _said(paths, sample)
    return {one.prediction_id for one in sample.images if _given(sample, one.hash, said) - {labels.UNCONFIRMED}}


def disputed(paths: StorePaths, labeller: str) -> list[Drawn]:
    """Return the kept images that a labeller and somebody else labelled differently, each by the labeller's id."""
    found = []
    for image in labels.join(paths)[0].values():
        own = [label.prediction_id for label in image.given if label.labeller == labeller]
        if own and len(image.labels) > 1 and has_pixels(paths, image.hash):
            first = image.first
            found.append(
                Drawn(
                    prediction_id=own[0], hash=image.hash, probability=1.0, prediction=first["prediction"],
                    confidence=max(first["probabilities"]),
                )
            )  # fmt: skip
    return found


def draw(paths: StorePaths, model: str, budget: int, seen: Collection[str]) -> Sample | None:
    """Draw `budget` different kept images that a model answered, and record them with their probabilities.

    Left out are those in `seen` (hashes that the model was trained on) and what `make forget` removed. Images that have
    a label are not: mostly mistakes are volunteered, so the model would look better without them. Returns None if there
    would be nothing to label.
    """
    import numpy as np

    from flywheel.metrics import sampled

    kept = {path.stem for path in paths.traffic_images.glob("*/*.png")} - retention.forgotten(paths) - set(seen)
    first: dict[str, tuple[str, str, float]] = {}
    for row in records.read(paths):
        if row["model"] == model and (content := row["hash"]) in kept:
            answer = (row["prediction_id"], row["prediction"], max(row["probabilities"]))
            first[content] = min(first.get(content, answer), answer)
    if not first:
        return None
    population = sorted(first)
    confidence = np.array([first[content][2] for content in population])
    probability = sampled.probabilities(confidence, budget)
    images = [
        Drawn(
            prediction_id=first[population[i]][0], hash=population[i], probability=float(probability[i]),
            prediction=first[population[i]][1], confidence=first[population[i]][2],
        )
        for i in sampled.draw(probability, np.random.default_rng())
    ]  # fmt: skip
    sample = Sample(
        number=next_number(paths), made=files.timestamp(), model=model, population=len(population),
        mean_confidence=float(confidence.mean()), images=tuple(images),
    )  # fmt: skip
    if not waiting(paths, sample):
        return None
    write(paths, sample)
    return sample


def estimates(paths: StorePaths) -> list[Labelled]:
    """Return the accuracy by each sample that has a label, the oldest sample first."""
    said, (joined, _) = _said(paths), labels.join(paths)
    everyone = {content: image.labels for content, image in joined.items()}
    found = (_estimate(paths, sample, said, everyone) for sample in read(paths))
    return [one for one in found if one is not None]


def labelled(paths: StorePaths) -> dict[str, tuple[Chosen, float | None]]:
    """Return, by content hash, how each image was chosen that has a label for a sample, and its probability.

    The first sample counts. With a second one each image could have come by either, so every weight 1/probability is
    too large, by a factor of at most two that is nearly the same for all: a weighted mean hardly changes.
    """
    said = _said(paths)
    found: dict[str, tuple[Chosen, float | None]] = {}
    for sample in read(paths):
        everything = len(sample.images) == sample.population
        for one in sample.images:
            if _given(sample, one.hash, said) - set(labels.VERDICTS):
                found.setdefault(one.hash, ("all", None) if everything else ("sample", one.probability))
    return found


def _estimate(paths: StorePaths, sample: Sample, said: Said, everyone: Mapping[str, set[str]]) -> Labelled | None:
    import numpy as np

    from flywheel.metrics import sampled

    counted: list[tuple[Drawn, float, bool]] = []  # with right (NaN: undecided) and foreign
    lost = 0
    for one in sample.images:
        given = _given(sample, one.hash, said)
        if not given or one.hash in retention.forgotten(paths):
            if sample.labeller is None and has_pixels(paths, one.hash):
                # People label in the random order, so those before the first that waits are a random part. Those after
                # it may have their labels from an earlier sample, and that preferred images of low confidence.
                break
            lost += 1
            continue
        decided = given - set(labels.UNDECIDED)
        all_labels = decided | everyone.get(one.hash, set())
        right = float(one.prediction in decided) if decided and len(all_labels) == 1 else np.nan
        foreign = all_labels == {labels.NOT_OURS}
        counted.append((one, right, foreign))
    ours = [right for _, right, foreign in counted if not foreign]
    undecided = int(np.isnan(ours).sum())
    if len(ours) == undecided:
        return None
    drawn = [one for one, *_ in counted]
    found = sampled.accuracy(
        np.array([right for _, right, _ in counted]),
        np.array([one.confidence for one in drawn]),
        np.array([one.probability for one in drawn]),
        drawn=len(sample.images),
        population=sample.population,
        mean_confidence=sample.mean_confidence,
        foreign=np.array([foreign for *_, foreign in counted]),
    )
    return Labelled(
        made=sample.made, model=sample.model, drawn=len(sample.images), n=len(ours) - undecided,
        waiting=len(sample.images) - len(counted) - lost, undecided=undecided, foreign=len(counted) - len(ours),
        lost=lost, accuracy=round(found.accuracy, 6), interval=(round(found.low, 6), round(found.high, 6)),
    )  # fmt: skip


def _given(sample: Sample, content: str, said: Said) -> set[str]:
    """Return the labels and verdicts that an image has for a sample.

    Labels from the page for an earlier sample count for a later one, which does not show the image again.
    """
    of_page = sample.labeller is None
    return {
        label.said
        for label in said.get(content, ())
        if (label.sample <= sample.number if of_page else label.labeller == sample.labeller)
    }


def _said(paths: StorePaths, *more: Sample) -> Said:
    """Return what labellers say at present about the images of the samples."""
    content = {one.prediction_id: one.hash for sample in (*read(paths), *more) for one in sample.images}
    found: dict[str, list[Label]] = {}
    for _, of_hour in labels.read(paths):
        for made in content.keys() & of_hour.keys():
            found.setdefault(content[made], []).extend(label for label in of_hour[made].values() if label.said)
    return found


def has_pixels(paths: StorePaths, content: str) -> bool:
    """Return whether the pixels of an image are there and not forgotten."""
    return content not in retention.forgotten(paths) and records.image_path(paths, content).exists()


def _files(paths: StorePaths) -> dict[int, Path]:
    return {int(path.stem): path for path in paths.traffic_samples.glob("*.json") if path.stem.isdigit()}
