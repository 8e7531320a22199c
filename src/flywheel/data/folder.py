"""Images of yours: a directory, .tar, .tar.gz or .zip that holds train/<class>/* and test/<class>/*.

Archives are read and never extracted, so a name in one cannot write anywhere.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flywheel import files
from flywheel.data import DataError, images
from flywheel.data.images import ImageError, Pixels

MAX_FILE_BYTES = 64 << 20
NAMED_CORRUPT = 10  # files named in an error; the rest is counted
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # a zip with a password; a compression that Python does not know
)
LAYOUT = "it must hold train/<class>/<image> and test/<class>/<image>"


@dataclass(frozen=True)
class FolderImages:
    """Images (n, size, size, 3) uint8 and labels in the order of their names; `skipped` files were corrupt."""

    class_names: tuple[str, ...]
    train_images: Pixels
    train_labels: NDArray[np.int64]
    test_images: Pixels
    test_labels: NDArray[np.int64]
    skipped: tuple[str, ...]


def read(path: Path, size: int, skip_corrupt: bool, say: Callable[[str], None] = print) -> FolderImages:
    """Decode every image below `path`. Raises DataError for a wrong layout and, naming them, corrupt files."""
    decoded: dict[tuple[str, str, str], Pixels] = {}
    seen: set[tuple[str, str, str]] = set()
    corrupt: list[str] = []
    with tqdm(desc="data: decoding", unit=" images", mininterval=0.5, disable=None) as bar:
        for split, label, name, data in _entries(path):
            if (split, label, name) in seen:
                raise DataError(f"{path}: two files end in {split}/{label}/{name}; {LAYOUT}, once")
            seen.add((split, label, name))
            try:
                if isinstance(data, ImageError):
                    raise data
                decoded[split, label, name] = images.decode(data, size)
            except ImageError as error:
                corrupt.append(f"{split}/{label}/{name}: {error}")
            bar.update()
    if corrupt and not skip_corrupt:
        more = f" and {len(corrupt) - NAMED_CORRUPT} more" if len(corrupt) > NAMED_CORRUPT else ""
        raise DataError(
            f"{path}: {len(corrupt)} files cannot be read: {'; '.join(sorted(corrupt)[:NAMED_CORRUPT])}{more}; "
            "mend or remove them, or leave them out with data.skip_corrupt=true"
        )
    if corrupt:
        say(f"data: left out {len(corrupt)} corrupt files (data.skip_corrupt)")
    classes = sorted({label for split, label, _ in decoded if split == "train"})
    strangers = sorted({label for split, label, _ in decoded if split == "test"} - set(classes))
    if len(classes) < 2:
        raise DataError(f"{path}: found {len(classes)} classes of training images; {LAYOUT}, of two classes at least")
    if strangers:
        raise DataError(f"{path}: test/{strangers[0]} has no train/{strangers[0]}; {LAYOUT}, of the same classes")
    train, test = ([key for key in sorted(decoded) if key[0] == split] for split in ("train", "test"))
    if len(test) < 2:
        raise DataError(f"{path}: found {len(test)} test images; {LAYOUT}")
    return FolderImages(
        tuple(classes),
        np.stack([decoded[key] for key in train]),
        np.array([classes.index(label) for _, label, _ in train], np.int64),
        np.stack([decoded[key] for key in test]),
        np.array([classes.index(label) for _, label, _ in test], np.int64),
        tuple(sorted(corrupt)),
    )


def content_digest(path: Path, cache: Path) -> str:
    """Return a digest of what the source holds, names and bytes; kept in `cache` while sizes and times stay."""
    if not path.exists():
        raise DataError(f"{path}: no such directory or archive; set data.path")
    found = list(_walk(path)) if path.is_dir() else [("", path)]
    stamp = files.digest_json([str(path.absolute()), [[name, *_stamp(file)] for name, file in found]])
    try:
        known = files.read_json(cache)
        if known["stamp"] == stamp:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    hasher = hashlib.sha256()
    for name, file in found:
        digest = files.digest_file(file).sha256 if file.exists() else "absent"  # a link to nothing
        hasher.update(f"{name}:{digest}\n".encode())
    files.write_json(cache, {"stamp": stamp, "digest": hasher.hexdigest()})
    return hasher.hexdigest()


def _entries(path: Path) -> Iterator[tuple[str, str, str, bytes | ImageError]]:
    """Yield (split, class, name, bytes or why there are none) of every image file; other files are passed over."""
    try:
        if path.is_dir():
            yield from _of_directory(path)
        elif zipfile.is_zipfile(path):
            yield from _of_zip(path)
        else:
            yield from _of_tar(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such directory or archive; set data.path") from None
    except DAMAGED as error:
        raise DataError(f"{path}: not a readable directory, .tar, .tar.gz or .zip ({error})") from None


def _of_directory(path: Path) -> Iterator[tuple[str, str, str, bytes | ImageError]]:
    for name, file in _walk(path):
        if place := _place(name):
            try:
                with file.open("rb") as reading:
                    yield *place, _bounded(reading)
            except OSError as error:
                yield *place, ImageError(f"cannot be read ({error.strerror})")


def _of_zip(path: Path) -> Iterator[tuple[str, str, str, bytes | ImageError]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir() and (place := _place(member.filename)):
                with archive.open(member) as reading:
                    yield *place, _bounded(reading)


def _of_tar(path: Path) -> Iterator[tuple[str, str, str, bytes | ImageError]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if (member.isfile() or member.issym() or member.islnk()) and (place := _place(member.name)):
                try:
                    reading = archive.extractfile(member)  # a link is followed inside the archive only
                except KeyError:
                    reading = None
                yield *place, _bounded(reading) if reading else ImageError("links to what is not in the archive")
        # tarfile takes a damaged header for the end; the true end is empty.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {archive.offset}")


def _place(name: str) -> tuple[str, str, str] | None:
    """Return (split, class, name) of a path that ends in train|test/<class>/<image>, also below other folders."""
    parts = PurePosixPath(name).parts
    if len(parts) < 3 or parts[-3] not in ("train", "test") or parts[-1].startswith("."):
        return None
    return (parts[-3], parts[-2], parts[-1]) if name.lower().endswith(images.SUFFIXES) else None


def _bounded(reading: IO[bytes]) -> bytes:
    data = reading.read(MAX_FILE_BYTES + 1)
    return data if len(data) <= MAX_FILE_BYTES else b""


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path below root, file) in the order of names, following no symbolic link to a directory."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            file = Path(folder) / name
            yield file.relative_to(root).as_posix(), file


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:  # a link to nothing
        return -1, 0
    return status.st_size, status.st_mtime_ns
