"""A sweep that is killed, interrupted or started twice: nothing is mistaken for done and no process is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel.registry import Registry

ROOT = Path(__file__).parents[2]
# Long enough to be met in the middle: the signal comes when the first trials have started.
OVERRIDES = (
    "data.image_size=16 sweep.trials=6 sweep.epochs=60 sweep.early_stopping=false sweep.space.architecture=compact"
)
QUICK = "data.image_size=16 sweep.trials=2 sweep.epochs=1 sweep.space.architecture=compact"

pytestmark = pytest.mark.long


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "FLYWHEEL_TEST_PLACE": str(place)}


def command(place: Path, script: str, overrides: str) -> list[str]:
    paths = f"paths.store={place}/store paths.reports={place}/reports"
    return [sys.executable, f"scripts/{script}.py", "--profile", "demo", "--set", f"{paths} {overrides}"]


def run(place: Path, script: str, overrides: str = OVERRIDES) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(place, script, overrides), cwd=ROOT, env=environment(place), capture_output=True, text=True, timeout=300
    )


@contextlib.contextmanager
def sweeping(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep in the middle of its first trials; killed at the end if it still runs."""
    assert run(place, "data").returncode == 0
    process = subprocess.Popen(
        command(place, "sweep", OVERRIDES), cwd=ROOT, env=environment(place), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        journal = place / "store" / "demo" / "journal"
        deadline = time.monotonic() + 90
        while not any(b'"epoch"' in path.read_bytes() for path in journal.glob("*.jsonl")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def left_processes(place: Path) -> list[str]:
    """Return the command lines of live processes that were started for a place, Ray's and W&B's included."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            marked = f"FLYWHEEL_TEST_PLACE={place}".encode() in (folder / "environ").read_bytes()
            if marked and (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " ")[:120])
    return found


def wait_for_none_left(place: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := left_processes(place):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_sweep_says_so_in_one_line_and_leaves_no_process(tmp_path: Path, number: int) -> None:
    with sweeping(tmp_path) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted: nothing was published; run the same command again\n"
    wait_for_none_left(tmp_path, 30)
    (line,) = [line for line in run(tmp_path, "status").stdout.splitlines() if line.startswith("sweep")]
    assert "to run" in line
    # Weights on their way lie in the sweep's folder, not in /tmp where nobody would remove them.
    assert list((tmp_path / "store/demo/trials").glob("*/scratch"))
    assert run(tmp_path, "clean").returncode == 0
    assert not (tmp_path / "store/demo/trials").exists()


def test_a_killed_sweep_is_not_done_and_the_next_one_is_clean(tmp_path: Path) -> None:
    with sweeping(tmp_path) as process:
        process.kill()
        process.communicate()
    wait_for_none_left(tmp_path, 240)  # Ray's agents look only now and then whether their raylet lives
    registry = Registry(tmp_path / "store" / "demo")
    assert registry.collections() == ["digits_dataset"]
    assert "never run" in run(tmp_path, "status").stdout
    again = run(tmp_path, "sweep", QUICK)
    assert again.returncode == 0, again.stderr
    assert len([name for name in registry.collections() if name.startswith("model-")]) == 1
    assert not (tmp_path / "store" / "demo" / "trials").exists()


def test_a_second_sweep_at_once_exits_75_and_names_the_first(tmp_path: Path) -> None:
    with sweeping(tmp_path) as process:
        second = run(tmp_path, "sweep")
        assert second.returncode == 75
        assert second.stderr == f"error: another run holds sweep (pid {process.pid}); wait for it to end\n"
        assert process.poll() is None
