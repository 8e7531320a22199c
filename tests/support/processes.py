"""What a server started, as the operating system sees it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil

from flywheel.serving.host import MARK


def of(store: Path) -> list[psutil.Process]:
    """Return the processes that carry the store's mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(store):
                found.append(process)
    return found


def gone(store: Path, timeout_s: float = 30) -> bool:
    """Wait until no process carries the store's mark; a process that is ended but not reaped counts as gone."""
    until = time.monotonic() + timeout_s
    while alive := [process for process in of(store) if process.status() != psutil.STATUS_ZOMBIE]:
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
