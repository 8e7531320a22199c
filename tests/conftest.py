"""What all tests share: the shipped params.yaml, shrunk, with every path below a temporary directory."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests share the machine
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves its workers beside other tests

import numpy as np
import pytest
import scripts

from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.registry import Registry

if TYPE_CHECKING:
    from wandb_double import WandbDouble

    from flywheel.data.dataset import Dataset

ROOT = Path(__file__).parents[1]

# What `make test` and its user give to make is not for the makes that tests start.
for _name in [name for name in os.environ if name.startswith("MAKE") or name in ("MFLAGS", "ARGS", "FORCE")]:
    del os.environ[_name]

# A shell ignores SIGINT for what it starts in the background, and nohup SIGHUP: what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests that share fixtures in one process: those of a folder with a conftest.py, else of a file."""
    from xdist.scheduler import LoadScopeScheduling

    class BySharedFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return str(file.parent if len(file.parts) > 2 and (ROOT / file.parent / "conftest.py").exists() else file)

    config.option.loadscopereorder = False  # by number of tests; the order is that of pytest_collection_modifyitems
    return BySharedFixtures(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start what takes longest first, so that no process works alone at the end."""
    longest = ("serving", "e2e", "tracking", "retraining", "sweep", "simulation", "commands")
    rank = {name: number for number, name in enumerate(longest)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(ROOT / "tests").parts[0], len(rank)))


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's keys, cluster or choices."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "RAY_ADDRESS", "PROFILE", "SET", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", os.environ.get("TMPDIR", "/tmp") + "/no-home")


@pytest.fixture(autouse=True, scope="session")
def _settings_of_the_run() -> Iterator[None]:
    """Put FLYWHEEL_TEST_SET (see make test-cpus) under the overrides of every test."""
    loaded = params_file.load
    with pytest.MonkeyPatch.context() as patched:
        if extra := os.environ.get("FLYWHEEL_TEST_SET"):
            patched.setattr(
                params_file,
                "load",
                lambda path="params.yaml", profile="cifar10", overrides="": loaded(
                    path, profile, f"{extra} {overrides}"
                ),
            )
        yield


@pytest.fixture
def make_params(tmp_path: Path) -> Callable[..., Params]:
    """Load a profile of the shipped params.yaml with overrides, its paths below tmp_path."""

    def make(overrides: str = "", profile: str = "demo") -> Params:
        return scripts.load(tmp_path, overrides, profile)

    return make


@pytest.fixture
def params(make_params: Callable[..., Params]) -> Params:
    """The demo profile."""
    return make_params()


@pytest.fixture
def registry(params: Params) -> Registry:
    """An empty registry of the demo profile."""
    return Registry(params.store)


@pytest.fixture
def opened(params: Params, registry: Registry) -> Dataset:
    """The data set in the registry."""
    from flywheel.data import dataset

    return dataset.open_directory(registry.open(registry.resolve(params.dataset_name)))


@pytest.fixture
def random() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)


@pytest.fixture
def double() -> Iterator[WandbDouble]:
    """A double of the W&B service, which met no request that it does not know."""
    from wandb_double import WandbDouble

    with WandbDouble() as served:
        yield served
        assert served.errors == []


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The messages that the package logs during the test."""
    messages: list[str] = []
    handler, log = logging.Handler(), logging.getLogger("flywheel")
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield messages
    log.removeHandler(handler)
