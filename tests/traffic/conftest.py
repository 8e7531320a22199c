"""A store with traffic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from made_traffic import OPTIONS

from flywheel.params import StorePaths
from flywheel.traffic.capture import Recorder


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    """An empty store."""
    return StorePaths(tmp_path / "store")


@pytest.fixture
def recorder(paths: StorePaths) -> Iterator[Recorder]:
    """The recorder of a replica that keeps every image."""
    made = Recorder(paths, OPTIONS, "replica1")
    yield made
    made.close()
