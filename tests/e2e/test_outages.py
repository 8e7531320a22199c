"""W&B fails while a real stage runs: the stage succeeds and ends soon, and `make sync` uploads all of it later.

The real scripts, one process each, and the real SDK against a double of the service.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
import scripts
from served import free_port
from waiting import wait_until
from wandb_double import WandbDouble
from wandb_process import ROOT, Done, clean_environment, end, store_of

from flywheel.registry import Registry
from flywheel.sweep.journal import Journal
from flywheel.tracking import run_files

pytestmark = pytest.mark.long

PROJECT, REGISTRY, MODEL = "flywheel-demo", "wandb-registry-model", "digits-classifier"
SMALL = (
    "data.image_size=16 sweep.trials=2 sweep.epochs=3 sweep.early_stopping=false sweep.space.architecture=compact "
    "gate.floor_accuracy=0.05 gate.allow_unlearned_classes=true gate.margin=1 gate.class_margin=1 "
    "retrain.epochs=1 retrain.min_failures=1 "
    "retrain.control=false"
)
STAGES = ("data", "sweep", "evaluate", "simulate", "retrain")
OUTAGES: dict[str, Callable[[WandbDouble], object]] = {
    "refused": lambda double: double.vanish(),
    "silent": lambda double: double.fail(".*", "hang"),
}


def start(base: Path, name: str, more: str = "", prefix: tuple[str, ...] = (), **environment: str) -> Any:
    return subprocess.Popen(
        [*prefix, *scripts.command(base, name, f"tracking.wandb=auto {SMALL} {more}")], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(base, **environment),
    )  # fmt: skip


def record_of(base: Path, job_type: str) -> run_files.RunRecord:
    (found,) = [record for record in run_files.records(store_of(base)) if record.job_type == job_type]
    return found


def online(base: Path, double: WandbDouble, name: str, more: str) -> Done:
    """Run a script while the service is there."""
    ended = end(start(base, name, more, **double.environment))
    assert (ended.code, ended.errors) == (0, ""), ended
    return ended


@pytest.mark.parametrize("how", OUTAGES)
def test_every_stage_survives_an_outage_and_sync_uploads_everything(
    tmp_path: Path, double: WandbDouble, how: str
) -> None:
    """In each stage of a round, once its run has started (in a sweep, the runs of its trials)."""
    port = free_port()
    more = f"serve.port={port}"
    for name in STAGES:
        if name == "simulate":
            online(tmp_path, double, "serve", more)
        process = start(tmp_path, name, more, **double.environment)
        awaited = {name, "trial"} if name == "sweep" else {name}
        wait_until(lambda: awaited <= {run.fields.get("jobType") for run in double.runs(PROJECT)}, timeout_s=180)  # noqa: B023
        OUTAGES[how](double)
        ended = end(process)
        if name == "simulate":
            end(start(tmp_path, "stop", more))
        double.mend() if how == "silent" else double.listen()
        record = record_of(tmp_path, name)
        assert (ended.code, ended.errors) == (0, ""), ended
        assert ended.of_wandb()[0].startswith("W&B: online (127.0.0.1 answers; project tester/")
        assert len(ended.of_wandb()) == 2, ended
        assert ended.of_wandb()[1].endswith("make sync uploads the rest")
        assert record.waited_s is not None
        assert record.waited_s < 20
        assert (record.finished, record.confirmed) == ("finished", ())
        assert record.summary
    ended = online(tmp_path, double, "sync", more)
    check_uploaded(tmp_path, double)
    assert "sync: all is on W&B" in ended.lines[-1]
    assert not double.mentions(os.uname().nodename)
    for told in (str(tmp_path), str(ROOT), f"127.0.0.1:{port}"):
        assert not [text for text in double.texts() if told in text], told


def check_uploaded(base: Path, double: WandbDouble) -> None:
    registry = Registry(store_of(base))
    records = list(run_files.records(store_of(base)))
    assert {record.job_type for record in records} == {*STAGES, "trial"}
    assert sum(record.job_type == "trial" for record in records) == 2
    runs = double.projects[PROJECT].runs
    for record in records:
        run = runs[record.key]
        assert run.state == "finished"
        assert [row["_step"] for row in run.history if "accuracy" in row] == [1, 2, 3] or record.job_type != "trial"
        assert set(record.used) <= {f"{one.collection.name}@{one.digest}" for one in run.used}
        assert set(record.made) <= {f"{one.collection.name}@{one.digest}" for one in run.logged}
        for medium in record.media:
            shown = run.summary[f"{medium.name}_table" if medium.kind == "confusion_matrix" else medium.name]
            assert len(double.blobs[run.files[shown["path"]]]) == shown["size"]
        assert record.confirmed
    shown = {record.job_type: {medium.name for medium in record.media} for record in records}
    assert "right" in shown["simulate"]
    assert {"confusion_matrix_interactive", "confusion_matrix", "worst"} <= shown["evaluate"]
    for name in registry.collections():
        for version in registry.versions(name):
            (member,) = [m for m in double.collection(PROJECT, name).members if m.digest == version.digest]
            for path, entry in member.contents.items():
                assert double.blobs[double.key(entry)] == (registry.open(version) / path).read_bytes()
    here = {alias: ref.partition("@")[2] for alias, ref in registry.aliases(MODEL).items()}
    assert here.items() <= double.aliases(REGISTRY, MODEL).items()
    assert {"best", "production", "candidate"} <= set(here)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("how", ["there", *OUTAGES])
def test_signal_ends_a_sweep_soon_during_an_outage(
    tmp_path: Path, double: WandbDouble, how: str, number: signal.Signals
) -> None:
    """State is saved, runs end, no process is left; when W&B is back, make sync ends the runs there, too."""
    mark = {"FLYWHEEL_TEST_PLACE": str(tmp_path), **double.environment}
    online(tmp_path, double, "data", "")
    process = start(tmp_path, "sweep", "sweep.epochs=200 sweep.trials=4", **mark)

    def epochs() -> list[int]:
        return [len(run.history) for run in double.runs(PROJECT) if run.fields.get("jobType") == "trial"]

    wait_until(lambda: len(epochs()) == 2 and min(epochs()) >= 1, timeout_s=180)
    if how != "there":
        OUTAGES[how](double)
        time.sleep(2)  # so that W&B's process has met it
    process.send_signal(number)
    ended = end(process, timeout_s=60)
    assert (ended.code, ended.errors) == (130, "interrupted: finished work is kept; run the same command again\n")
    assert "sweep: interrupted after 0 of 4 trials; the same command goes on from there" in ended.lines
    processes.wait_for_none_left(f"FLYWHEEL_TEST_PLACE={tmp_path}", 5)
    (journal,) = (store_of(tmp_path) / "journal").glob("*.jsonl")
    rows = {record.key: len(record.rows) for record in run_files.records(store_of(tmp_path))}
    for trial in Journal(journal).read().trials:
        assert trial.status == "running"
        assert rows[trial.id] == len(trial.epochs) >= 1
    cut = [record for record in run_files.records(store_of(tmp_path)) if record.job_type in ("sweep", "trial")]
    assert [record.finished for record in cut] == ["interrupted"] * 3
    double.mend() if how != "refused" else double.listen()
    online(tmp_path, double, "sync", "")
    runs = double.projects[PROJECT].runs
    assert {runs[record.key].state for record in cut} == {"failed"}
    assert all(len(runs[record.key].history) >= len(record.rows) for record in cut)


# A machine without a network, and one whose packets are neither answered nor refused: looking up a name takes 10 s.
LOOPBACK_ONLY = "ip link set lo up"
DEAD_CABLE = (
    f"{LOOPBACK_ONLY} && ip link add out type veth peer name end && ip link set end up && ip link set out up && "
    "ip address add 10.9.9.1/24 dev out && ip neighbour add 10.9.9.2 lladdr 02:00:00:00:00:02 dev out && "
    "ip route add default via 10.9.9.2"
)


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    """Return the prefix of commands that run in a network of their own, created by the given shell commands."""
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", f"{request.param} && echo made && exec sleep 3600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as keeper:
        assert keeper.stdout is not None
        try:
            if (said := keeper.stdout.readline()) != "made\n":
                pytest.skip(f"no separate network can be created here: {said}")
            yield "nsenter", "--preserve-credentials", "--user", "--net", "--target", str(keeper.pid)
        finally:
            keeper.kill()


@pytest.mark.parametrize("network", [LOOPBACK_ONLY, DEAD_CABLE], indirect=True, ids=["loopback only", "dead cable"])
def test_without_a_network_and_with_a_key_every_stage_completes(tmp_path: Path, network: tuple[str, ...]) -> None:
    for name in ("data", "sweep", "evaluate", "serve", "simulate", "retrain"):
        ended = end(start(tmp_path, name, prefix=network, WANDB_API_KEY="0" * 40))
        if name == "simulate":
            end(start(tmp_path, "stop", prefix=network))
        of_ray = "network_util.cc"  # where it cannot tell the machine's address, it warns and takes the host's name
        assert [line for line in ended.errors.splitlines() if of_ray not in line] == []
        assert ended.code == 0, ended
        if name == "serve":
            continue
        record = record_of(tmp_path, name)
        (said,) = ended.of_wandb()
        assert said.startswith("W&B: offline (api.forge.coreweave.com does not answer (")
        assert record.waited_s is not None
        assert record.waited_s < 20
        assert record.finished == "finished"


def test_unknown_host_leads_to_offline_soon(tmp_path: Path) -> None:
    nowhere = {"WANDB_BASE_URL": "https://wandb.invalid", "WANDB_API_KEY": "0" * 40}
    ended = end(start(tmp_path, "data", **nowhere))
    assert (ended.code, ended.errors) == (0, ""), ended
    (said,) = ended.of_wandb()
    assert said.startswith("W&B: offline (wandb.invalid does not answer (")
    assert (record_of(tmp_path, "data").waited_s or 99) < 20
    ended = end(start(tmp_path, "sync", **nowhere))
    assert ended.code == 1
    assert ended.errors.startswith("error: W&B is not online, nothing was uploaded: wandb.invalid does not answer (")
