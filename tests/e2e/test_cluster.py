"""The same sweep on a Ray cluster that somebody else runs: two nodes on this machine, started by the test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]
OVERRIDES = "data.image_size=16 sweep.trials=3 sweep.epochs=2 gate.floor_accuracy=0.1 sweep.space.architecture=compact"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes of one CPU each, which the test ends."""
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started.add_node(num_cpus=1)
    started.wait_for_nodes()
    yield str(started.address)
    started.shutdown()


def alive_nodes(address: str) -> int:
    code = (
        f"import ray; ray.init('{address}', log_to_driver=False, logging_level=50); "
        "print(sum(n['Alive'] for n in ray.nodes()))"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def make(place: Path, address: str, *arguments: str, overrides: str = OVERRIDES) -> subprocess.CompletedProcess[str]:
    paths = f"paths.store={place}/store paths.reports={place}/reports"
    return subprocess.run(
        ["make", *arguments, "PROFILE=demo", f"SET={paths} {overrides}"],
        cwd=ROOT, env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_a_sweep_runs_on_the_cluster_and_leaves_it_alone(cluster: str, tmp_path: Path) -> None:
    result = make(tmp_path, cluster, "evaluate")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "2 at a time (1 CPU, 0 GPU each)" in result.stdout
    report = json.loads((tmp_path / "reports/demo/sweep.json").read_text())
    assert [trial["status"] for trial in report["trials"]].count("failed") == 0
    assert alive_nodes(cluster) == 2


def test_the_packages_code_is_shipped(cluster: str) -> None:
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


def test_what_no_single_node_holds_is_refused(cluster: str, tmp_path: Path) -> None:
    result = make(tmp_path, cluster, "sweep", overrides=f"{OVERRIDES} sweep.cpus_per_trial=2")
    assert "error: sweep.cpus_per_trial=2 but no node has more than 1 CPUs" in result.stderr


def test_an_address_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as bound:  # bound and not listening: nobody answers there
        bound.bind(("127.0.0.1", 0))
        result = make(tmp_path, f"127.0.0.1:{bound.getsockname()[1]}", "sweep")
    assert "no answer" in result.stderr
    assert len([line for line in result.stderr.splitlines() if not line.startswith("make: ")]) == 1
    assert "ray://… cannot run a sweep" in make(tmp_path, "ray://127.0.0.1:1", "sweep").stderr
