"""Read images of people's own: list the files, infer splits and classes from their names, decode."""

from __future__ import annotations

import logging
import os
import re
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flywheel import params
from flywheel.data import DataError, images, label_table, layout, source_files
from flywheel.data.dataset import ImageRows, SourceImages, Split, allocate
from flywheel.data.images import ImageError, Pixels
from flywheel.files import human_size
from flywheel.machine import threads

log = logging.getLogger(__name__)

NAMED_CORRUPT = 10  # files named in an error; the others are counted
NAMED_SKIPPED = 3
NOT_PRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control, undecodable bytes, ends of lines
CORRUPT = "not readable"
UNEVEN = 3  # the largest class has this many times the images of the smallest
NAMED_CLASSES = 5  # the largest and the smallest, where there are many
KEPT_FOR_TRAINING = 2  # images of each class, however few there are: one of them is for validation


def read(data: params.Data, scratch: Path | None = None) -> SourceImages:
    """Decode every image below `data.path`, a directory or archive, into a file in `scratch` (None: memory).

    Training images are in the order of their names, 2 before 10; test images are shuffled with the seed and split by
    `test_fraction`. Without any, all images are divided by `folder_split`. Corrupt files are refused by name, or with
    data.skip_corrupt left out. Raises DataError.
    """
    assert data.path is not None
    path = Path(data.path).expanduser()
    found = _list(path)
    try:
        laid_out = layout.infer(found.images, found.tables)
    except DataError as error:
        others = _left_out_text(found.left_out)
        raise DataError(f"{path}: {error}{f'; left out: {others}' if others else ''}") from None
    named = {**laid_out.train, **laid_out.validation, **laid_out.test}
    if scratch is not None:
        _check_disk(len(named), len(laid_out.test), data, scratch)
    pixels, decoded, corrupt = _decode(path, named, data.image_size, scratch)
    if corrupt and not data.skip_corrupt:
        raise DataError(
            f"{path}: {len(corrupt)} files cannot be read: {_first(_reasons(corrupt), NAMED_CORRUPT)}; "
            "mend or remove them, or leave them out with data.skip_corrupt=true"
        )
    if corrupt:
        said = _first(_reasons(corrupt), NAMED_SKIPPED)
        log.info(f"data: left out {len(corrupt)} corrupt files (data.skip_corrupt): {said}")
    left_out = {**found.left_out, **laid_out.left_out, CORRUPT: sorted(corrupt)}
    left_out = {reason: names for reason, names in left_out.items() if names}
    if said := _left_out_text({reason: names for reason, names in left_out.items() if reason != CORRUPT}):
        log.info(f"data: {len(decoded):,} images are used; left out: {said}")
    for note in laid_out.notes:
        log.info(f"data: {note}")
    train, validation, test = (
        sorted((name for name in part if name in decoded), key=natural)
        for part in (laid_out.train, laid_out.validation, laid_out.test)
    )
    if laid_out.test:
        order = np.random.default_rng(data.seed).permutation(len(test))
        test_count = min(max(round(len(test) * data.test_fraction), 1), len(test) - 1)
    else:
        train, test, simulation = _divided(train, named, data)
        if not (test and simulation):
            raise DataError(f"{path}: {len(train + test + simulation)} images are too few to divide into train, test "
                            "and simulation; add some, or change data.folder_split")  # fmt: skip
        test_count, test = len(test), test + simulation
        order = np.arange(len(test))
    _check_classes(path, named, laid_out, found.empty_folders, train, validation, test)
    class_names = tuple(sorted({named[name] for name in train}, key=natural))

    def split(names: list[str]) -> Split:
        labels = np.array([class_names.index(named[name]) for name in names], np.int64)
        rows = ImageRows(pixels, index=np.array([decoded[name] for name in names]))
        return Split(rows, labels, np.arange(len(names)))

    training = split(train + validation)
    _log_uneven(class_names, training)
    counted = {reason: {"count": len(names), "example": names[0]} for reason, names in left_out.items()}
    return SourceImages(
        class_names, training, split(test).take(order), test_count, len(validation), _reasons(corrupt),
        {"used": len(decoded), "left_out": counted},
    )  # fmt: skip


def natural(name: str) -> tuple[str, str]:
    """Return a key that sorts the numbers in names by their value: 2 before 10."""
    return re.sub(r"\d+", lambda number: number[0].zfill(20), name), name


@dataclass(frozen=True)
class _Files:
    images: list[str]
    tables: dict[str, bytes]
    left_out: dict[str, list[str]]  # reason -> names of image files
    empty_folders: list[str]


def _list(path: Path) -> _Files:
    """List the files below `path` by their first bytes. Raises DataError."""
    found: set[str] = set()
    tables: dict[str, bytes] = {}
    left_out: dict[str, list[str]] = defaultdict(list)
    folders: set[str] = set()
    filled: set[str] = set()
    archives = []
    for name, reader in source_files.walk(path):
        *parents, last = name.split("/")
        suffix = os.path.splitext(last)[1].lower()  # noqa: PTH122 (pathlib takes five times as long)
        hidden = source_files.is_hidden(name)
        if reader is None:
            if not hidden:
                folders.add(name)
            continue
        if hidden:
            if suffix in images.SUFFIXES and not last.startswith("._"):  # which macOS leaves beside each file
                left_out["hidden"].append(name)
            continue
        filled.update("/".join(parents[: depth + 1]) for depth in range(len(parents)))
        try:
            if suffix in label_table.SUFFIXES:
                tables[name] = source_files.read(reader)
                continue
            kind = images.image_format(reader(images.HEAD_BYTES), name)
        except ImageError:  # decoding tells it again, with the reason
            kind = None
        if suffix in source_files.ARCHIVE_SUFFIXES:
            archives.append(name)
        elif kind:
            left_out[f"{kind} (not read)"].append(name)
        elif kind is None and suffix not in images.SUFFIXES:
            continue
        elif ".." in parents:
            left_out["names that lead outside"].append(name)
        else:
            if not name.isprintable() and any(unicodedata.category(letter) in NOT_PRINTABLE for letter in name):
                raise DataError(f"the name {name!a} has characters that cannot be shown; rename it")
            if name in found:
                raise DataError(f"{path}: two files are called {name}; keep one of them")
            found.add(name)
    if not found and archives:
        raise DataError(f"{path}: found no image but {_first(archives, NAMED_SKIPPED)}; unpack it and try again")
    return _Files(sorted(found), tables, left_out, sorted(folders - filled))


def _check_disk(count: int, test: int, data: params.Data, scratch: Path) -> None:
    """Log the disk space that a folder's images need at most until they are published. Raises DataError."""
    simulation = test * (1 - data.test_fraction) if test else count * data.folder_split.simulation + 1
    drifts = any(data.drift.model_dump().values())
    images_bytes = data.image_size**2 * 3
    needed, free = int((2 * count + drifts * simulation) * images_bytes), shutil.disk_usage(scratch).free
    said = f"{count:,} images of {data.image_size} pixels need up to {human_size(needed)} of disk"
    if needed > free:
        raise DataError(
            f"{said}, and {scratch} has {human_size(free)} free; free space, set paths.store to another disk, lower "
            "data.image_size or take fewer images"
        )
    log.info(f"data: {said}; {human_size(free)} are free")


def _decode(
    path: Path, wanted: Mapping[str, str], size: int, scratch: Path | None
) -> tuple[Pixels, dict[str, int], dict[str, str]]:
    """Return pixels, the row in them of each image by name, and the reasons why others cannot be decoded."""
    file = scratch and scratch / "decoded.npy"
    pixels = allocate((len(wanted), size, size, 3), file)
    if file is not None:
        file.unlink()  # the disk space is free again when nobody has it open
    rows: dict[str, int] = {}
    corrupt: dict[str, str] = {}

    def contents() -> Iterator[tuple[str, bytes | ImageError]]:
        for name, reader in source_files.walk(path):
            if reader is not None and name in wanted:
                try:
                    yield name, source_files.read(reader)
                except ImageError as error:
                    yield name, error

    def decode(content: tuple[str, bytes | ImageError]) -> tuple[str, Pixels | ImageError]:
        name, data = content
        try:
            return name, data if isinstance(data, ImageError) else images.decode(data, size)
        except ImageError as error:
            return name, error

    cpus = threads.cpus()
    with tqdm(desc="data: decoding", total=len(wanted), unit=" images", mininterval=0.5, disable=None) as bar:
        for name, image in threads.ordered(decode, contents(), cpus, ahead=4 * cpus):
            if isinstance(image, ImageError):
                corrupt[name] = str(image)
            else:
                rows[name] = len(rows)
                pixels[rows[name]] = image
            bar.update()
    return pixels, rows, corrupt


def _divided(
    names: Sequence[str], labels: Mapping[str, str], data: params.Data
) -> tuple[list[str], list[str], list[str]]:
    """Divide the images of each class at random into train, test and simulation. Logs the counts."""
    fractions = data.folder_split.model_dump()
    parts: dict[str, list[str]] = {part: [] for part in fractions}
    random = np.random.default_rng(data.seed)
    of_class: dict[str, list[str]] = defaultdict(list)
    for name in names:
        of_class[labels[name]].append(name)
    given = 0
    for label in sorted(of_class, key=natural):
        for number, index in enumerate(random.permutation(len(of_class[label]))):
            given += 1
            # The part that is furthest behind its fraction; classes follow one another, so each is divided alike.
            part = max(parts, key=lambda part: fractions[part] * given - len(parts[part]))
            parts["train" if number < KEPT_FOR_TRAINING else part].append(of_class[label][index])
    counts = ", ".join(f"{len(part):,} for {name}" for name, part in parts.items())
    log.info(f"data: there is no labelled test folder, so the images are divided at random, each class alike: {counts} "
             "(data.folder_split)")  # fmt: skip
    train, test, simulation = (sorted(part, key=natural) for part in parts.values())
    return train, test, simulation


def _check_classes(
    path: Path,
    labels: Mapping[str, str],
    laid_out: layout.Layout,
    empty_folders: Iterable[str],
    train: Sequence[str],
    validation: Sequence[str],
    test: Sequence[str],
) -> None:
    classes, tested = {labels[name] for name in train}, {labels[name] for name in test}
    below = f"{laid_out.class_parent}/".lstrip("/")
    empty = {name for name in empty_folders if name.rpartition("/")[0] == laid_out.class_parent}
    empty |= {f"{below}{label}" for label in set(laid_out.train.values()) - classes}
    if empty:
        raise DataError(f"{path}: {min(empty)} has no image that can be read; add one or remove the folder")
    for part, names in (("test", test), ("validation", validation)):
        if untrained := sorted({labels[name] for name in names} - classes):
            raise DataError(
                f"{path}: class {untrained[0]} has {part} images but no training images (there are some of "
                f"{_first(sorted(classes), NAMED_SKIPPED)}); add some, or remove it"
            )
    if len(test) < 2:
        raise DataError(f"{path}: found {len(test)} test images; add some")
    if untested := sorted(classes - tested):
        log.info(f"data: no test image of {_first(untested, NAMED_SKIPPED)}: its accuracy will not be measured")


def _log_uneven(class_names: Sequence[str], train: Split) -> None:
    of_class = np.bincount(train.labels)
    if of_class.max() >= UNEVEN * of_class.min():
        counts = [f"{class_names[index]} {of_class[index]:,}" for index in np.argsort(-of_class, kind="stable")]
        shown = counts if len(counts) <= 2 * NAMED_CLASSES else [*counts[:NAMED_CLASSES], "…", *counts[-NAMED_CLASSES:]]
        log.info(f"data: the classes are uneven, so read the accuracy of each: {', '.join(shown)} training images")


def _left_out_text(left_out: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{len(names):,} {reason}, such as {names[0]}" for reason, names in left_out.items())


def _reasons(corrupt: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}: {corrupt[name]}" for name in sorted(corrupt))


def _first(names: Sequence[str], count: int) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return "; ".join(names[:count]) + more
