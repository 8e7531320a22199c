"""A sweep on a Ray cluster that the user started: several raylets on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import scripts
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster
from scripts import ROOT
from waiting import wait_until

from flywheel import files
from flywheel.sweep import nodes

OVERRIDES = (
    "data.image_size=16 sweep.trials=3 sweep.epochs=2 sweep.space.architecture=compact gate.floor_accuracy=0.1 "
    "gate.allow_unlearned_classes=true"
)

pytestmark = pytest.mark.long


@contextlib.contextmanager
def in_folder(folder: Path, **variables: str) -> Iterator[None]:
    """Processes that start inside get this working directory and environment, as on a machine of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for name, value in variables.items():
            patched.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three nodes with one CPU each, each in its own working directory."""
    folder = tmp_path_factory.mktemp("nodes")
    with in_folder(folder / "head"):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for name in ("one", "two"):
        with in_folder(folder / name):
            cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cluster(started: Cluster) -> str:
    return str(started.address)


def alive_nodes(address: str) -> int:
    code = (
        f"import ray; ray.init('{address}', log_to_driver=False, logging_level=50); "
        "print(sum(n['Alive'] for n in ray.nodes()))"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def run(folder: Path, address: str, *stages: str, overrides: str = OVERRIDES) -> subprocess.CompletedProcess[str]:
    """Run stages on the cluster; return the result of the first that fails, or of the last."""
    for stage in stages:
        result = scripts.run(folder, stage, overrides, RAY_ADDRESS=address)
        if result.returncode:
            break
    return result


def epochs(folder: Path) -> list[dict[str, Any]]:
    """Return the epoch events of the sweep in order."""
    journals = (folder / "store/demo/journal").glob("*.jsonl")
    return [event for path in journals for event in files.read_json_lines(path) if event["event"] == "epoch"]


def test_a_sweep_runs_on_the_cluster_and_does_not_end_it(cluster: str, tmp_path: Path) -> None:
    result = run(tmp_path, cluster, "data", "sweep")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "3 nodes checked in" in result.stdout
    assert "2 at a time (1 CPU, 0 GPU each)" in result.stdout
    report = json.loads((tmp_path / "reports/demo/sweep.json").read_text())
    assert [trial["status"] for trial in report["trials"]].count("failed") == 0
    assert alive_nodes(cluster) == 3


def test_checkpoints_may_be_at_a_uri(cluster: str, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/elsewhere"
    result = run(tmp_path, cluster, "data", "sweep", overrides=f"{OVERRIDES} paths.checkpoints={uri}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{uri}/demo" in result.stdout
    assert not (tmp_path / "store/demo/trials").exists()
    assert not list((tmp_path / "elsewhere/demo").iterdir())  # all of it was removed


def test_the_code_of_the_package_is_sent_to_the_nodes(cluster: str) -> None:
    code = (
        "import ray\n"
        "from flywheel.sweep import cluster\n"
        "with cluster.connected():\n"
        "    import flywheel\n"
        "    def where():\n        import flywheel\n        return flywheel.__file__\n"
        "    print(flywheel.__file__, ray.get(ray.remote(where).remote()))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "RAY_ADDRESS": cluster},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    here, there = shown.stdout.split()
    assert here != there
    assert "runtime_resources" in there


def test_checkpoints_that_nodes_do_not_share_are_refused_before_a_trial(cluster: str, tmp_path: Path) -> None:
    """/proc/self/cwd is another directory on each node, as a disk of its own would be."""
    overrides = f"{OVERRIDES} paths.checkpoints=/proc/self/cwd/checkpoints"
    assert run(tmp_path, cluster, "data").returncode == 0
    try:
        result = run(tmp_path, cluster, "sweep", overrides=overrides)
    finally:
        subprocess.run(["rm", "-rf", str(ROOT / "checkpoints")], check=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: 3 faults of the cluster, no trial was started:\n")
    assert result.stderr.count("is not shared (it does not see what this machine writes there)") == 3
    assert epochs(tmp_path) == []


@pytest.fixture
def other_torch(tmp_path: Path) -> dict[str, str]:
    """The environment of a node whose interpreter finds the metadata of another torch first, as an outdated one."""
    other = tmp_path / "site" / "torch-2.13.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    return {"PYTHONPATH": os.pathsep.join([str(other.parent), os.environ.get("PYTHONPATH", "")])}


def test_a_node_with_another_version_is_refused_and_named(
    started: Cluster, cluster: str, tmp_path: Path, other_torch: dict[str, str]
) -> None:
    with in_folder(tmp_path / "node", **other_torch):
        node = started.add_node(num_cpus=1)
    try:
        started.wait_for_nodes()
        result = run(tmp_path, cluster, "data", "sweep")
    finally:
        started.remove_node(node)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1, result.stderr
    line = result.stderr
    assert "torch 2.13.0 there, 2.14.1 here; install requirements.lock on every node" in line
    assert node.node_id[:6] in line


def test_a_node_that_joins_with_another_version_ends_the_sweep_which_goes_on_without_it(
    started: Cluster, cluster: str, tmp_path: Path, other_torch: dict[str, str]
) -> None:
    more = f"{OVERRIDES} sweep.epochs=20 sweep.early_stopping=false"
    assert run(tmp_path, cluster, "data", overrides=more).returncode == 0
    process = scripts.start(tmp_path, "sweep", more, RAY_ADDRESS=cluster)
    wait_until(lambda: epochs(tmp_path) or process.poll() is not None, timeout_s=120)
    with in_folder(tmp_path / "node", **other_torch):
        node = started.add_node(num_cpus=1)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        started.remove_node(node)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1, errors
    assert "torch 2.13.0 there, 2.14.1 here; install requirements.lock on every node" in errors
    assert node.node_id[:6] in errors
    known = len(epochs(tmp_path))
    result = run(tmp_path, cluster, "sweep", overrides=more)
    assert result.returncode == 0, result.stdout + result.stderr
    assert known > 0
    trained = {(event["trial"], event["epoch"]) for event in epochs(tmp_path)}
    assert len(trained) == 60  # nothing is lost; those since the last checkpoint were trained twice


@contextlib.contextmanager
def claiming(started: Cluster, **versions: str) -> Iterator[None]:
    """The cluster reports other versions to drivers that connect."""
    client = ray._raylet.GcsClient(address=started.address)
    key, namespace = b"CLUSTER_METADATA", b"cluster"
    told = client.internal_kv_get(key, namespace)
    client.internal_kv_put(key, json.dumps(json.loads(told) | versions).encode(), True, namespace)
    try:
        yield
    finally:
        client.internal_kv_put(key, told, True, namespace)


@pytest.mark.parametrize(
    ("versions", "expected"),
    [({"ray_version": "2.40.0"}, "Ray: 2.40.0"), ({"python_version": "3.9.1"}, "Python: 3.9.1")],
)
def test_a_cluster_with_another_ray_or_python_is_refused_in_one_sentence(
    started: Cluster, cluster: str, tmp_path: Path, versions: dict[str, str], expected: str
) -> None:
    with claiming(started, **versions):
        result = run(tmp_path, cluster, "data", "sweep")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "Version mismatch" in line
    assert expected in line
    assert "the same Python and requirements.lock" in line
    assert epochs(tmp_path) == []


def bytes_made(nodes: list[Any]) -> list[int]:
    """Return the bytes that each node's object store ever received."""
    return [
        node_stats(node.node_ip_address, node.node_manager_port, False).store_stats.cumulative_created_bytes
        for node in nodes
    ]


def test_each_node_but_the_drivers_copies_the_images_once_and_drops_them(
    started: Cluster, cluster: str, tmp_path: Path
) -> None:
    overrides = f"{OVERRIDES} data.image_size=64 sweep.trials=8 sweep.epochs=1 sweep.max_concurrent_trials=2"
    by_node = {node.node_id: node for node in started.list_all_nodes()}
    before = dict(zip(by_node, bytes_made(list(by_node.values())), strict=True))
    assert run(tmp_path, cluster, "data", overrides=overrides).returncode == 0
    process, copies = scripts.start(tmp_path, "sweep", overrides, RAY_ADDRESS=cluster), dict[str, set[int]]()
    while process.poll() is None:
        for path in nodes._root().glob("*/images.npy"):
            copies.setdefault(path.parent.name, set()).add(path.stat().st_ino)
        time.sleep(0.05)
    assert process.returncode == 0, process.communicate()
    (journal,) = tmp_path.glob("store/demo/journal/*.jsonl")  # another test may have left copies, or have some now
    copies = {name.removeprefix(f"{journal.stem}-"): inodes for name, inodes in copies.items() if journal.stem in name}
    after = dict(zip(by_node, bytes_made(list(by_node.values())), strict=True))
    (array,) = (tmp_path / "store/demo").rglob("images.npy")
    ran = Counter(event["node"] for event in epochs(tmp_path))
    assert sum(ran.values()) == 8
    assert max(ran.values()) > 2  # so that a copy for each trial would show
    assert set(copies) <= set(ran)
    assert len(set(ran) - set(copies)) <= 1  # the driver's node
    for node, files_seen in copies.items():
        assert len(files_seen) == 1
        assert array.stat().st_size <= after[node] - before[node] < 1.5 * array.stat().st_size
    assert not list(nodes._root().glob(f"{journal.stem}*"))


def test_trials_of_a_dead_node_continue_from_their_checkpoints_and_a_new_node_is_used(
    started: Cluster, cluster: str, tmp_path: Path
) -> None:
    overrides = (
        "data.image_size=16 sweep.space.architecture=compact sweep.trials=9 sweep.epochs=20 sweep.early_stopping=false "
        "sweep.max_concurrent_trials=4 sweep.checkpoint_interval_s=0"
    )
    assert run(tmp_path, cluster, "data", overrides=overrides).returncode == 0
    with in_folder(tmp_path / "doomed"):
        doomed = started.add_node(num_cpus=1)
    started.wait_for_nodes()
    process = scripts.start(tmp_path, "sweep", overrides, RAY_ADDRESS=cluster)
    try:
        wait_until(
            lambda: process.poll() is not None or doomed.node_id in {event["node"] for event in epochs(tmp_path)},
            timeout_s=300,
        )
        (raylet,) = doomed.all_processes["raylet"]
        psutil.Process(raylet.process.pid).kill()
        before = len(epochs(tmp_path))
        with in_folder(tmp_path / "fresh"):
            fresh = started.add_node(num_cpus=1)
        said, errors = process.communicate(timeout=550)
    finally:
        if process.poll() is None:
            process.kill()
        started.remove_node(doomed, allow_graceful=False)
    assert process.returncode == 0, errors
    assert "died; it goes on from its last checkpoint" in said
    events = epochs(tmp_path)
    assert fresh.node_id in {event["node"] for event in events[before:]}
    report = json.loads((tmp_path / "reports/demo/sweep.json").read_text())
    assert [trial["status"] for trial in report["trials"]] == ["finished"] * 9
    for trial in {event["trial"] for event in events}:  # with a checkpoint an epoch none is trained twice
        assert [event["epoch"] for event in events if event["trial"] == trial] == list(range(1, 21))
    started.remove_node(fresh)


def test_an_address_without_an_answer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as bound:  # bound and not listening: nobody answers there
        bound.bind(("127.0.0.1", 0))
        result = run(tmp_path, f"127.0.0.1:{bound.getsockname()[1]}", "data", "sweep")
    assert "no answer" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "ray://… cannot be used here" in run(tmp_path, "ray://127.0.0.1:1", "data", "sweep").stderr
