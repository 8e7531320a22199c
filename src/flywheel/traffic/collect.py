"""The command `collect`: join labels with records and images, and publish what is new as feedback.

It always reads all labels that are kept: the same labels give the same version, however often and in which order they
came. It keeps in memory what has a label, not the log. A run that is killed published everything or nothing.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flywheel import files
from flywheel.params import Params, StorePaths
from flywheel.pipeline import stage
from flywheel.registry import Registry, Version
from flywheel.traffic import TrafficError, feedback, labels, records, retention, sampling
from flywheel.traffic.feedback import Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flywheel.data.dataset import Dataset

log = logging.getLogger(__name__)

ROWS = 1_000  # of a file of labels at a time
SHOWN = 5  # rejected rows, disputed images


@dataclass(frozen=True)
class Collected:
    """What a run of `collect` found: the newest feedback, how many images are new, counts by what became of them."""

    feedback: Version | None
    new: int
    counts: Mapping[str, int]


def run(params: Params, registry: Registry, labels_file: Path | None = None) -> Collected:
    """Publish labelled traffic as feedback. Raises StageError, TrafficError, FeedbackError, files.Locked."""
    with files.lock(params.store_paths.lock("collect")):
        registry.refresh()
        data = stage.dataset_of(params, registry)

        from flywheel.data import dataset

        opened = dataset.open_directory(registry.open(data))
        if labels_file is not None:
            _read_file(params, labels_file, opened.class_names)
        found, unknown = labels.join(params.store_paths)
        before = feedback.latest(params, registry)
        published = {e.hash: e for e in feedback.read(registry, before)} if before else {}
        _list_disputed(found)
        groups = records.groups(params.store_paths, found.keys() | published.keys())
        stored = {e.hash for e in published.values() if e.pixels is not None}
        examples, images, counts = examples_of(params.store_paths, found, groups, opened, stored)
        # An image that was published before its group was known.
        examples += [
            published[content].model_copy(update={"side": side_of(groups[content])})
            for content in groups.keys() & published.keys() - {example.hash for example in examples}
        ]
        counts["without a record"] += unknown
        refs = sorted({image.first["model"] for image in found.values() if image.labels})
        models = [registry.resolve(ref) for ref in refs if registry.has(ref)]
        version, new = feedback.publish(
            params, registry, examples,
            {"dataset": [data.ref], "model": [model.ref for model in models]}, {"stage": "collect"}, images,
            withdrawn={image.hash for image in found.values() if not image.labels},
        )  # fmt: skip
        if version is not None and version != before:
            from flywheel.tracking.runs import Tracker

            name = f"collect-{datetime.now(UTC):%Y%m%d-%H%M%S}"
            with Tracker(params, registry).run("collect", name, {"dataset": data.ref}, used=(data, *models)) as run:
                pixels = [registry.resolve(ref) for ref in version.inputs.get("pixels", ())]
                run.made(version, *(one for one in pixels if one.metadata["shared"]))
                run.summarize({"new": new, **counts})
        return Collected(version, new, counts)


def examples_of(
    paths: StorePaths,
    found: Mapping[str, labels.LabelledImage],
    groups: Mapping[str, Collection[str]],
    opened: Dataset,
    stored: Collection[str] = (),
) -> tuple[list[Example], dict[str, NDArray[np.uint8]], Counter[str]]:
    """Return what feedback lists, by hash the pixels that neither the data set nor `stored` holds, and counts."""
    chosen_for = sampling.labelled(paths)
    forgotten = retention.forgotten(paths)
    ids = {content: int(opened.ids[row]) for content, row in opened.simulation_rows.items()}
    counts: Counter[str] = Counter()
    examples: list[Example] = []
    images: dict[str, NDArray[np.uint8]] = {}
    for image in found.values():
        side = side_of(groups.get(image.hash, [image.hash]))
        if not image.labels or image.hash in forgotten:
            counts["without a label that counts"] += 1
        elif not image.labels <= set(opened.class_names):
            counts["of a class that the data set does not have"] += 1
        elif image.hash not in ids and image.hash not in stored and not _load(paths, image.hash, opened, images):
            counts["without a kept image"] += 1
        else:
            disputed = len(image.labels) > 1
            counts["in groups on both sides" if side == "both" else "disputed" if disputed else "labelled"] += 1
            chosen, probability = chosen_for.get(image.hash, ("volunteered", None))
            examples.append(
                Example(
                    hash=image.hash,
                    label=min(image.labels),
                    side=side,
                    source="traffic",
                    chosen=chosen,
                    probability=probability,
                    id=ids.get(image.hash),
                    prediction=image.first["prediction"],
                    confidence=max(image.first["probabilities"]),
                    disputed=disputed,
                )
            )
    return examples, images, counts


def _list_disputed(found: Mapping[str, labels.LabelledImage]) -> None:
    """Log who says what about the images whose labellers disagree."""
    disputed = [image for image in found.values() if len(image.labels) > 1]
    for image in disputed[:SHOWN]:
        said = ", ".join(sorted({f"{label.labeller} says {label.label}" for label in image.given}))
        log.info(f"collect: disputed: {image.given[0].prediction_id}: {said}")
    if len(disputed) > SHOWN:
        log.info(f"collect: disputed: {len(disputed) - SHOWN:,} more")


def _load(paths: StorePaths, content: str, opened: Dataset, images: dict[str, NDArray[np.uint8]]) -> bool:
    """Add the pixels of a kept image to `images`. Returns whether they are kept, undamaged and of the right size."""
    pixels = records.read_image(paths, content)
    if pixels is None or len(pixels) != opened.image_size:
        return False
    images[content] = pixels
    return True


def side_of(hashes: Collection[str]) -> Literal["train", "holdout", "both"]:
    """Return the side of an image by the hashes (hex) of its groups, or of its pixels if it has none."""
    import numpy as np

    from flywheel.data import splits

    held_out = splits.is_holdout(np.array([list(bytes.fromhex(each)) for each in hashes], np.uint8))
    return "holdout" if held_out.all() else "both" if held_out.any() else "train"


def _read_file(params: Params, path: Path, class_names: Sequence[str]) -> None:
    """Take the labels of a CSV file with the columns prediction_id, label and, if you like, labeller."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := {"prediction_id", "label"} - set(reader.fieldnames or ()):
                raise TrafficError(f"{path} has no column {min(missing)}; its first line must name prediction_id,label")
            # An empty label takes a label back; an empty labeller is the default one.
            rows = [{k: v or None for k, v in row.items() if v or k == "label"} for row in reader]
    except OSError as error:
        raise TrafficError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TrafficError(f"{path} cannot be read: {error}") from None
    taker = labels.LabelLog(params.store_paths, "file", lambda: class_names, params.traffic.max_age_days)
    answers = [answer for start in range(0, len(rows), ROWS) for answer in taker.add(rows[start : start + ROWS])]
    counts = Counter(answer.status for answer in answers)
    log.info(f"collect: {path.name}: " + ", ".join(f"{count:,} {status}" for status, count in counts.items()))
    rejected = [answer for answer in answers if answer.status not in (*labels.STORED, "duplicate")]
    for answer in rejected[:SHOWN]:
        log.info(f"collect: {answer.prediction_id}: {answer.reason}")
