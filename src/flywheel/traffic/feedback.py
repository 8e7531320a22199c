"""The feedback artifact: the images that production got wrong, over all rounds, each once.

feedback.json   {"format": 1, "images": [{id, hash, label, side}, …]}, sorted

The content holds nothing that changes from round to round, so the same failures are the same version. Predictions,
confidences, models and counts go to `store/<profile>/feedback.jsonl`, which is only ever appended to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel import FlywheelError, files
from flywheel.params import Params
from flywheel.registry import Registry, RegistryError, Version

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flywheel.data.dataset import Dataset

FORMAT = 1
TYPE = "feedback"
FILE = "feedback.json"
SIDES = ("train", "holdout")


class FeedbackError(FlywheelError):
    """A feedback version cannot be read."""


@dataclass(frozen=True, order=True)
class Example:
    """A failed image: its id in the data set, the SHA-256 (hex) of its pixels, its true class, its side for ever."""

    id: int
    hash: str
    label: str
    side: str


def examples(dataset: Dataset, index: NDArray[np.int64]) -> list[Example]:
    """Return images of a data set as feedback lists them."""
    from flywheel.data import splits

    hashes = dataset.hashes[index]
    return [
        Example(
            int(dataset.ids[i]),
            content.tobytes().hex(),
            dataset.class_names[dataset.labels[i]],
            "holdout" if held_out else "train",
        )
        for i, content, held_out in zip(index, hashes, splits.is_holdout(hashes), strict=True)
    ]


def latest(params: Params, registry: Registry) -> Version | None:
    """Return the newest feedback version, or None."""
    versions = registry.versions(params.feedback_name)
    return registry.resolve(params.feedback_name) if versions else None


def read(registry: Registry, version: Version) -> tuple[Example, ...]:
    """Return the failed images of a feedback version. Raises FeedbackError or RegistryError."""
    path = registry.open(version) / FILE
    try:
        content = files.read_json(path)
        if content["format"] != FORMAT:
            raise FeedbackError(f"{version.label} is of format {content['format']}; this code reads {FORMAT}")
        listed = tuple(Example(**row) for row in content["images"])
        if not all(
            isinstance(e.id, int) and isinstance(e.label, str) and len(bytes.fromhex(e.hash)) == 32 and e.side in SIDES
            for e in listed
        ):
            raise ValueError("a row has a wrong value")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeedbackError(f"{version.label}: {path} is not a list of failures ({error}); run make simulate") from None
    return listed


def merge(before: Iterable[Example], now: Iterable[Example]) -> tuple[Example, ...]:
    """Return the images of both, sorted, each content once: the label is the latest, the id the lowest."""
    by_hash = {example.hash: example for example in before}
    for example in now:
        known = by_hash.get(example.hash, example)
        by_hash[example.hash] = replace(example, id=min(example.id, known.id))
    return tuple(sorted(by_hash.values()))


def publish(
    params: Params,
    registry: Registry,
    failures: Iterable[Example],
    inputs: Mapping[str, Sequence[str]],
    metadata: Mapping[str, Any],
) -> tuple[Version | None, int]:
    """Add failures to what is known and publish it. Returns the newest version (None: no failure ever) and the new.

    `inputs` are the data set and the models that failed; the former version is an input too, as `previous`, so that
    the lineage reaches every data set that an image comes from. Nothing new: the version that is there, untouched.
    """
    before = latest(params, registry)
    known = read(registry, before) if before else ()
    merged = merge(known, failures)
    if merged == known:
        return before, 0
    folder = params.store_paths.scratch("feedback")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        path = Path(directory) / FILE
        files.write_json(path, {"format": FORMAT, "images": [asdict(example) for example in merged]})
        version = registry.publish(
            params.feedback_name, TYPE, {FILE: path},
            metadata={**metadata, "images": len(merged), "train": sum(e.side == "train" for e in merged)},
            inputs={**inputs, "previous": [before.ref] if before else []},
        )  # fmt: skip
    return version, len(merged) - len(known)


def seen(registry: Registry, model: Version) -> frozenset[str]:
    """Return the hashes of the simulation images that a model, or one it descends from, was trained on.

    These are the images on the side `train` of every feedback version among its ancestors. Raises FeedbackError when
    one of those is not in the store, since what it lists is then unknown.
    """
    hashes: set[str] = set()
    for _, role, ref, version in registry.lineage(model):
        if version is None and role in ("feedback", "previous"):
            raise FeedbackError(f"{model.label} was trained on {ref}, which is not in the store")
        if version is not None and version.type == TYPE:
            try:
                hashes |= {example.hash for example in read(registry, version) if example.side == "train"}
            except RegistryError as error:
                raise FeedbackError(str(error)) from None
    return frozenset(hashes)
