"""The feedback artifact: the labelled production images of all rounds, each content once.

feedback.json     {"format": 2, "images": [an Example each], "failures": [ids]}, sorted

The pixels that no data set holds are an artifact of their own, so that labels can be on W&B and images need not be
(traffic.share):

pixels-0000.npy   (at most 1,024, s, s, 3) uint8. Only the last file ever grows.

The content holds nothing that changes from round to round: the prediction is the first one, so the same labels are
the same version. Later predictions, models and counts go to `store/<profile>/feedback.jsonl`, which is only ever
appended to. Format 1 lists failures alone, with id, hash, label and side.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from flywheel import FlywheelError, files
from flywheel.params import Params
from flywheel.registry import Registry, RegistryError, Version
from flywheel.traffic import retention

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flywheel.data.dataset import Dataset

TYPE, PIXELS_TYPE = "feedback", "pixels"
FILE, SHARD = "feedback.json", "pixels-{:04}.npy"
SHARD_IMAGES = 1024


class FeedbackError(FlywheelError):
    """A feedback version cannot be read."""


class Example(BaseModel, frozen=True):
    """A labelled production image.

    `hash` is the SHA-256 (hex) of its pixels, `id` its id in the data set that holds it, `pixels` its index in the
    files of pixels if none does. `prediction` and `confidence` are of its first answer. `chosen` tells what the label
    may prove: `all` (everything was labelled), `sample` (drawn with `probability`) or `volunteered` (unknown
    probability, mostly a mistake). While labellers disagree, the label is `disputed`: nothing is trained on it. An
    image whose groups, or its hash before a group was known, put it on different sides is on `both` for good: it is
    neither trained on nor compared.
    """

    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    label: str
    side: Literal["train", "holdout", "both"]
    source: Literal["simulation", "traffic"] = "simulation"
    chosen: Literal["all", "sample", "volunteered"] = "all"
    probability: float | None = None
    id: int | None = None
    pixels: int | None = None
    prediction: str | None = None
    confidence: float | None = None
    disputed: bool = False

    @property
    def right(self) -> bool:
        """Whether the first answer was the label. An unknown answer (format 1) was wrong."""
        return self.prediction == self.label


class Feedback(BaseModel, frozen=True):
    """What feedback.json holds."""

    format: Literal[1, 2]
    images: tuple[Example, ...]


def examples(
    dataset: Dataset,
    index: NDArray[np.int64],
    predicted: Sequence[int] | NDArray[np.int64] | None = None,
    confidence: Iterable[float] = (),
    *,
    label_noise: float = 0.0,
    seed: int = 0,
) -> list[Example]:
    """Return images of a data set as feedback lists them; `predicted` are the classes answered, if known.

    `label_noise` is the fraction of labels that become another class, by a draw that depends on seed and content only.
    """
    from flywheel.data import splits

    names, hashes = dataset.class_names, dataset.hashes[index]
    answers = itertools.repeat((None, None)) if predicted is None else zip(predicted, confidence, strict=True)
    return [
        Example(
            hash=content.tobytes().hex(),
            label=names[_label(int(dataset.labels[i]), content, len(names), label_noise, seed)],
            side="holdout" if held_out else "train",
            id=int(dataset.ids[i]),
            prediction=None if answer is None else names[answer],
            confidence=None if sure is None else round(float(sure), 6),
        )
        for i, content, held_out, (answer, sure) in zip(index, hashes, splits.is_holdout(hashes), answers, strict=False)
    ]


def latest(params: Params, registry: Registry) -> Version | None:
    """Return the newest feedback version, or None."""
    return registry.resolve(params.feedback_name) if registry.count(params.feedback_name) else None


def read(registry: Registry, version: Version) -> tuple[Example, ...]:
    """Return the images of a feedback version. Raises FeedbackError or RegistryError."""
    path = registry.open(version) / FILE
    try:
        return Feedback.model_validate(files.read_json(path)).images
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FeedbackError(f"{version.label}: {path} cannot be read ({reason}); run make simulate") from None


def pixels(registry: Registry, version: Version, listed: Iterable[Example]) -> dict[str, NDArray[np.uint8]]:
    """Return the images (s, s, 3), by content hash, that are in the files of pixels of a version."""
    import numpy as np

    stored = _pixels_of(registry, version)
    if stored is None:
        return {}
    folder, shards, found = registry.open(stored), {}, {}
    for example in listed:
        if example.pixels is not None:
            shard, row = divmod(example.pixels, SHARD_IMAGES)
            if shard not in shards:
                shards[shard] = np.load(folder / SHARD.format(shard), mmap_mode="r", allow_pickle=False)
            found[example.hash] = shards[shard][row]
    return found


def _pixels_of(registry: Registry, version: Version | None) -> Version | None:
    """Return the version that holds the pixels of a feedback version, or None if there is none in reach."""
    for ref in version.inputs.get("pixels", ()) if version else ():
        with contextlib.suppress(RegistryError):
            return registry.resolve(ref)
    return None


def trainable(listed: Iterable[Example], mode: str) -> list[Example]:
    """Return what a retraining may use: the side `train` without disputed labels; `mode` is retrain.examples."""
    return [e for e in listed if e.side == "train" and not e.disputed and (mode == "all" or not e.right)]


def merge(before: Iterable[Example], now: Iterable[Example]) -> tuple[Example, ...]:
    """Return the images of both, sorted, each content once: the latest label, the first answer, the lowest id.

    A label that was volunteered proves more once it is drawn for a sample.
    """
    by_hash = {example.hash: example for example in before}
    for example in now:
        known = by_hash.get(example.hash, example)
        chosen = example if known.chosen == "volunteered" else known
        by_hash[example.hash] = known.model_copy(
            update={
                **{name: getattr(example, name) for name in ("label", "disputed")},
                **{name: getattr(chosen, name) for name in ("chosen", "probability")},
                "side": known.side if known.side == example.side else "both",
                "id": min((id_ for id_ in (known.id, example.id) if id_ is not None), default=None),
            }
        )
    return tuple(by_hash[key] for key in sorted(by_hash))


def publish(
    params: Params,
    registry: Registry,
    labelled: Iterable[Example],
    inputs: Mapping[str, Sequence[str]],
    metadata: Mapping[str, Any],
    images: Mapping[str, NDArray[np.uint8]] | None = None,
    withdrawn: Collection[str] = (),
) -> tuple[Version | None, int]:
    """Add labelled images to what is known and publish it. Returns the newest version (None: no label yet) and how
    many images are new.

    `inputs` are the data set and the models that answered; the former version is an input too, as `previous`, so that
    the lineage reaches every data set that an image comes from. `images` holds, by hash, the pixels (s, s, 3) of what
    is in no data set. Images in `withdrawn` (hashes), and those that `make forget` removed, are listed no more, and
    their pixels are erased. Nothing new: the version that is there, untouched.
    """
    folder = params.store_paths.scratch("feedback")
    folder.mkdir(parents=True, exist_ok=True)
    lock = params.store_paths.lock("feedback")  # who publishes meanwhile would leave out what this adds
    with files.lock(lock, wait=True), tempfile.TemporaryDirectory(dir=folder) as directory:
        before = latest(params, registry)
        known = read(registry, before) if before else ()
        gone = {*withdrawn, *retention.forgotten(params.store_paths)}
        merged = tuple(example for example in merge(known, labelled) if example.hash not in gone)
        if merged == tuple(sorted(known, key=lambda example: example.hash)):
            return before, 0
        opened = _pixels_of(registry, before)
        shards = sorted(registry.open(opened).glob("pixels-*.npy")) if opened else []
        if opened is None:  # they are on another machine
            merged = tuple(example.model_copy(update={"pixels": None}) for example in merged)
            known = tuple(example.model_copy(update={"pixels": None}) for example in known)
        erased = [e.pixels for e in known if e.pixels is not None and e.hash in gone]
        shards = _erase(shards, erased, Path(directory))
        listed, shards = _store(merged, images or {}, shards, Path(directory))
        rows = [example.model_dump(exclude_none=True) for example in listed]
        path = Path(directory) / FILE
        wrong = [example for example in listed if not example.right]
        failures = [*sorted(e.id for e in wrong if e.id is not None), *(e.hash for e in wrong if e.id is None)]
        files.write_json(path, {"format": 2, "images": rows, "failures": failures})
        pixels = None
        if shards:
            shared = {"shared": params.traffic.share}
            content = {shard.name: shard for shard in shards}
            pixels = registry.publish(params.pixels_name, PIXELS_TYPE, content, metadata=shared)
        version = registry.publish(
            params.feedback_name, TYPE, {FILE: path},
            metadata={
                **metadata, "images": len(listed), "train": sum(e.side == "train" for e in listed),
                "failures": len(failures), "disputed": sum(e.disputed for e in listed),
            },
            inputs={
                **inputs, "previous": [before.ref] if before else [], "pixels": [pixels.ref] if pixels else [],
            },
        )  # fmt: skip
        return version, len({example.hash for example in merged} - {example.hash for example in known})


def trained_on(registry: Registry, model: Version) -> frozenset[str]:
    """Return the hashes of the feedback that a model itself was trained on. Raises RegistryError or FeedbackError."""
    mode = model.metadata.get("params", {}).get("retrain", {}).get("examples", "all")
    listed = [example for ref in model.inputs.get("feedback", ()) for example in read(registry, registry.resolve(ref))]
    return frozenset(example.hash for example in trainable(listed, mode))


def seen(registry: Registry, model: Version) -> frozenset[str]:
    """Return the hashes of the production images that a model, or one it descends from, was trained on.

    Raises FeedbackError when feedback among its ancestors is not in the store, since what it lists is then unknown.
    """
    hashes: set[str] = set()
    for *_, version in registry.lineage(model):
        if version is not None and version.type == "model":
            for ref in version.inputs.get("feedback", ()):
                if not registry.has(ref):
                    raise FeedbackError(f"{model.label} was trained on {ref}, which is not in the store")
            try:
                hashes |= trained_on(registry, version)
            except RegistryError as error:
                raise FeedbackError(str(error)) from None
    return frozenset(hashes)


def _label(label: int, content: NDArray[np.uint8], classes: int, noise: float, seed: int) -> int:
    """Return the label or, by the draw, another class."""
    if not noise:
        return label
    import numpy as np

    random = np.random.default_rng([seed, *content[:8].tolist()])
    return label if random.random() >= noise else int((label + random.integers(1, classes)) % classes)


def _erase(shards: list[Path], indices: Iterable[int], folder: Path) -> list[Path]:
    """Return the files of pixels with the images at some indices black."""
    import numpy as np

    shards = list(shards)
    for shard, row in (divmod(index, SHARD_IMAGES) for index in indices):
        pixels = np.load(shards[shard])
        pixels[row] = 0
        shards[shard] = folder / SHARD.format(shard)
        np.save(shards[shard], pixels, allow_pickle=False)
    return shards


def _store(
    listed: tuple[Example, ...], images: Mapping[str, NDArray[np.uint8]], shards: list[Path], folder: Path
) -> tuple[tuple[Example, ...], list[Path]]:
    """Append the pixels of listed images that no file holds. Returns the images with their index, and all files."""
    added = [example for example in listed if example.pixels is None and example.hash in images]
    if not added:
        return listed, shards
    import numpy as np

    new = np.stack([images[example.hash] for example in added])
    shards = list(shards)
    first = len(shards) * SHARD_IMAGES
    if shards and (last := np.load(shards[-1])).shape[1:] == new.shape[1:] and len(last) < SHARD_IMAGES:
        first -= SHARD_IMAGES - len(last)
        new = np.concatenate([last, new])
        shards.pop()
    for start in range(0, len(new), SHARD_IMAGES):
        path = folder / SHARD.format(len(shards))
        np.save(path, new[start : start + SHARD_IMAGES], allow_pickle=False)
        shards.append(path)
    index = {example.hash: position for position, example in enumerate(added, first)}
    return tuple(e.model_copy(update={"pixels": index.get(e.hash, e.pixels)}) for e in listed), shards
