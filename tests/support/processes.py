"""Find the processes that a server or a script started; kill one in the middle of its work."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from waiting import wait_until

from flywheel.serving.backend import MARK


def of(store: Path) -> list[psutil.Process]:
    """Return the processes that carry the store's mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(store):
                found.append(process)
    return found


@contextlib.contextmanager
def once(
    process: subprocess.Popen[str], reached: Callable[[], object], timeout_s: float = 60
) -> Iterator[subprocess.Popen[str]]:
    """Yield a process once it has reached something; kill it at the end if it still runs."""
    try:
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def gone(store: Path, timeout_s: float = 30) -> bool:
    """Wait until no process carries the store's mark; a process that is ended but not reaped counts as gone."""
    until = time.monotonic() + timeout_s
    while alive := left(f"{MARK}={store}"):
        if time.monotonic() > until:
            print(alive)
            return False
        time.sleep(0.2)
    return True


def listening(store: Path) -> list[tuple[str, int, str]]:
    """Return (address, port, name of the process) of every TCP socket that listens."""
    found = set()
    for process in of(store):
        with contextlib.suppress(psutil.Error, OSError):
            name = process.name() + " " + " ".join(process.cmdline())[:80]
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, connection.laddr.port, name))
    return sorted(found)


def left(mark: str) -> list[str]:
    """Return the command lines of live processes with a mark, a path or NAME=value, in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            marked = mark.encode() in (folder / "environ").read_bytes()
            if marked and (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " ")[:120])
    return found


def wait_for_none_left(mark: str, seconds: float) -> None:
    """Wait until no process carries the mark. Raises AssertionError after `seconds`."""
    wait_until(lambda: not left(mark), f"the end of all processes with {mark}", seconds)
