"""Servers: one that all tests share, one that is a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server, make_server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests share; model-1 is in production when each begins and must be when it ends."""
    with serving(make_server(tmp_path_factory.mktemp("serving"))) as started:
        yield started


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Server]:
    """A profile of the test's own, stopped at the end whatever the test did."""
    made = make_server(tmp_path)
    yield made
    made.run("stop")
