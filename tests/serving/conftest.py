"""Servers: one that the tests share, and one for a single test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server, make_server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server. model-1 is in production; a test that changes this must restore it."""
    with serving(make_server(tmp_path_factory.mktemp("serving"))) as started:
        yield started


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Server]:
    """A profile for one test, not served yet, and stopped at the end."""
    made = make_server(tmp_path)
    yield made
    made.run("stop")
