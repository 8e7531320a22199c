"""Whether a stage runs: the real scripts on a copy of the code, after edits, other params, time stamps and kills.

All tests use the stage `data`, because the code that decides is the same for every stage.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import processes
import pytest
from PIL import Image

from flywheel.registry import Registry

ROOT = Path(__file__).parents[2]
DONE = "data: up to date (nothing changed since "
SMALL = "tracking.wandb=disabled data.image_size=8"


class Checkout:
    """A copy of the code with a store of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.store = folder / "store" / "demo"

    @classmethod
    def of(cls, source: Path, folder: Path) -> Checkout:
        """Copy code, params and, if there are any, store and reports."""
        for name in ("src", "scripts", "store", "reports"):
            if (source / name).exists() and (name in ("src", "scripts") or source != ROOT):
                # With the compiled code, but without the files of a process that compiles just now.
                shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"))
        shutil.copy2(source / "params.yaml", folder / "params.yaml")
        return cls(folder)

    def start(self, script: str, overrides: str = "", *arguments: str) -> subprocess.Popen[str]:
        chosen = ["--profile", "demo", "--set", SMALL, "--set", overrides, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(self.folder / "src"), "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            [sys.executable, f"scripts/{script}.py", *chosen], cwd=self.folder, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, script: str, overrides: str = "", *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.start(script, overrides, *arguments) as process:
            output, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def says(self, overrides: str = "") -> str:
        """Run `data` and return its first line; it must have succeeded and said nothing on stderr."""
        result = self.run("data", overrides)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.splitlines()[0]

    def status(self, overrides: str = "") -> dict[str, str]:
        """Return the line of each stage without its name."""
        result = self.run("status", overrides)
        assert (result.returncode, result.stderr) == (0, "")
        return {name: " ".join(rest) for name, *rest in map(str.split, result.stdout.splitlines())}

    def edit(self, module: str, old: str, new: str) -> None:
        path = self.folder / "src" / "flywheel" / module
        text = path.read_text()
        assert text.count(old) == 1, (module, old)
        path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose data set is built."""
    checkout = Checkout.of(ROOT, tmp_path_factory.mktemp("made"))
    assert checkout.says() == "data: running (never run)"
    return checkout


@pytest.fixture
def checkout(made: Checkout, tmp_path: Path) -> Checkout:
    """A copy of that for one test."""
    return Checkout.of(made.folder, tmp_path)


# Code


def test_editing_a_helpers_code_runs_it(checkout: Checkout) -> None:
    checkout.edit("data/drift.py", "import numpy as np\n", "import numpy as np\n\nADDED = 1\n")
    assert checkout.status()["data"] == "to run code changed: flywheel.data.drift"
    assert checkout.says() == "data: running (code changed: flywheel.data.drift)"
    assert checkout.says().startswith(DONE)


def test_code_and_params_that_do_not_change_the_data_run_nothing(checkout: Checkout) -> None:
    checkout.edit("files.py", "CHUNK_BYTES = 1 << 20", "CHUNK_BYTES = 1 << 21")
    checkout.edit("models/compact.py", "momentum=0.4", "momentum=0.5")
    assert checkout.says("paths.cache=/elsewhere recipe.momentum=0.5").startswith(DONE)


def test_docstrings_comments_layout_and_time_stamps_run_nothing(checkout: Checkout) -> None:
    for path in (checkout.folder / "src").rglob("*.py"):
        text = re.sub(r'\n    """(?=\w)', '\n    """Said otherwise. ', path.read_text())
        text = re.sub(r"\n\n\n(?=def|class|@)", "\n\n\n\n# a comment\n", text)
        path.write_text(f"# a first line\n{text}\n\n# a last line\n")
    for times in (None, (1, 1)):  # now and 1970
        for path in checkout.folder.rglob("*"):
            os.utime(path, times)
        assert checkout.says().startswith(DONE)


def test_a_syntax_error_is_one_line_with_its_place(checkout: Checkout) -> None:
    checkout.edit("data/drift.py", "import numpy as np\n", "import numpy as\n")
    result = checkout.run("data")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert re.match(r"error: .*src/flywheel/data/drift\.py:\d+: .*; fix it and run again", line)


# Params


def test_an_identity_param_runs_it_and_going_back_does_not(checkout: Checkout) -> None:
    assert checkout.says("data.seed=1") == "data: running (data.seed changed: 0 -> 1)"
    assert checkout.says("data.seed=1").startswith(DONE)
    assert checkout.says() == "data: up to date (made before as digits_dataset:v0)"


@pytest.mark.long
def test_a_folder_may_move_and_one_byte_of_it_may_not_change(
    tmp_path: Path, checkout: Checkout, random: np.random.Generator
) -> None:
    mine = tmp_path / "mine"
    for number in range(40):
        file = mine / ("test" if number % 4 == 0 else "train") / ("кошка" if number % 8 < 4 else "🐈") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    settings = "data.source=folder data.name=mine data.image_size=8"
    assert checkout.says(f"{settings} data.path={mine}").startswith("data: running (data.")
    moved = mine.rename(tmp_path / "moved")
    assert checkout.says(f"{settings} data.path={moved}").startswith(DONE)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(next(moved.glob("train/*/*.png")))
    assert checkout.says(f"{settings} data.path={moved}") == "data: running (its input changed: source)"


# Outputs


def test_a_removed_output_is_made_again(checkout: Checkout) -> None:
    """What of it is missing and why it runs, tests/pipeline/test_stage.py asserts; a report, the stage draws itself."""
    report = checkout.folder / "reports" / "demo" / "samples_test.png"
    before = report.read_bytes()
    report.unlink()
    assert checkout.says() == f"data: up to date ({report} is missing and is made again from digits_dataset:v0)"
    assert report.read_bytes() == before
    (checkout.store / "registry" / "versions" / "digits_dataset" / "v0" / "files" / "labels.npy").unlink()
    assert checkout.status()["data"].startswith("to run an output is damaged")
    assert checkout.says().startswith("data: running (an output is damaged: ")
    registry = Registry(checkout.store)
    registry.verify(registry.resolve("digits_dataset:v0"))
    assert checkout.says().startswith(DONE)


# Kills, and two at once


@contextlib.contextmanager
def building(checkout: Checkout, until: Callable[[], bool] = lambda: True) -> Iterator[subprocess.Popen[str]]:
    """Run `data` until it holds its lock and the condition is met. Kill it at the end if it still runs."""
    owner = checkout.store / "locks" / "data.pid"
    process = checkout.start("data")
    with processes.once(process, lambda: owner.exists() and owner.read_text() == str(process.pid) and until()):
        yield process


@pytest.fixture
def empty(tmp_path: Path) -> Checkout:
    """A checkout without a store."""
    return Checkout.of(ROOT, tmp_path)


@pytest.mark.parametrize(
    "where", ["writing", *(pytest.param(where, marks=pytest.mark.long) for where in ("at the start", "published"))]
)
def test_a_killed_stage_is_not_done_and_the_next_run_completes(empty: Checkout, where: str) -> None:
    scratch, versions = empty.store / "scratch" / "data", empty.store / "registry/versions/digits_dataset/v0"
    conditions: dict[str, Callable[[], bool]] = {
        "at the start": lambda: True,
        "writing": lambda: any(scratch.glob("*/images.npy")),
        "published": versions.exists,
    }
    with building(empty, conditions[where]) as process:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (empty.store / "receipts").exists()
    registry, published = Registry(empty.store), versions.exists()
    for version in registry.versions("digits_dataset"):
        registry.verify(version)
    stages = empty.status()
    assert stages["data"].startswith("up to date" if published else "to run never run")
    assert stages["sweep"] == ("to run never run" if published else "waiting for data")
    said = "data: up to date (made before as digits_dataset:v0)" if published else "data: running (never run)"
    assert empty.says() == said
    assert empty.says().startswith(DONE)
    registry.verify(registry.resolve("digits_dataset:v0"))
    assert list(scratch.glob("*")) == []


def test_a_concurrent_run_exits_75_and_names_the_other_pid(empty: Checkout) -> None:
    with building(empty) as first:
        stages = empty.status()
        assert stages["data"] == f"running (pid {first.pid}) make logs PROFILE=demo shows its messages"
        assert stages["sweep"] == stages["evaluate"] == "waiting for data"
        second = empty.run("data")
        assert second.returncode == 75
        assert second.stdout == ""
        assert second.stderr == f"error: another run holds data (pid {first.pid}); wait for it to end\n"
        output, errors = first.communicate(timeout=120)
        assert (first.returncode, errors) == (0, "")
        assert output.splitlines()[0] == "data: running (never run)"
    assert empty.says().startswith(DONE)


# Status


def test_status_shows_each_stage_after_one_that_must_run_as_waiting(checkout: Checkout) -> None:
    stages = checkout.status()
    assert stages["data"].startswith("up to date nothing changed since")
    assert (stages["sweep"], stages["evaluate"]) == ("to run never run", "waiting for sweep")
    stages = checkout.status("data.seed=1")
    assert (stages["data"], stages["sweep"]) == ("to run data.seed changed: 0 -> 1", "waiting for data")
