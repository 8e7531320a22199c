"""Images of yours: a directory, .tar, .tar.gz or .zip that holds train/<class>/* and test/<class>/*.

Archives are read and never extracted, so a name in one cannot write anywhere. Links in a directory are followed,
also out of it; links in an archive to what is inside it.
"""

from __future__ import annotations

import hashlib
import logging
import lzma
import os
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flywheel import files
from flywheel.data import DataError, images
from flywheel.data.images import ImageError, Pixels

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 64 << 20
MAX_INFLATION = 100  # images are compressed already; an archive that unpacks to more is taken for a bomb
MEMORY_COPIES = 3  # of all images at once: decoded, stacked, put together with the other splits
NAMED_CORRUPT = 10  # files named in an error; the rest is counted
NAMED_SKIPPED = 3
UNFIT = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control, undecodable bytes, ends of lines
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


# (split, class, name, bytes or why there are none)
Entry = tuple[str, str, str, bytes | ImageError | None]


@dataclass(frozen=True)
class FolderImages:
    """Images (n, size, size, 3) uint8 and labels in the order of their names; `skipped` files were corrupt."""

    class_names: tuple[str, ...]
    train_images: Pixels
    train_labels: NDArray[np.int64]
    test_images: Pixels
    test_labels: NDArray[np.int64]
    skipped: tuple[str, ...]


def read(path: Path, size: int, skip_corrupt: bool) -> FolderImages:
    """Decode every image below `path`. Raises DataError for a wrong layout and, naming them, corrupt files."""
    decoded: dict[tuple[str, str, str], Pixels] = {}
    seen: set[tuple[str, str, str]] = set()
    corrupt: list[str] = []
    most = _memory_bytes() // MEMORY_COPIES // (size * size * 3)
    with tqdm(desc="data: decoding", unit=" images", mininterval=0.5, disable=None) as bar:
        for split, label, name, data in _entries(path):
            if (split, label, name) in seen and name:
                raise DataError(f"{path}: two files end in {split}/{label}/{name}; {LAYOUT}, once")
            seen.add((split, label, name))
            if len(decoded) >= most:
                raise DataError(
                    f"{path}: more than {most:,} images of {size} pixels do not fit into this machine's memory; "
                    "lower data.image_size or take fewer images"
                )
            try:
                if isinstance(data, ImageError):
                    raise data
                if data is not None:
                    decoded[split, label, name] = images.decode(data, size)
            except ImageError as error:
                corrupt.append(f"{split}/{label}/{name}: {error}")
            bar.update()
    corrupt.sort()
    if corrupt and not skip_corrupt:
        raise DataError(
            f"{path}: {len(corrupt)} files cannot be read: {_first(corrupt, NAMED_CORRUPT)}; "
            "mend or remove them, or leave them out with data.skip_corrupt=true"
        )
    if corrupt:
        log.info(f"data: left out {len(corrupt)} corrupt files (data.skip_corrupt): {_first(corrupt, NAMED_SKIPPED)}")
    train, test = ([key for key in sorted(decoded) if key[0] == split] for split in ("train", "test"))
    classes = sorted({label for _, label, _ in train})
    empty = sorted({label for split, label, _ in seen if split == "train"} - set(classes))
    strangers = sorted({label for _, label, _ in test} - set(classes))
    if empty:
        raise DataError(f"{path}: train/{empty[0]} has no image that can be read; add one or remove the folder")
    if len(classes) < 2:
        raise DataError(f"{path}: found {len(classes)} classes of training images; {LAYOUT}, of two classes at least")
    if strangers:
        raise DataError(f"{path}: test/{strangers[0]} has no train/{strangers[0]}; {LAYOUT}, of the same classes")
    if len(test) < 2:
        raise DataError(f"{path}: found {len(test)} test images; {LAYOUT}")
    untested = sorted(set(classes) - {label for _, label, _ in test})
    if untested:
        log.info(
            f"data: no test image of {_first(untested, NAMED_SKIPPED)}: nothing will tell how well it is recognised"
        )
    return FolderImages(
        tuple(classes),
        np.stack([decoded[key] for key in train]),
        np.array([classes.index(label) for _, label, _ in train], np.int64),
        np.stack([decoded[key] for key in test]),
        np.array([classes.index(label) for _, label, _ in test], np.int64),
        tuple(corrupt),
    )


def content_digest(path: Path, cache: Path) -> str:
    """Return a digest of what the source holds, names and bytes; kept in `cache` while sizes and times stay."""
    if not path.is_dir() and not path.is_file():
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
        try:
            digest = files.digest_file(file).sha256 if file.is_file() else "absent"  # a link to nothing, a pipe
        except PermissionError:
            digest = "unreadable"
        hasher.update(f"{name}:{digest}\n".encode(errors="surrogateescape"))
    files.write_json(cache, {"stamp": stamp, "digest": hasher.hexdigest()})
    return hasher.hexdigest()


def _entries(path: Path) -> Iterator[Entry]:
    """Yield every image file; other files are passed over. A folder of a class is an entry without name and bytes."""
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


def _of_directory(path: Path) -> Iterator[Entry]:
    for name, file in _walk(path, folders=True):
        if place := _place(name, folder=file.is_dir()):
            try:
                if file.is_dir():
                    yield *place, None
                elif file.exists() and not file.is_file():
                    yield *place, ImageError("not a file")  # reading a pipe would wait for ever
                else:
                    with file.open("rb") as reading:
                        yield *place, _bounded(reading)
            except OSError as error:
                yield *place, ImageError(f"cannot be read ({error.strerror})")


def _of_zip(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        members = [(m, place) for m in archive.infolist() if (place := _place(m.filename, folder=m.is_dir()))]
        _refuse_bomb(path, sum(member.file_size for member, _ in members))
        for member, place in members:
            if member.is_dir():
                yield *place, None
            else:
                with archive.open(member) as reading:
                    yield *place, _bounded(reading)


def _of_tar(path: Path) -> Iterator[Entry]:
    with tarfile.open(path) as archive:
        for member in archive:
            _refuse_bomb(path, member.offset_data + member.size)  # before the step to the next one unpacks it
            place = _place(member.name, folder=member.isdir())
            if place and member.isdir():
                yield *place, None
            elif place and (member.isfile() or member.issym() or member.islnk()):
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


def _place(name: str, folder: bool = False) -> tuple[str, str, str] | None:
    """Return (split, class, name) of a path that ends in train|test/<class>/<image>, also below other folders.

    Of a folder train|test/<class> the name is empty. Names are brought to one Unicode form (NFC): macOS writes é as
    two characters. Raises DataError for a name that no message or picture could show.
    """
    parts = (*PurePosixPath(unicodedata.normalize("NFC", name)).parts, *([""] if folder else []))
    if len(parts) < 3 or parts[-3] not in ("train", "test") or parts[-2].startswith(".") or parts[-1].startswith("."):
        return None
    if not folder and not name.lower().endswith(images.SUFFIXES):
        return None
    if any(unicodedata.category(letter) in UNFIT for part in parts[-2:] for letter in part):
        raise DataError(f"the name {name!a} has characters that cannot be shown; rename it")
    return parts[-3], parts[-2], parts[-1]


def _bounded(reading: IO[bytes]) -> bytes | ImageError:
    data = reading.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        return ImageError(f"larger than {files.human_size(MAX_FILE_BYTES)}")
    return data


def _refuse_bomb(path: Path, unpacked_bytes: int) -> None:
    if unpacked_bytes > max(MAX_INFLATION * path.stat().st_size, MAX_FILE_BYTES):
        raise DataError(
            f"{path}: unpacks to more than {MAX_INFLATION} times its size, as decompression bombs do; "
            "unpack it yourself and set data.path to the directory"
        )


def _walk(root: Path, folders: bool = False) -> Iterator[tuple[str, Path]]:
    """Yield (path below root, file) in the order of names; folders too if asked for.

    A link to a directory is followed once, and not where it leads to what is walked anyway.
    """
    walked = [root.resolve()]
    for folder, inside, names in os.walk(root, followlinks=True):
        for name in sorted(inside):
            below = Path(folder) / name
            if below.is_symlink():
                target = below.resolve()
                if any(target.is_relative_to(known) or known.is_relative_to(target) for known in walked):
                    inside.remove(name)
                    continue
                walked.append(target)
            if folders:
                yield below.relative_to(root).as_posix(), below
        inside.sort()
        for name in sorted(names):
            file = Path(folder) / name
            yield file.relative_to(root).as_posix(), file


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:  # a link to nothing
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _first(names: list[str], count: int) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return "; ".join(names[:count]) + more


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
