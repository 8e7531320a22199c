"""What the package logs, as a person sees it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def captured() -> Iterator[list[str]]:
    """Yield a list that receives every message while the block runs."""
    log, collector = logging.getLogger("flywheel"), _Collector()
    log.setLevel(logging.INFO)
    log.addHandler(collector)
    try:
        yield collector.messages
    finally:
        log.removeHandler(collector)
