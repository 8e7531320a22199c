"""List and open the files of a directory, .tar, .tar.gz or .zip, and digest their content.

Archives are read and never extracted, so their names cannot write files. Links in a directory are followed, also to
the outside; links in an archive only inside it.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from flywheel import files
from flywheel.data import DataError
from flywheel.data.images import ImageError

MAX_FILE_BYTES = 64 << 20
MAX_INFLATION = 100  # images are compressed already; an archive that unpacks to more is refused as a bomb
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # a zip with a password; a compression that Python does not know
    ValueError,  # a zip with a name that is not UTF-8
)
READ_SUFFIXES = (".tar", ".zip", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz")
ARCHIVE_SUFFIXES = (*READ_SUFFIXES, ".7z", ".rar", ".zst", ".lz4", ".lz")
HIDDEN = ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "lost+found")  # besides those with a dot
NOT_READ = re.compile(rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18|LZIP")

Opener = Callable[[], IO[bytes]]
Reader = Callable[[int], bytes]  # returns the first bytes; raises ImageError and DataError


def walk(path: Path) -> Iterator[tuple[str, Reader | None]]:
    """Yield (name, reader) of each file below `path`, and (name, None) of each folder. Raises DataError.

    A reader is valid until the next file is asked for.

    Names are relative, with `/` between their parts (some archives have `\\`), in one Unicode form (NFC; macOS writes é
    as two characters).
    """
    try:
        if path.is_dir():
            found = _of_directory(path)
        elif zipfile.is_zipfile(path):
            found = _of_zip(path)
        else:
            found = _of_tar(path)
        for name, opener in found:
            parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
            name = "/".join(part for part in parts if part not in ("", "."))
            yield name, None if opener is None else partial(_read, path, opener)
    except FileNotFoundError:
        raise DataError(f"{path}: no such directory or archive; set data.path") from None
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); change its permissions") from None
    except DAMAGED as error:
        raise DataError(_unreadable(path, error)) from None


def is_hidden(name: str) -> bool:
    """Return whether a name is one of a file or folder that systems and editors keep, or lies below one."""
    return any(part in HIDDEN or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def read(reader: Reader) -> bytes:
    """Return the content of a file. Raises ImageError if it is larger than MAX_FILE_BYTES."""
    data = reader(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"larger than {files.human_size(MAX_FILE_BYTES)}")
    return data


def content_digest(path: Path, cache: Path) -> str:
    """Return a digest of the source's names and bytes, cached in `cache` while sizes and times stay the same."""
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path}: no such directory or archive; set data.path")
    found = [(name, file) for name, file in _walk(path) if file] if path.is_dir() else [("", path)]
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


def _read(path: Path, opener: Opener, count: int) -> bytes:
    try:
        with opener() as reading:
            return reading.read(count)
    except DAMAGED as error:
        if path.is_dir():
            raise ImageError(f"cannot be read ({error})") from None
        raise DataError(_unreadable(path, error)) from None


def _of_directory(path: Path) -> Iterator[tuple[str, Opener | None]]:
    for name, file in _walk(path):
        yield (name, partial(_open_file, file)) if file else (name, None)


def _open_file(file: Path) -> IO[bytes]:
    if file.exists() and not file.is_file():
        raise ImageError("not a file")  # reading a pipe would block for ever
    return file.open("rb")


def _of_zip(path: Path) -> Iterator[tuple[str, Opener | None]]:
    with zipfile.ZipFile(path) as archive:
        _refuse_bomb(path, sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            folder = member.filename.endswith(("/", "\\"))
            yield member.filename, None if folder else partial(archive.open, member)


def _of_tar(path: Path) -> Iterator[tuple[str, Opener | None]]:
    with tarfile.open(path) as archive:
        for member in archive:
            _refuse_bomb(path, member.offset_data + member.size)  # before the next iteration unpacks it
            if member.isdir():
                yield member.name, None
            elif member.isfile() or member.issym() or member.islnk():
                yield member.name, partial(_open_member, archive, member)
        # tarfile ends silently at a damaged header; at the true end the block is empty.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {archive.offset}")


def _open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    try:
        reading = archive.extractfile(member)  # follows links inside the archive only
    except KeyError:
        reading = None
    if reading is None:
        raise ImageError("links to what is not in the archive")
    return reading


def _refuse_bomb(path: Path, unpacked_bytes: int) -> None:
    if unpacked_bytes > max(MAX_INFLATION * path.stat().st_size, MAX_FILE_BYTES):
        raise DataError(
            f"{path}: unpacks to more than {MAX_INFLATION} times its size, as decompression bombs do; "
            "unpack it yourself and set data.path to the directory"
        )


def _unreadable(path: Path, error: BaseException) -> str:
    """Return why a file is no archive that is read, in one line: tarfile tells it once for each compression."""
    with path.open("rb") as reading:
        head = reading.read(8)
    suffix = path.suffix.lower()
    if NOT_READ.match(head) or (isinstance(error, tarfile.ReadError) and suffix not in READ_SUFFIXES):
        return (
            f"{path}: {suffix or 'a file of this kind'} is not read; set data.path to a directory (unpack an archive), "
            "a .tar, .tar.gz or .zip"
        )
    reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
    return f"{path}: not a readable directory, .tar, .tar.gz or .zip ({reason})"


def _walk(root: Path) -> Iterator[tuple[str, Path | None]]:
    """Yield (path below root, file) sorted by name, and None instead of the file for a folder.

    A link to a directory is followed once, and not if its target is walked anyway. Raises DataError for a folder that
    cannot be read, unless it is hidden: its images would be missing and nobody would know.
    """

    def refuse(error: OSError) -> None:
        if not is_hidden(Path(error.filename).relative_to(root).as_posix()):
            raise DataError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions or remove it")

    walked = [root.resolve()]
    for folder, inside, names in os.walk(root, onerror=refuse, followlinks=True):
        relative = Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        for name in sorted(inside):
            below = Path(folder) / name
            if below.is_symlink():
                target = below.resolve()
                if any(target.is_relative_to(known) or known.is_relative_to(target) for known in walked):
                    inside.remove(name)
                    continue
                walked.append(target)
            yield prefix + name, None
        inside.sort()
        for name in sorted(names):
            yield prefix + name, Path(folder) / name


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:  # a broken link
        return -1, 0
    return status.st_size, status.st_mtime_ns
