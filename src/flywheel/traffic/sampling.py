"""Draw the images that people are asked to label."""

from __future__ import annotations

from collections.abc import Collection

from flywheel import files
from flywheel.params import StorePaths
from flywheel.traffic import labels, records, retention, samples
from flywheel.traffic.samples import Drawn, Sample


def unfinished(paths: StorePaths) -> Sample | None:
    """Return the newest sample if some of its images still wait for a label, without those that are not kept."""
    newest = max(samples.read(paths), key=lambda sample: sample.made, default=None)
    if newest is None:
        return None
    known = {made for _, by_prediction in labels.read(paths) for made in by_prediction}
    forgotten = retention.forgotten(paths)
    waiting = [
        drawn
        for drawn in newest.images
        if drawn.prediction_id not in known
        and drawn.hash not in forgotten
        and records.image_path(paths, drawn.hash).exists()
    ]
    return newest if waiting else None


def draw(paths: StorePaths, model: str, budget: int, seen: Collection[str]) -> Sample | None:
    """Draw `budget` different kept images that a model answered, each as probable as any other, and record them.

    Left out are images with a label, images of earlier samples, and those in `seen` (hashes that the model was trained
    on). Returns None when there is none.
    """
    import numpy as np

    labelled = {made for _, by_prediction in labels.read(paths) for made in by_prediction}
    left_out = {drawn.hash for sample in samples.read(paths) for drawn in sample.images} | set(seen)
    left_out |= retention.forgotten(paths)
    kept = {path.stem for path in paths.traffic_images.glob("*/*.png")}
    first: dict[str, str] = {}
    for row in records.read(paths):
        if row["prediction_id"] in labelled:
            left_out.add(row["hash"])
        elif row["model"] == model and row["hash"] in kept:
            first[row["hash"]] = min(first.get(row["hash"], row["prediction_id"]), row["prediction_id"])
    population = sorted(first.keys() - left_out)
    if not population:
        return None
    chosen = np.random.default_rng().permutation(len(population))[:budget]
    drawn = [
        Drawn(prediction_id=first[population[i]], hash=population[i], probability=min(budget / len(population), 1.0))
        for i in chosen
    ]
    sample = Sample(made=files.timestamp(), model=model, population=len(population), images=tuple(drawn))
    samples.write(paths, sample)
    return sample
