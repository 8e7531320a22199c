"""Wait for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    holds: Callable[[], object], what: str = "", timeout_s: float = 60, *, step: Callable[[], object] = lambda: None
) -> None:
    """Call `step` again and again until a condition holds. Raises AssertionError after the time."""
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, f"not within {timeout_s} s: {what}"
        step()
        time.sleep(0.03)
