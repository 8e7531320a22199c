"""One store that `make evaluate` made, for the tests of this folder; those that change it take a copy."""

from __future__ import annotations

import pytest
from chain import Built, make


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    return Built(folder, make(folder, "evaluate"))
