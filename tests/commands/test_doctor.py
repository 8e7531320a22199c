"""make doctor finds each problem and names its fix, and finds none on a working machine."""

from __future__ import annotations

import http.server
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import scripts
from made_traffic import OPTIONS, record, write_records

from flywheel.commands import doctor
from flywheel.commands.doctor import Finding
from flywheel.data import stage as data_stage
from flywheel.machine import ray_address
from flywheel.params import Params
from flywheel.pipeline import server_record
from flywheel.pipeline.server_record import Served
from flywheel.registry import Registry
from flywheel.tracking import connection

if TYPE_CHECKING:
    from wandb_double import WandbDouble

ROOT = Path(__file__).parents[2]

Make = Callable[..., Params]


def findings(params: Params) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.examine(params, Registry(params.store))}


def test_a_working_machine_has_no_problem_and_nothing_is_written(make_params: Make, tmp_path: Path) -> None:
    with listening() as taken:
        free = taken.getsockname()[1]
    found = findings(make_params(f"serve.port={free}"))
    names = ["python", "packages", "machine", "device", "store disk", "cache disk", "registry", "port", "traffic"]
    assert list(found) == [*names, "ray", "wandb"]
    assert {name: finding.fix for name, finding in found.items() if finding.fix} == {}
    assert "torch 2.14.1" in found["packages"].text
    assert "trains in " in found["device"].text
    assert list(tmp_path.iterdir()) == []


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_little_space_is_a_problem(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**10, 10**10 - 10**9, 10**9))
    found = findings(params.model_copy(update={"traffic": OPTIONS.model_copy(update={"min_free_fraction": 0.2})}))
    assert "1.0 GB free" in found["store disk"].text
    assert found["store disk"].fix == "free space, or set paths.store to another disk"
    assert found["traffic"].fix.startswith("free space: no image is kept while less than traffic.min_free_fraction=0.2")


class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'flywheel_traffic{what="dropped",replica="1"} 7\n')


def test_what_is_kept_of_traffic_and_what_was_lost_is_said(params: Params) -> None:
    assert doctor._traffic(params).text == "nothing recorded, make serve records what it answers"
    write_records(params.store_paths, [record("m", [0.4, 0.6], datetime(2026, 11, 28, 15, tzinfo=UTC), "ab")])
    found = doctor._traffic(params)
    assert found.text.startswith("0 images kept, ")
    assert (found.text.endswith(" since 2026-11-28 15:00 UTC"), found.fix) == (True, "")
    (params.store_paths.traffic_records / "r2-20261128T15.jsonl").write_text('{"prediction_id": "01')
    assert doctor._traffic(params).text.endswith(", 1 lines cut off by killed processes are skipped")
    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as answering:
        threading.Thread(target=answering.handle_request).start()
        server_record.write(params, Served(f"http://127.0.0.1:{answering.server_port}", os.getpid(), "now", "m", "d"))
        found = doctor._traffic(params)
    assert found.text.endswith(", 7 answers not recorded")
    assert found.fix == "make logs shows why"


def test_a_store_that_cannot_be_written_is_a_problem(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "not writable" in findings(params)["store disk"].text
    assert "set paths.store" in findings(params)["store disk"].fix


def test_a_damaged_manifest_is_a_problem(params: Params, tmp_path: Path) -> None:
    registry = Registry(params.store)
    (tmp_path / "a").write_text("a")
    registry.publish("thing", "test", {"a": tmp_path / "a"})
    assert findings(params)["registry"].text.startswith("1 versions in ")
    (params.store / "registry/versions/thing/v0/manifest.json").write_text("{")
    found = findings(params)["registry"]
    assert "thing/v0/manifest.json: the manifest is damaged" in found.text
    assert found.fix


def test_a_cluster_that_does_not_answer_is_a_problem(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = findings(params)["ray"]
    assert "no answer" in found.text
    assert found.fix == "start Ray there or unset RAY_ADDRESS to run on this machine"


def test_a_missing_package_is_a_problem(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DEPENDENCIES", ("torch", "no-such-package"))
    found = findings(params)["packages"]
    assert "no no-such-package" in found.text
    assert "make setup" in found.fix


def test_a_package_from_elsewhere_is_a_problem(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "optuna").mkdir()
    (tmp_path / "optuna/__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)  # as PYTHONPATH does
    monkeypatch.delitem(sys.modules, "optuna", raising=False)
    found = doctor._packages()
    assert found.text.endswith(f", optuna is imported from {tmp_path}/optuna")
    assert found.fix == "unset PYTHONPATH"


def listening() -> socket.socket:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken


def test_another_ray_on_the_machine_is_named_and_no_problem(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert findings(params)["ray"].text == "a sweep starts and stops its own; none runs now"
    (tmp_path / "ray").mkdir()
    with listening() as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)  # as `ray start` writes it
        found = findings(params)["ray"]
    told = f"another runs at {address} (RAY_ADDRESS={address} would use it)"
    assert found.text == f"a sweep starts and stops its own; {told}"
    assert not found.fix
    assert findings(params)["ray"].text.endswith("none runs now")  # the file outlives its Ray


def test_a_port_is_free_or_taken_or_our_servers(make_params: Make) -> None:
    def found(pid: int | None = None) -> Finding:
        params = make_params(f"serve.port={number}")
        if pid is not None:
            server_record.write(params, Served(f"http://127.0.0.1:{number}", pid, "now", "m", "s"))
        return findings(params)["port"]

    with listening() as taken:
        number = taken.getsockname()[1]
        assert found().text == f"127.0.0.1:{number} cannot be used (Address already in use)"
        assert found().fix == "set serve.port (or serve.host) to another, or end the process that uses it"
        silent = f"{number}: this profile's server (pid {os.getpid()}) does not answer"
        assert found(os.getpid()) == Finding("port", silent, "make serve replaces it")
        assert found(2**22 + 1).fix  # the record of one that was killed
    assert found() == Finding("port", f"{number} is free")


def test_an_address_that_is_not_this_machines_is_a_problem(make_params: Make) -> None:
    found = findings(make_params("serve.host=192.0.2.1"))["port"]  # RFC 5737: nobody's
    assert "192.0.2.1:8000 cannot be used" in found.text
    assert found.fix


def test_ray_and_wandb_are_asked_at_the_same_time(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is given up after 3 s."""
    assert connection.PROBE_TIMEOUT_S <= 3
    assert ray_address.PROBE_TIMEOUT_S <= 3
    running: list[int] = []
    both = threading.Barrier(2, timeout=30)  # breaks, and fails the test, if one waits for the other

    def wait(finding: Finding) -> Finding:
        both.wait()
        running.append(1)
        return finding

    monkeypatch.setattr(doctor, "_ray", lambda: wait(Finding("ray", "")))
    monkeypatch.setattr(doctor, "_wandb", lambda params: wait(Finding("wandb", "")))
    findings(params)
    assert len(running) == 2


def test_a_full_disk_in_the_middle_of_a_stage_says_what_to_do(tmp_path: Path) -> None:
    """No file may grow past 100 kB: the arrays of the data set do."""
    settings = "tracking.wandb=disabled data.image_size=16"
    command = shlex.join(scripts.command(tmp_path, "data", settings))
    full = subprocess.run(["bash", "-c", f"ulimit -f 100; {command}"], cwd=ROOT, capture_output=True, text=True)
    assert full.returncode == 1
    (line,) = full.stderr.splitlines()
    assert line.startswith("error: ")
    assert "raise the limit of a file's size (ulimit -f)" in line
    params = scripts.load(tmp_path, settings)
    assert not params.store_paths.receipt("data").exists()
    data_stage.run(params, Registry(params.store))
    assert params.store_paths.receipt("data").exists()


def test_online_that_was_asked_for_and_is_not_is_a_problem(
    make_params: Make, monkeypatch: pytest.MonkeyPatch, double: WandbDouble
) -> None:
    """A new CI runner that cannot reach W&B sees no failures to train on, so its job must fail."""
    online = make_params("tracking.wandb=online")
    assert findings(online)["wandb"].text.startswith("offline (no API key;")
    assert findings(online)["wandb"].fix.startswith("check the key (.venv/bin/wandb login, or WANDB_API_KEY)")
    assert findings(make_params("tracking.wandb=auto"))["wandb"].fix == ""
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert doctor._wandb(online) == Finding(
        "wandb", "disabled (WANDB_DISABLED)", "undo that, or set tracking.wandb=auto"
    )
    monkeypatch.delenv("WANDB_DISABLED")
    for name, value in double.environment.items():
        monkeypatch.setenv(name, value)
    assert findings(online)["wandb"].text == "online (127.0.0.1 answers)"
    assert findings(online)["wandb"].fix == ""


@pytest.mark.parametrize(("python", "told"), [("/opt/a b/python", {"py_executable": "'/opt/a b/python'"}), ("/p", {})])
def test_ray_is_told_of_a_python_whose_path_has_a_space(
    monkeypatch: pytest.MonkeyPatch, python: str, told: dict[str, str]
) -> None:
    monkeypatch.setattr(sys, "executable", python)
    assert ray_address.local_python() == told
