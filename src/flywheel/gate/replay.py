"""What the candidate and production answer to the newest captured images of real traffic, and how fast.

Nobody knows the right answers, so nothing is judged but that the candidate answers, and its latency.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from flywheel.data.dataset import Images
from flywheel.data.images import Pixels
from flywheel.gate.predictions import classes_of, sized
from flywheel.gate.report import ChangedClass, Replay, Reported
from flywheel.gate.rules import NO_ANSWER
from flywheel.models.classifier import Classifier
from flywheel.params import StorePaths
from flywheel.traffic import records, retention

BATCH = 16
TIMED, WARM = 30, 3  # single images by which the latency is measured, and before
CHANGES = 5  # the most frequent changes of the class, which are reported
CRASHED = -2  # the class of an image on which a model raised an exception


def captured(paths: StorePaths, count: int) -> dict[str, Pixels]:
    """Return the newest captured images by content hash, the newest first; damaged and forgotten ones are skipped."""
    kept = {path.stem for path in paths.traffic_images.glob("*/*.png")} - retention.forgotten(paths)
    found: dict[str, Pixels] = {}
    for rows in records.newest_hours(paths) if count and kept else ():
        for _, content in sorted(((r["prediction_id"], r["hash"]) for r in rows if r["hash"] in kept), reverse=True):
            if len(found) < count and content in kept:
                kept.discard(content)
                if (image := records.read_image(paths, content)) is not None:
                    found[content] = image
        if len(found) == count or not kept:
            break
    return found


def run(
    candidate: Classifier, production: Classifier | None, images: Mapping[str, Pixels], test: Images
) -> tuple[Replay, Reported]:
    """Return what both answer to captured images, by content hash, and their latency.

    The latency is that of single images, captured ones or, where there are none, the first of `test`. The models take
    turns, so that what else the machine does slows both.
    """
    models = [candidate, production] if production else [candidate]
    hashes, pixels = list(images), list(images.values())
    answers: list[list[int]] = [[] for _ in models]
    for start in range(0, len(pixels), BATCH):
        for model, found in zip(models, answers, strict=True):
            found += _answers(model, pixels[start : start + BATCH])
    failed = [content for content, answer in zip(hashes, answers[0], strict=True) if answer < 0]
    pairs: Counter[tuple[str, str]] = Counter()
    if production:
        names = zip(*answers, strict=True)
        pairs.update(
            (production.class_names[old], candidate.class_names[new]) for new, old in names if min(new, old) >= 0
        )
    changed = [ChangedClass(production=o, candidate=n, count=count) for (o, n), count in pairs.most_common() if o != n]
    answered: list[Pixels] = [image for image, *found in zip(pixels, *answers, strict=True) if min(found) > CRASHED]
    replay = Replay(
        images=len(pixels), crashed=answers[0].count(CRASHED), not_finite=answers[0].count(NO_ANSWER),
        failed=failed[0] if failed else None, compared=pairs.total(),
        agreed=pairs.total() - sum(one.count for one in changed), changed=tuple(changed[:CHANGES]),
    )  # fmt: skip
    return replay, _latency(models, answered or list(test[:1]))


def _answers(model: Classifier, images: Sequence[Pixels]) -> list[int]:
    """Return the predicted classes; after an exception each image is tried alone."""
    try:
        return [int(answer) for answer in classes_of(model.predict(sized(images, model)))]
    except Exception:  # any exception would fail a prediction in production
        return [answer for image in images for answer in _answers(model, [image])] if len(images) > 1 else [CRASHED]


def _latency(models: Sequence[Classifier], images: Sequence[Pixels]) -> Reported:
    """Return the median times of single images, and the median of their ratios, candidate to production."""
    times: list[list[float]] = []
    for image in itertools.islice(itertools.cycle(images), WARM + TIMED):
        times.append([])
        for model, pixels in [(model, sized([image], model)) for model in models]:
            started = time.perf_counter()
            model.predict(pixels)
            times[-1].append(1000 * (time.perf_counter() - started))
    medians = [round(statistics.median(column), 3) for column in zip(*times[WARM:], strict=True)]
    ratio = None
    if len(medians) > 1:
        ratio = round(statistics.median(new / old for new, old in times[WARM:]), 3)
    return Reported(latency_ms=dict(zip(("candidate", "production"), medians, strict=False)), latency_ratio=ratio)
