"""Name what this machine, container or shell lacks to run Ray, before Ray hangs or ends without a reason."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

MEMORY_BYTES = 1_500_000_000  # a driver, Ray and one worker with torch
OBJECT_STORE_SHARE = 0.3  # Ray's own
TORCH_ADDRESS_SPACE = 4_000_000_000  # 3.8 GB are needed by the build with CUDA; its loader ends without a reason
TEMPORARY_BYTES = 50_000_000  # logs and sockets of Ray
SOCKET_FOLDER_CHARACTERS = 38  # a socket's path has at most 107, of which Ray's own part takes 69
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class Lack(NamedTuple):
    """Something that this machine lacks, and what to do."""

    text: str
    fix: str


def lacks() -> Iterator[Lack]:
    """Yield all that would keep a local Ray from working; takes a fraction of a second.

    Measured with two CPUs: 230 threads, 62 open files in one process, and an address space of 2 GB beside Ray's object
    store, which takes 30 % of the memory.
    """
    cpus = os.cpu_count() or 1
    files, needed_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1], 64 + 16 * cpus
    if 0 <= files < needed_files:  # -1 means no limit
        yield Lack(f"{files} open files are allowed, Ray needs {needed_files}", f"ulimit -n {needed_files} or more")
    threads, needed_threads = _threads_left(), 150 + 40 * cpus
    if threads < needed_threads:
        yield Lack(
            f"{threads:.0f} more processes and threads are allowed, Ray needs {needed_threads}",
            "raise ulimit -u or the container's limit of processes (docker: --pids-limit)",
        )
    yield from address_space(int(OBJECT_STORE_SHARE * psutil.virtual_memory().total) + 3_000_000_000, "Ray")
    memory = memory_bytes()
    if memory < MEMORY_BYTES:
        yield Lack(f"{memory / 1e9:.1f} GB of memory, Ray needs {MEMORY_BYTES / 1e9} GB", "end other programs")
    if temporary_folder() is None:
        yield Lack(
            f"no temporary folder for Ray: none of {', '.join(map(str, _candidates()))} can be written, has "
            f"{TEMPORARY_BYTES / 1e6:.0f} MB free and a path of at most {SOCKET_FOLDER_CHARACTERS} characters",
            "set TMPDIR to such a folder",
        )


def memory_bytes() -> float:
    """Return how much memory is available, at most what this container may use."""
    files = [group / f"memory.{name}" for group in _cgroups("memory") for name in ("max", "limit_in_bytes")]
    return min(psutil.virtual_memory().available, *(_number(file, math.inf) for file in files))


def address_space(needed: int, user: str) -> Iterator[Lack]:
    """Yield that the address space is too small for `user`, which needs so many bytes, if it is."""
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= space < needed:
        text = f"the address space is limited to {space / 1e9:.1f} GB, {user} needs {needed / 1e9:.1f} GB"
        yield Lack(text, "ulimit -v unlimited")


def temporary_folder() -> Path | None:
    """Return the first folder for temporary files that Ray can use."""
    for folder in _candidates():
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder):
            if len(str(folder)) <= SOCKET_FOLDER_CHARACTERS and shutil.disk_usage(folder).free >= TEMPORARY_BYTES:
                return folder
    return None


def object_store_bytes() -> int:
    """Return the size of Ray's object store: Ray chooses as much, but only where /dev/shm exists."""
    return int(OBJECT_STORE_SHARE * psutil.virtual_memory().available)


def _candidates() -> list[Path]:
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return list(dict.fromkeys(map(Path, (named, "/tmp", "/var/tmp", "/dev/shm"))))


def _threads_left() -> float:
    """Return how many more processes and threads this user and this container may start."""
    left = min(_number(group / "pids.max", math.inf) - _number(group / "pids.current", 0) for group in _cgroups("pids"))
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if limit >= 0 and os.geteuid():  # it does not hold for root
        own = [process.info for process in psutil.process_iter(["uids", "num_threads"])]
        used = sum(one["num_threads"] or 0 for one in own if one["uids"] and one["uids"].real == os.getuid())
        left = min(left, limit - used)
    return left


def _cgroups(controller: str) -> list[Path]:
    """Return this process's control group and those above it, of version 2 and of version 1. Each may have a limit."""
    own = {"": "."}  # by controller; version 2 has one group for all, called ""
    with contextlib.suppress(OSError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
    groups: list[Path] = []
    for root, path in ((CGROUPS, own[""]), (CGROUPS / controller, own.get(controller, "."))):
        group = root / path
        groups += [group, *(above for above in group.parents if above.is_relative_to(root))]
    return groups


def _number(file: Path, otherwise: float) -> float:
    with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
        return float(file.read_text())
    return otherwise
