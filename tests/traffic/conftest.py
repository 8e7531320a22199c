"""A store with traffic."""

from __future__ import annotations

from pathlib import Path

import pytest

from flywheel.params import StorePaths


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    """An empty store."""
    return StorePaths(tmp_path / "store")
