"""Trials on GPUs: logical GPUs of Ray, because the machine of the tests has none. Training runs on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from flywheel.sweep.journal import Journal, Trial

SETTINGS = (
    "sweep.trials=8 sweep.epochs=2 sweep.searcher=random sweep.early_stopping=false sweep.space.architecture=compact "
    "tracking.wandb=disabled"
)

pytestmark = pytest.mark.long

# Real trials on small random images. `around` records which GPUs a trial sees, and raises torch's error for a GPU
# without memory where the batch size is 62. It is sent to the workers by value.
SWEEP = """
import logging, os, sys
from pathlib import Path
import numpy as np
from flywheel.params import file as params_file
from flywheel.sweep import cluster, tune_runner
from flywheel.registry import Registry
from flywheel.sweep.state import SweepState
from flywheel.sweep.checkpoints import CheckpointStore
from flywheel.sweep.journal import Journal
from flywheel.sweep.progress import Recorder
from flywheel.tracking.runs import Tracker
from flywheel.training.loop import TrainingData

folder, overrides = Path(sys.argv[1]), sys.argv[2]
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")

def around(config, data, store, interval_s):
    import torch
    from types import SimpleNamespace
    from flywheel.sweep import trial
    store.subfolder("../seen").write(config["trial"], os.environ.get("CUDA_VISIBLE_DEVICES", "none").encode())
    real = trial.follow
    def follow(training, best=-1.0):
        for result in real(training, best):
            yield result
            if config["recipe"]["batch_size"] == 62:
                raise torch.cuda.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 16.00 GiB")
    trial.follow = follow
    try:
        trial.train(config, SimpleNamespace(open=lambda: data), store, interval_s)
    finally:
        trial.follow = real

params = params_file.load(profile="demo", overrides=overrides)
random = np.random.default_rng(0)
images, labels = random.integers(0, 255, (640, 16, 16, 3)).astype(np.uint8), np.arange(640) % 2
data = TrainingData(images, labels, images[:64], labels[:64], ("a", "b"), (0.4,) * 3, (0.3,) * 3)
state = SweepState(params, Journal(folder / "sweep-1.jsonl"))
store = CheckpointStore(str(folder / "trials"))
with cluster.connected():
    slots = cluster.Slots(params.sweep)
    recorder = Recorder(state, store, Tracker(params, Registry(params.store)))
    assert tune_runner.run(state, data, recorder, slots, function=around)
print("resources", slots.resources)
"""


@pytest.fixture(scope="module")
def gpus() -> Iterator[str]:
    """The address of a node with 8 logical CPUs and the GPUs 5 and 7 of its machine, as CUDA_VISIBLE_DEVICES says."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "5,7"
    try:
        args = {"num_cpus": 8, "num_gpus": 2, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=args)
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    yield str(cluster.address)
    cluster.shutdown()


def sweep(folder: Path, address: str, overrides: str) -> tuple[str, list[Trial]]:
    """Run a sweep and return its messages and its trials."""
    result = subprocess.run(
        [sys.executable, "-c", SWEEP, str(folder), f"paths.store={folder}/store {SETTINGS} {overrides}"],
        cwd=Path(__file__).parents[2], env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, Journal(folder / "sweep-1.jsonl").read().trials


def at_a_time(folder: Path) -> int:
    """Return the largest number of trials that ran at a time, from the journal."""
    running: set[str] = set()
    most = 0
    for line in (folder / "sweep-1.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "run":
            running.add(event["trial"])
        elif event["event"] in ("finished", "failed", "stopped"):
            running.discard(event["trial"])
        most = max(most, len(running))
    return most


def seen(folder: Path) -> list[str]:
    return [path.read_bytes()[32:].decode() for path in (folder / "seen").iterdir()]


def test_four_trials_with_a_quarter_share_each_visible_gpu(gpus: str, tmp_path: Path) -> None:
    said, trials = sweep(tmp_path, gpus, "sweep.gpus_per_trial=0.25")
    assert "concurrent=8" in said
    assert "sweep: 8 at a time" in said
    assert at_a_time(tmp_path) == 8
    assert sorted(seen(tmp_path)) == ["5"] * 4 + ["7"] * 4
    assert [trial.status for trial in trials] == ["finished"] * 8


@pytest.mark.parametrize(("asked", "concurrent"), [("auto", 2), ("0.6", 2), ("0.5", 4)])
def test_fractions_of_gpus_decide_how_many_trials_run(gpus: str, tmp_path: Path, asked: str, concurrent: int) -> None:
    said, trials = sweep(tmp_path, gpus, f"sweep.gpus_per_trial={asked} sweep.epochs=1")
    assert f"concurrent={concurrent}" in said
    assert at_a_time(tmp_path) == concurrent
    assert set(seen(tmp_path)) == {"5", "7"}
    assert [trial.status for trial in trials] == ["finished"] * 8


def test_a_trial_out_of_gpu_memory_fails_with_advice_and_the_others_finish(gpus: str, tmp_path: Path) -> None:
    said, trials = sweep(
        tmp_path,
        gpus,
        "sweep.gpus_per_trial=0.25 sweep.initial_trials=[{},{batch_size: 62}] sweep.space.batch_size=[62,64]",
    )
    failed = [trial for trial in trials if trial.status == "failed"]
    assert {trial.config["batch_size"] for trial in failed} == {62}
    assert all(trial.status == "finished" for trial in trials if trial.config["batch_size"] == 64)
    assert {trial.config["batch_size"] for trial in trials} == {62, 64}
    assert failed[0].error == (
        "OutOfMemory: CUDA out of memory; 4 trials share a GPU: set sweep.gpus_per_trial higher, "
        "or search smaller batches than 62 for compact"
    )
    assert failed[0].error in said
