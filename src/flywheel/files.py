"""Everything that packages share about files: atomic writes, digests, appended JSON lines, locks, sizes."""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from flywheel import FlywheelError

NO_SPACE = "; free space, or set paths.store and paths.reports to another disk, and run again"
TOO_LARGE = "; raise the limit of a file's size (ulimit -f), or set paths.store and paths.reports to another disk"
NOT_WRITABLE = "; make it writable, or set paths.store and paths.reports to directories that are"
NO_MEMORY = (
    "; end other programs, raise ulimit -v, or lower data.image_size, sweep.max_concurrent_trials or the batch size"
)
ADVICE = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EFBIG: TOO_LARGE,
    errno.EACCES: NOT_WRITABLE,
    errno.EPERM: NOT_WRITABLE,
    errno.EROFS: NOT_WRITABLE,
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
    errno.EAGAIN: "; raise the limit of processes (ulimit -u; docker: --pids-limit)",
    errno.ENOMEM: NO_MEMORY,
}

CHUNK_BYTES = 1 << 20


class Locked(FlywheelError):
    """Another process holds the lock; the message names it."""


@dataclass(frozen=True)
class Digests:
    """Size and both digests of a file: SHA-256 (hex) is its address in the store, MD5 (base64) is W&B's digest."""

    size: int
    sha256: str
    md5: str


def digest_stream(source: BinaryIO, copy_to: BinaryIO | None = None) -> Digests:
    """Read `source` once and return its digests; copy it to `copy_to` if given."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    while chunk := source.read(CHUNK_BYTES):
        sha256.update(chunk)
        md5.update(chunk)
        size += len(chunk)
        if copy_to is not None:
            copy_to.write(chunk)
    return Digests(size, sha256.hexdigest(), base64.b64encode(md5.digest()).decode())


def digest_file(path: Path) -> Digests:
    """Return the digests of a file."""
    with path.open("rb") as source:
        return digest_stream(source)


def digest_json(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`: it replaces `path` on success and is removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: libraries (matplotlib) choose the format by it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, readable by people. NaN and infinity are refused (ValueError)."""
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """Return a value as the text of a JSON file, readable by people. NaN and infinity are refused (ValueError)."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_json_lines(path: Path, *values: object) -> int:
    """Append lines of JSON by a single write (all or none), on disk when this returns. Returns the bytes written."""
    lines = [json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values]
    data = "".join(lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)  # or a failed write would cut off what another process appends meanwhile
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            data = b"\n" + data  # a power failure cut the last line: keep it a line of its own
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(end)  # all or nothing
            error.filename = error.filename or str(path)
            raise
    return len(data)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; lines that are cut off or hold no object are skipped. A missing file has none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.split("\n"):  # not splitlines, which also splits at U+2028 and others inside a JSON string
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def timestamp() -> str:
    """Return the current time as logs record it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock, released when its process ends. Raises Locked at once unless `wait`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = path.with_suffix(".pid")  # beside the lock: opening the lock file itself empties it
    held = FileLock(path)
    try:
        held.acquire(timeout=-1 if wait else 0)
    except Timeout:
        pid = owner.read_text() if owner.exists() else "unknown"
        raise Locked(f"another run holds {path.stem} (pid {pid}); wait for it to end") from None
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        held.release()


def holder(path: Path) -> int | None:
    """Return the pid of the process that holds a lock, or None if it is free.

    The lock is tried only if the process it names is alive: otherwise a run that starts just then finds it taken.
    """
    try:
        pid = int(path.with_suffix(".pid").read_text())
        with contextlib.suppress(PermissionError):  # it is alive, and another user's
            os.kill(pid, 0)
    except (OSError, ValueError, OverflowError):
        return None
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except OSError:  # a Timeout, another user's lock, or a read-only disk
        return pid
    held.release()
    return None


def size_of(directory: Path) -> int:
    """Return the bytes of all files below a directory; files that vanish meanwhile count as 0."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(folder) / name).lstat().st_size
    return total


def advice(error: OSError) -> str:
    """Return what to do about an error of the disk or a limit, as the end of a sentence; "" for other errors."""
    return ADVICE.get(error.errno or 0, "")


def count(number: int, noun: str) -> str:
    """Return a number with its noun for people: 1 trial, 2,000 trials."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def human_size(size_bytes: float) -> str:
    """Return a size for people: 1.4 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
