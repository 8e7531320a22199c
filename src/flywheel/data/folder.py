"""Read images from a directory, .tar, .tar.gz or .zip with train/<class>/* and test/<class>/*.

Archives are read and never extracted, so their names cannot write files. Links in a directory are followed, also to
the outside; links in an archive only inside it.
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
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from tqdm import tqdm

from flywheel import files
from flywheel.data import DataError, images
from flywheel.data.dataset import Split
from flywheel.data.images import ImageError, Pixels

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 64 << 20
MAX_INFLATION = 100  # images are compressed already; an archive that unpacks to more is refused as a bomb
MEMORY_COPIES = 3  # of all images at once: decoded, stacked, concatenated with the other splits
NAMED_CORRUPT = 10  # files named in an error; the others are counted
NAMED_SKIPPED = 3
NOT_PRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control, undecodable bytes, ends of lines
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

Key = tuple[str, str, str]  # split, class, file name ("" for the folder of a class)
Content = bytes | ImageError | None  # of a file, or why it cannot be read; None for a folder


def read(path: Path, size: int, skip_corrupt: bool) -> tuple[tuple[str, ...], Split, Split, tuple[str, ...]]:
    """Decode every image below `path`. Returns (class names, train, test, corrupt files), sorted by name.

    Raises DataError for a wrong layout and for corrupt files, naming them.
    """
    decoded: dict[Key, Pixels] = {}
    seen: set[Key] = set()
    corrupt: list[str] = []
    most = _memory_bytes() // MEMORY_COPIES // (size * size * 3)
    with tqdm(desc="data: decoding", unit=" images", mininterval=0.5, disable=None) as bar:
        for key, content in _entries(path):
            if key in seen and key[-1]:
                raise DataError(f"{path}: two files end in {'/'.join(key)}; {LAYOUT}, once")
            seen.add(key)
            if len(decoded) >= most:
                raise DataError(
                    f"{path}: more than {most:,} images of {size} pixels do not fit into this machine's memory; "
                    "lower data.image_size or take fewer images"
                )
            try:
                if isinstance(content, ImageError):
                    raise content
                if content is not None:
                    decoded[key] = images.decode(content, size)
            except ImageError as error:
                corrupt.append(f"{'/'.join(key)}: {error}")
            bar.update()
    corrupt.sort()
    if corrupt and not skip_corrupt:
        raise DataError(
            f"{path}: {len(corrupt)} files cannot be read: {_first(corrupt, NAMED_CORRUPT)}; "
            "mend or remove them, or leave them out with data.skip_corrupt=true"
        )
    if corrupt:
        log.info(f"data: left out {len(corrupt)} corrupt files (data.skip_corrupt): {_first(corrupt, NAMED_SKIPPED)}")
    train, test = [[key for key in sorted(decoded) if key[0] == split] for split in ("train", "test")]
    classes = sorted({label for _, label, _ in train})
    empty = sorted({label for split, label, _ in seen if split == "train"} - set(classes))
    untrained = sorted({label for _, label, _ in test} - set(classes))
    if empty:
        raise DataError(f"{path}: train/{empty[0]} has no image that can be read; add one or remove the folder")
    if len(classes) < 2:
        raise DataError(f"{path}: found {len(classes)} classes of training images; {LAYOUT}, of two classes at least")
    if untrained:
        raise DataError(f"{path}: test/{untrained[0]} has no train/{untrained[0]}; {LAYOUT}, of the same classes")
    if len(test) < 2:
        raise DataError(f"{path}: found {len(test)} test images; {LAYOUT}")
    untested = sorted(set(classes) - {label for _, label, _ in test})
    if untested:
        log.info(f"data: no test image of {_first(untested, NAMED_SKIPPED)}: its accuracy will not be measured")

    def split(keys: list[Key]) -> Split:
        labels = np.array([classes.index(label) for _, label, _ in keys], np.int64)
        return Split(np.stack([decoded[key] for key in keys]), labels, np.arange(len(keys)))

    return tuple(classes), split(train), split(test), tuple(corrupt)


def content_digest(path: Path, cache: Path) -> str:
    """Return a digest of the source's names and bytes, cached in `cache` while sizes and times stay the same."""
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
            digest = files.digest_file(file).sha256 if file.is_file() else "absent"  # a broken link, a pipe
        except PermissionError:
            digest = "unreadable"
        hasher.update(f"{name}:{digest}\n".encode(errors="surrogateescape"))
    files.write_json(cache, {"stamp": stamp, "digest": hasher.hexdigest()})
    return hasher.hexdigest()


def _entries(path: Path) -> Iterator[tuple[Key, Content]]:
    """Yield the image files and the folders of classes; ignore other files."""
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


def _of_directory(path: Path) -> Iterator[tuple[Key, Content]]:
    for name, file in _walk(path, folders=True):
        if key := _key(name, folder=file.is_dir()):
            try:
                if file.is_dir():
                    yield key, None
                elif file.exists() and not file.is_file():
                    yield key, ImageError("not a file")  # reading a pipe would block for ever
                else:
                    with file.open("rb") as reading:
                        yield key, _bounded(reading)
            except OSError as error:
                yield key, ImageError(f"cannot be read ({error.strerror})")


def _of_zip(path: Path) -> Iterator[tuple[Key, Content]]:
    with zipfile.ZipFile(path) as archive:
        members = [(member, key) for member in archive.infolist() if (key := _key(member.filename, member.is_dir()))]
        _refuse_bomb(path, sum(member.file_size for member, _ in members))
        for member, key in members:
            if member.is_dir():
                yield key, None
            else:
                with archive.open(member) as reading:
                    yield key, _bounded(reading)


def _of_tar(path: Path) -> Iterator[tuple[Key, Content]]:
    with tarfile.open(path) as archive:
        for member in archive:
            _refuse_bomb(path, member.offset_data + member.size)  # before the next iteration unpacks it
            key = _key(member.name, folder=member.isdir())
            if key and member.isdir():
                yield key, None
            elif key and (member.isfile() or member.issym() or member.islnk()):
                try:
                    reading = archive.extractfile(member)  # follows links inside the archive only
                except KeyError:
                    reading = None
                yield key, _bounded(reading) if reading else ImageError("links to what is not in the archive")
        # tarfile ends silently at a damaged header; at the true end the block is empty.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {archive.offset}")


def _key(name: str, folder: bool) -> Key | None:
    """Return the key of a path that ends in train|test/<class>/<image>, or of a folder train|test/<class>.

    Names are normalised to one Unicode form (NFC): macOS writes é as two characters. Raises DataError for a name with
    characters that are not printable.
    """
    parts = (*PurePosixPath(unicodedata.normalize("NFC", name)).parts, *([""] if folder else []))
    if len(parts) < 3 or parts[-3] not in ("train", "test") or parts[-2].startswith(".") or parts[-1].startswith("."):
        return None
    if not folder and not name.lower().endswith(images.SUFFIXES):
        return None
    if any(unicodedata.category(letter) in NOT_PRINTABLE for part in parts[-2:] for letter in part):
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
    """Yield (path below root, file) sorted by name, with `folders` also the folders.

    A link to a directory is followed once, and not if its target is walked anyway.
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
    except OSError:  # a broken link
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _first(names: list[str], count: int) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return "; ".join(names[:count]) + more


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
