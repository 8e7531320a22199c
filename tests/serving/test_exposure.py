"""Which ports are open to the network, and what they answer."""

from __future__ import annotations

import os
import subprocess
import sys

import processes
import psutil
import pytest
import requests
from served import Server, png

from flywheel.pipeline import server_record
from flywheel.serving import haproxy

PARTS = ("haproxy", "raylet", "ServeController", "ServeReplica", "ProxyActor", "dashboard.py", "monitor.py")
LOOPBACK = ("127.0.0.1", "::1")
# Ray's own processes. Their RPC needs the token; over HTTP they answer metrics at most.
RAYS_OWN = ("gcs_server", "raylet", "ray::", "ray/dashboard", "ray/autoscale", "python")


def test_only_serve_port_and_the_ports_of_ray_are_open(server: Server) -> None:
    sockets = processes.listening(server.params.store)
    assert ("127.0.0.1", server.params.serve.port) in {(address, port) for address, port, _ in sockets}
    assert [entry for entry in sockets if "haproxy" in entry[2] and entry[1] != server.params.serve.port] == []
    open_to_all = [entry for entry in sockets if entry[0] not in LOOPBACK]
    assert [entry for entry in open_to_all if not any(own in entry[2] for own in RAYS_OWN)] == []


@pytest.mark.skipif(haproxy.binary() is None, reason="no HAProxy here; Serve's own proxy is used")
def test_no_process_runs_that_nothing_uses(server: Server) -> None:
    served = server_record.read(server.params)
    assert served is not None
    children = psutil.Process(served.pid).children(recursive=True)
    running = [" ".join(process.cmdline()) for process in children]
    assert {part for part in PARTS if any(part in line for line in running)} == set(PARTS[:4])
    assert set(children) <= set(processes.of(server.params.store))  # `make stop` finds all of them by their mark


def test_open_ports_refuse_predictions_and_jobs(server: Server) -> None:
    job = {"entrypoint": f"touch {server.folder}/pwned"}
    asked = 0
    for address, port, name in processes.listening(server.params.store):
        if address in LOOPBACK:
            continue
        asked += 1
        for path, options in (
            ("/predict", {"data": png()}),
            ("/api/jobs/", {"json": job}),
            ("/api/job_agent/jobs/", {"json": job}),
        ):
            try:
                status = requests.post(f"http://{_own_address(address)}:{port}{path}", timeout=5, **options).status_code
            except requests.RequestException:
                continue  # not HTTP: gRPC, which asks for the token
            assert status >= 400, (name, path, status)
    assert asked > 0
    assert not (server.folder / "pwned").exists()


@pytest.mark.long
def test_ray_refuses_clients_without_the_token(server: Server) -> None:
    (address,) = [
        f"{_own_address(host)}:{port}"
        for host, port, name in processes.listening(server.params.store)
        if "gcs_server" in name
    ][:1]
    probe = f"import ray; ray.init(address={address!r}); print('IN')"
    for variables in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        done = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, env={**os.environ, **variables}
        )
        assert done.returncode != 0
        assert "IN" not in done.stdout


def _own_address(address: str) -> str:
    """Return an address of this machine for a socket that listens on all interfaces."""
    if address not in ("0.0.0.0", "::"):
        return address
    found = [a.address for entries in psutil.net_if_addrs().values() for a in entries if a.family.name == "AF_INET"]
    return next((address for address in found if not address.startswith("127.")), "127.0.0.1")
