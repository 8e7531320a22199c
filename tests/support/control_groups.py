"""Run commands in a control group that limits their memory."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[list[str]]:
    """Yield the words before a command that run it with so much memory, page cache included; skip where none can be."""
    version_2 = (ROOT / "cgroup.controllers").exists()
    group = (ROOT if version_2 else ROOT / "memory") / f"flywheel-test-{secrets.token_hex(4)}"
    try:
        group.mkdir()
        (group / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
        if version_2:
            (group / "memory.swap.max").write_text("0")
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group with a limit of memory can be made here: {error}")
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        with contextlib.suppress(OSError):  # the page cache of the group is still written
            group.rmdir()
