"""Three hosts: a sweep that loses one by its link, gains one and loses that; a server with replicas on two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import hosts
import made_models
import pytest
import scripts
from hosts import Hosts
from waiting import wait_until

from flywheel import files
from flywheel.registry import Registry
from flywheel.traffic import feedback, records

SWEEP = (
    "tracking.wandb=disabled data.image_size=16 sweep.space.architecture=compact sweep.trials=7 sweep.epochs=16 "
    "sweep.early_stopping=false sweep.max_concurrent_trials=3 sweep.checkpoint_interval_s=0"
)
SERVE = (
    "tracking.wandb=disabled data.image_size=8 serve.min_replicas=2 serve.max_replicas=2 serve.port=8077 "
    "traffic.keep_images=1.0 simulate.truth=api simulate.label_fraction=1.0 simulate.label_delay_s=0 retrain.epochs=1 "
    "retrain.min_examples=1"
)
pytestmark = pytest.mark.long


@pytest.fixture
def made() -> Iterator[Hosts]:
    with hosts.network() as network:
        yield network


def test_a_sweep_survives_the_loss_of_two_hosts_and_uses_one_that_joins_late(made: Hosts) -> None:
    """The store is on the driver's host only; the checkpoints are shared."""
    more = f"{SWEEP} paths.checkpoints={made.shared}/checkpoints"
    store = made.folder_of("a") / "store/demo"

    def events(*kinds: str, node: str | None = None) -> list[dict[str, Any]]:
        found = [event for path in store.glob("journal/*.jsonl") for event in files.read_json_lines(path)]
        return [event for event in found if event["event"] in kinds and node in (None, event.get("node"))]

    def running(node: str) -> set[str]:
        """Return the ids of the trials that have an epoch on a node and have not ended."""
        ended = {event["trial"] for event in events("finished", "stopped", "failed")}
        return {event["trial"] for event in events("epoch", node=node)} - ended

    def continued(trials: set[str], since: datetime) -> str:
        """Return after how many seconds the first of the trials ran again."""
        runs = [datetime.fromisoformat(event["at"]) for event in events("run") if event["trial"] in trials]
        return f"{min((at - since).total_seconds() for at in runs if at > since):.0f} s"

    address = made.head("a")
    b = made.join("b", address)
    assert made.script("a", "data", more, folder=made.own).endswith("[exit 0]")
    process = made.start("a", scripts.command(made.own, "sweep", more), RAY_ADDRESS=address)
    try:
        wait_until(lambda: running(b) or process.poll() is not None, timeout_s=300)
        lost, cut_at = running(b), datetime.now(UTC)
        made.cut("b")
        c = made.join("c", address)
        joined_at = datetime.now(UTC)
        wait_until(lambda: running(c) or process.poll() is not None, timeout_s=300)
        first_epoch = (datetime.now(UTC) - joined_at).total_seconds()
        killed, killed_at = running(c), datetime.now(UTC)
        made.kill("c")
        said, errors = process.communicate(timeout=1200)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, said + errors
    assert lost
    assert killed
    print(f"link down: goes on after {continued(lost, cut_at)}; killed: after {continued(killed, killed_at)}")
    print(f"late host: first epoch {first_epoch:.0f} s after it joined")
    assert "2 nodes checked" in said
    assert said.count("died; it goes on from its last checkpoint") == len(lost) + len(killed)
    report = json.loads((made.folder_of("a") / "reports/demo/sweep.json").read_text())
    assert [trial["status"] for trial in report["trials"]] == ["finished"] * 7
    for trial in {event["trial"] for event in events("epoch")}:  # with a checkpoint an epoch none is trained twice
        assert [event["epoch"] for event in events("epoch") if event["trial"] == trial] == list(range(1, 17))
    copies = {host: len(list((made.folder_of(host) / "tmp").rglob("images.npy"))) for host in hosts.NAMES}
    assert copies == {"a": 0, "b": 1, "c": 1}  # those of lost hosts stay


def test_replicas_on_two_hosts_record_into_a_shared_store(made: Hosts) -> None:
    params = scripts.load(made.shared, SERVE)
    registry = Registry(params.store)
    made_models.produce(registry, params, (3,))
    address = made.head("a", cpus=0)  # the proxy there would prefer a replica of its host
    for host in "bc":
        made.join(host, address)

    def script(name: str, **environment: str) -> str:
        printed = made.script("a", name, SERVE, folder=made.shared, **environment)
        assert printed.endswith("[exit 0]"), printed
        return printed

    script("serve", RAY_ADDRESS=address)
    script("simulate")
    names = {path.name.rpartition("-")[0] for path in params.store_paths.traffic_records.iterdir()}
    assert len(names) == 2, names
    answered = list(records.read(params.store_paths))
    assert len(answered) == 150
    assert "150 labelled" in script("collect")
    newest = feedback.latest(params, registry)
    assert newest is not None
    assert len(feedback.read(registry, newest)) == 150
    script("retrain")
    assert Registry(params.store).resolve("retrained-model").input("feedback") == newest.ref
    script("stop")
