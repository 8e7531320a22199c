"""Which ports are open to the network, and what they answer. Fails if Ray changes its private HAProxy template."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import processes
import psutil
import pytest
import requests
from served import Server, png

from flywheel.serving import ingress

LOOPBACK = ("127.0.0.1", "::1")
# Ray's own processes. Their RPC needs the token; over HTTP they answer metrics at most.
RAYS_OWN = ("gcs_server", "raylet", "ray::", "ray/dashboard", "ray/autoscale", "python")


def test_only_serve_port_and_the_ports_of_ray_are_open(server: Server) -> None:
    sockets = processes.listening(server.params.store)
    assert ("127.0.0.1", server.params.serve.port) in {(address, port) for address, port, _ in sockets}
    assert [entry for entry in sockets if "haproxy" in entry[2] and entry[1] != server.params.serve.port] == []
    open_to_all = [entry for entry in sockets if entry[0] not in LOOPBACK]
    assert [entry for entry in open_to_all if not any(own in entry[2] for own in RAYS_OWN)] == []


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


def test_the_wrapper_turns_all_other_ports_into_sockets(tmp_path: Path) -> None:
    if ingress.haproxy() is None:
        pytest.skip("no HAProxy here; Serve's own proxy is used")
    variables = ingress.environment(tmp_path, 8000)
    wrapper = tmp_path / "haproxy"
    wrapper.write_text(wrapper.read_text().replace(f"exec {ingress.haproxy()}", "exec echo"))
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "frontend prometheus\n    bind :9101\nfrontend http\n    bind *:8000\nlisten stats\n  bind *:8404\n"
    )
    told = subprocess.run([wrapper, "-db", "-f", config, "-sf", "1"], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["-db", "-f", str(config), "-sf", "1"]
    binds = [line.strip() for line in config.read_text().splitlines() if "bind" in line]
    assert binds == [f"bind unix@{tmp_path}/port-9101.sock", "bind *:8000", f"bind unix@{tmp_path}/port-8404.sock"]
    assert variables["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(wrapper)


def test_rays_template_binds_as_the_wrapper_expects() -> None:
    origin = importlib.util.find_spec("ray")
    assert origin is not None
    text = (Path(str(origin.origin)).parent / "serve" / "_private" / "haproxy_templates.py").read_text()
    binds = {line.strip() for line in text.splitlines() if line.strip().startswith("bind ")}
    http = {line for line in binds if "grpc" not in line}
    assert http == {
        "bind :{{ config.metrics_port }}",
        "bind *:{{ config.stats_port }}",
        "bind {{ config.frontend_host }}:{{ config.frontend_port }}",
    }


def test_without_haproxy_the_proxy_of_serve_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "haproxy", lambda: None)
    assert not any("HAPROXY" in name or "HA_PROXY" in name for name in ingress.environment(tmp_path, 8000))


def _own_address(address: str) -> str:
    """Return an address of this machine for a socket that listens on all interfaces."""
    if address not in ("0.0.0.0", "::"):
        return address
    found = [a.address for entries in psutil.net_if_addrs().values() for a in entries if a.family.name == "AF_INET"]
    return next((address for address in found if not address.startswith("127.")), "127.0.0.1")
