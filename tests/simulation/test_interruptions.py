"""The real script, interrupted, killed and doubled in the middle of its traffic: nothing half-done is published."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
import scripts

from flywheel.data.dataset import Dataset
from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.tracking import media, run_files

OVERRIDES = "data.image_size=8 tracking.wandb=disabled simulate.concurrency=4"


def run(root: Path, more: str = "") -> subprocess.CompletedProcess[str]:
    return scripts.run(root, "simulate", f"{OVERRIDES} {more}")


@contextlib.contextmanager
def simulating(root: Path, server: Any) -> Iterator[subprocess.Popen[str]]:
    """A simulation in the middle of its traffic, which the server keeps from going on."""
    server.fault = lambda number, tries: (lambda handler: time.sleep(20)) if number > 100 else None
    process = scripts.start(root, "simulate", OVERRIDES, PYTHONUNBUFFERED="1")
    with processes.once(process, lambda: server.requests > 100):
        yield process
    server.fault = lambda number, tries: None


def published(params: Params, registry: Registry) -> list[str]:
    paths = (
        params.reports / "simulation.json",
        params.store_paths.feedback_log,
        params.reports / "simulation_latency.png",
    )
    return [*(v.label for v in registry.versions("digits-feedback")), *(p.name for p in paths if p.exists())]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, -15, marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.long),
    ],
)
def test_a_simulation_that_is_ended_publishes_nothing_and_the_next_one_everything(
    root: Path, params: Params, registry: Registry, opened: Dataset, server: Any, number: int, code: int
) -> None:
    server.fail(opened, range(103))
    with simulating(root, server) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)  # it does not wait for the answers that hang
    assert process.returncode == code
    if number == signal.SIGINT:
        assert errors == "interrupted: finished work is kept; run the same command again\n"
    assert published(params, registry) == []
    again = run(root, "tracking.wandb=offline simulate.table_rows=7")
    assert again.returncode == 0, again.stderr
    assert (
        "feedback: 150 labelled images (103 failures), 150 new; digits-feedback:v0 lists 150 of all rounds"
        in again.stdout
    )
    assert published(params, registry) == [
        "digits-feedback:v0", "simulation.json", "feedback.jsonl", "simulation_latency.png",
    ]  # fmt: skip
    assert "W&B table of 7 of 47 right predictions" in again.stdout
    check_wandb(params, opened, server, {int(opened.ids[i]) for i in opened.indices["simulation"][:103]})


def check_wandb(params: Params, opened: Dataset, server: Any, failed: set[int]) -> None:
    """The table of right predictions is bounded, and nothing names the host."""
    (recorded,) = run_files.records(params.store)
    (table,) = [one for one in recorded.media if one.name == "right"]
    content = json.loads(media.path(params.store, table).read_text())
    assert content["columns"] == ["id", "image", "label", "prediction", "confidence", "model"]
    assert len(content["rows"]) == 7
    for row in content["rows"]:
        assert row[0] not in failed
        assert row[2] == row[3]
        assert row[4:] == [pytest.approx(0.9), "model-1:v0"]
    assert server.url not in f"{recorded.config} {recorded.summary}"  # an address may name a host


def test_without_a_server_the_script_says_one_sentence(root: Path) -> None:
    result = run(root)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: nothing serves profile demo; run make serve PROFILE=demo\n"
