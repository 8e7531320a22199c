"""Start, stop, crash and restart the server, with the real commands and processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import processes
import pytest
import requests
import torch
from served import CLASSES, ROOT, Server, free_port, make_server, png, publish
from waiting import wait_until

from flywheel.machine.ray_address import RayError
from flywheel.models.classifier import Classifier
from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.pipeline import fingerprint, server_record
from flywheel.pipeline.server_record import Served
from flywheel.serving import ServingError, host, on_cluster, settings
from flywheel.traffic import keys, records


def test_serving_again_changes_nothing_and_prints_url_and_commands_whatever_proxy_is_set(server: Server) -> None:
    before = server_record.read(server.params)
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    printed = server.run("serve", env=proxies)
    assert "nothing changed since" in printed
    assert printed.endswith("[exit 0]")
    assert server_record.read(server.params) == before
    assert f"model-1:v0 answers at {server.url}" in printed
    assert f"curl --data-binary @image.png {server.url}/predict" in printed
    assert "make stop PROFILE=demo" in printed
    assert f"running              {server.url}" in server.run("status", env=proxies)


@pytest.mark.parametrize("module", ["haproxy", "health", "host", "backend", "replica"])
def test_every_change_of_the_code_starts_another_server(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    before, source_of, changed = settings.digest(params), fingerprint.source_of, tmp_path / "changed.py"
    name = f"flywheel.serving.{module}"
    changed.write_text(f"{source_of(name).read_text()}\nchanged = True\n")
    monkeypatch.setattr(fingerprint, "source_of", lambda one: changed if one == name else source_of(one))
    assert settings.digest(params) != before


def test_every_change_of_what_is_kept_of_traffic_starts_another_server(make_params: Callable[..., Params]) -> None:
    changes = ["", "traffic.keep_images=0.5", "traffic.max_bytes=5000000", "traffic.max_age_days=3", "serve.poll_s=9"]
    assert len({settings.digest(make_params(change)) for change in changes}) == len(changes)


def test_batches_exceed_the_five_requests_that_serve_allows_by_default(server: Server) -> None:
    def exceeds_eight() -> bool:
        with ThreadPoolExecutor(24) as pool:
            answers = pool.map(lambda seed: server.predict(png(seed)), range(200))
            assert {answer.status_code for answer in answers} <= {200, 503}
        counts = {one.labels["le"]: one.value for one in server.samples("flywheel_batch_size_bucket")}
        return counts["16.0"] > counts["4.0"] and counts["+Inf"] > counts["8.0"]

    wait_until(exceeds_eight)  # on a busy machine the clients may be too slow the first time


def test_a_failing_model_is_a_500_with_the_request_id_and_the_server_stays_up(server: Server) -> None:
    """The weights overflow for any image but a black one, so the model passes the warm-up and then returns NaN."""
    broken = Classifier("standard", CLASSES, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 32)
    with torch.no_grad():
        broken.network.conv1.weight.mul_(1e30)
        broken.network.fc.weight.mul_(1e30)
        broken.network.fc.bias.zero_()
    broken.save(server.folder / "broken", {"precision": "auto"})
    version = server.registry.publish("model-broken", "model", server.folder / "broken", metadata={}, inputs={})
    good = server.registry.resolve("model-1")
    server.produce(version)
    try:
        wait_until(lambda: requests.get(f"{server.url}/model", timeout=60).json()["model"] == version.label)
        answer = server.predict(png(), **{"X-Request-Id": "no-number"})
        assert answer.status_code == 500
        assert answer.json() == {"error": "the server failed; its log has the reason", "request_id": "no-number"}
        log = (server.params.store / "logs" / "serve.log").read_text()
        assert "request no-number failed" in log
        assert "gave no number" in log
    finally:
        server.produce(good)
    wait_until(lambda: server.predict(png()).status_code == 200)


def test_without_a_production_model_the_error_names_the_commands(tmp_path: Path) -> None:
    overrides = f"paths.store={tmp_path / 'store'}"
    params = params_file.load(ROOT / "params.yaml", "demo", overrides)
    printed = Server(params, None, tmp_path, overrides).run("serve")  # type: ignore[arg-type]
    assert "no production model; run make data sweep evaluate PROFILE=demo" in printed
    assert printed.endswith("[exit 1]")


def test_a_busy_port_is_named_and_stop_without_a_server_is_no_error(tmp_path: Path) -> None:
    made = make_server(tmp_path)
    port = made.params.serve.port
    with socket.create_server(("127.0.0.1", port)):
        printed = made.run("serve")
    assert f"serve.port={port} cannot be used" in printed
    assert f'make serve SET="serve.port={port + 1}"' in printed
    assert printed.endswith("[exit 1]")
    assert processes.of(made.params.store) == []
    assert made.run("stop").startswith("stop: nothing was running")


@pytest.mark.long
def test_more_cpus_than_the_machine_has_are_refused(fresh: Server) -> None:
    printed = fresh.run("serve", extra="serve.cpus_per_replica=1000")
    assert "serve.cpus_per_replica" in printed
    assert printed.endswith("[exit 1]")
    assert processes.gone(fresh.params.store)
    assert server_record.read(fresh.params) is None


@pytest.mark.long
def test_a_reader_of_the_output_that_has_enough_ends_no_start(fresh: Server) -> None:
    with subprocess.Popen(fresh.command("serve"), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serve: waiting for")
        process.stdout.close()
    assert fresh.predict(png()).status_code == 200


@pytest.mark.long
def test_it_serves_where_neither_temporary_files_nor_the_store_may_be_executed(fresh: Server) -> None:
    serving = fresh.params.store_paths.serving
    serving.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="fw-") as temporary:  # a short path, as Ray needs it
        mount = 'mount -t tmpfs -o noexec,size=300m none "$0" && mount -t tmpfs -o noexec none "$TMPDIR" && exec "$@"'
        prefix = ["unshare", "--mount", "sh", "-c", mount, str(serving)]
        environment = {**os.environ, "TMPDIR": temporary}
        tried = 'cp /bin/true "$TMPDIR" && ! "$TMPDIR/true" 2>&1'
        if subprocess.run([*prefix, "sh", "-c", tried], env=environment, capture_output=True).returncode:
            pytest.skip("this machine cannot mount a folder without execution (root is needed)")
        done = subprocess.run(
            [*prefix, *fresh.command("serve")], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert "answers at" in done.stdout, done.stdout + done.stderr
        assert fresh.predict(png()).status_code == 200
        served = server_record.read(fresh.params)
        assert served is not None
        assert list(Path(f"/proc/{served.pid}/root{temporary}").iterdir())  # Ray's folder is in there
        assert "stopped" in fresh.run("stop")


@pytest.mark.long
def test_after_a_crash_stop_leaves_no_process_and_serve_starts_again(fresh: Server) -> None:
    for victims in ("host", "all Ray processes"):
        assert "answers at" in fresh.run("serve")
        served = server_record.read(fresh.params)
        assert served is not None
        assert served.pid is not None
        os.kill(served.pid, signal.SIGKILL)
        if victims == "host":
            assert "[exit 0]" in fresh.run("stop")  # mostly, all have ended by themselves
            assert processes.gone(fresh.params.store, 5)
            assert not Path(str(served.folder)).exists()
            assert server_record.read(fresh.params) is None
    assert "answers at" in fresh.run("serve")  # with processes of the second crash still there
    assert fresh.predict(png()).status_code == 200
    assert "stop: stopped" in fresh.run("stop")
    assert processes.gone(fresh.params.store, 5)


@pytest.mark.long
def test_changed_settings_restart_the_server_and_a_concurrent_start_exits_75(fresh: Server) -> None:
    first = subprocess.Popen(fresh.command("serve"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    time.sleep(2)
    second = fresh.run("serve")
    assert "[exit 75]" in second
    assert "another run holds serve-start" in second
    assert "answers at" in first.communicate(timeout=180)[0]
    before = server_record.read(fresh.params)
    printed = fresh.run("serve", extra="serve.max_parts=3")
    assert "restarting" in printed
    after = server_record.read(fresh.params)
    assert before is not None
    assert after is not None
    assert after.pid != before.pid
    parts = [("file", (f"{number}.png", png())) for number in range(4)]
    assert requests.post(f"{fresh.url}/predict", files=parts, timeout=60).status_code == 413


@pytest.mark.long
def test_in_the_foreground_sigterm_finishes_requests_in_flight(fresh: Server) -> None:
    process = subprocess.Popen(fresh.command("serve", "--foreground"), cwd=ROOT)
    try:
        wait_until(lambda: (served := server_record.read(fresh.params)) and served.answers(), timeout_s=120)
        parts = [("file", (f"{number}.png", png(number))) for number in range(8)]
        with ThreadPoolExecutor(12) as pool:
            started = threading.Barrier(5)

            def ask(number: int) -> int:
                if number < 4:
                    started.wait(30)
                return requests.post(f"{fresh.url}/predict", files=parts, timeout=60).status_code

            pending = [pool.submit(ask, number) for number in range(4)]
            started.wait(30)
            time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert {future.result() for future in pending} <= {200, 503}
            assert 200 in {future.result() for future in pending}
        assert process.wait(timeout=60) == 0
        assert processes.gone(fresh.params.store, 10)
        assert server_record.read(fresh.params) is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
def test_two_replicas_answer_with_both_versions_only_while_they_load(fresh: Server) -> None:
    assert "answers at" in fresh.run(
        "serve", extra="serve.min_replicas=2 serve.max_replicas=2 serve.cpus_per_replica=0.5"
    )
    other = publish(fresh.registry, fresh.folder, 2)
    assert len(replicas(fresh)) == 2  # in one scrape
    fresh.produce(other)
    wait_until(lambda: {fresh.predict(png(seed)).json()["model"] for seed in range(30)} == {other.label}, timeout_s=90)
    assert {fresh.predict(png(seed)).json()["model"] for seed in range(100)} == {other.label}


@pytest.mark.long
def test_load_starts_a_second_replica(fresh: Server) -> None:
    grow = "serve.min_replicas=1 serve.max_replicas=2 serve.cpus_per_replica=0.5 serve.max_batch_size=1"
    assert "answers at" in fresh.run("serve", extra=grow)
    done = threading.Event()

    def load(seed: int) -> set[int]:
        statuses = set()
        while not done.is_set():
            statuses.add(fresh.predict(png(seed)).status_code)
        return statuses

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(load, seed) for seed in range(16)]
        try:
            names = set[str]()
            wait_until(lambda: len(names) > 1, timeout_s=150, step=lambda: names.update(replicas(fresh)))
        finally:
            done.set()
        assert {status for client in clients for status in client.result()} <= {200, 503}


@pytest.mark.long
def test_on_two_nodes_the_application_is_deployed_records_and_takes_labels_and_is_deleted(fresh: Server) -> None:
    from ray.cluster_utils import Cluster

    paths, two = fresh.params.store_paths, "serve.min_replicas=2 serve.max_replicas=2"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)  # so that each has a replica
        env = {"RAY_ADDRESS": cluster.address}
        never = "serve.cpus_per_replica=2 serve.start_timeout_s=5"  # no node has two CPUs
        assert "not ready within serve.start_timeout_s=5 s: Serve gives no reason" in fresh.run(
            "serve", extra=never, env=env
        )
        printed = fresh.run("serve", extra=two, env=env)
        assert "answers at" in printed, printed
        assert fresh.predict(png()).json()["model"] == "model-1:v0"
        assert "nothing changed" in fresh.run("serve", extra=two, env=env)
        made = [fresh.predict(png(seed)).json()["prediction_id"] for seed in range(40)]
        wait_until(lambda: {row["prediction_id"] for row in records.read(paths)} >= set(made), "the records")
        assert len({path.name.rpartition("-")[0] for path in paths.traffic_records.iterdir()}) == 2
        statuses: list[str] = []
        for one in made * 3:  # whichever replica takes it
            rows, bearer = (
                [{"prediction_id": one, "label": CLASSES[0]}],
                {"Authorization": f"Bearer {keys.token(paths)}"},
            )
            answer = requests.post(f"{fresh.url}/feedback", json=rows, headers=bearer, timeout=60)
            statuses += [row["status"] for row in answer.json()["results"]]
        assert statuses == ["accepted"] * 40 + ["duplicate"] * 80
        assert len({path.name.rpartition("-")[0] for path in paths.traffic_labels.iterdir()}) == 2
        assert f"error: profile demo is served on the cluster at {cluster.address} (" in fresh.run("serve")
        printed = fresh.run("stop")
        assert f"deleted from the cluster at {cluster.address}" in printed
        with pytest.raises(requests.RequestException):
            requests.get(f"{fresh.url}/healthz", timeout=5).raise_for_status()
    finally:
        cluster.shutdown()


def test_on_a_cluster_an_application_that_does_not_answer_from_here_can_be_stopped(
    make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(f"serve.port={free_port()}")
    done: list[str] = []
    model = types.SimpleNamespace(label="model-1:v0")
    monkeypatch.setattr(on_cluster.settings, "production", lambda params: model)
    monkeypatch.setattr(on_cluster.ray_address, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(on_cluster.application, "deploy", lambda params: done.append("deploy"))
    monkeypatch.setattr(on_cluster.application, "delete", lambda params: done.append("delete"))
    monkeypatch.setattr(on_cluster, "ANSWER_TIMEOUT_S", 0)
    with pytest.raises(ServingError, match=r"deployed, but .* does not answer from here"):
        on_cluster.start(params, "cluster:6379")
    served = server_record.read(params)
    assert served is not None
    on_cluster.stop(params, served)
    assert done == ["deploy", "delete"]
    assert server_record.read(params) is None


def test_a_cluster_that_is_gone_is_named_with_the_record_to_remove(make_params: Callable[..., Params]) -> None:
    params = make_params()
    address = f"127.0.0.1:{free_port()}"
    served = Served("http://127.0.0.1:1", None, "then", "model-1:v0", "digest", address=address)
    server_record.write(params, served)
    with pytest.raises(
        ServingError, match=rf"profile demo is served on the cluster at {address} .*; make stop PROFILE"
    ):
        host._check_cluster(params)
    with pytest.raises(RayError, match=rf"{address}: no answer .*; if that cluster is gone, remove .*serve.json"):
        on_cluster.stop(params, served)


def replicas(server: Server) -> set[str]:
    """Return the names of the replicas in /metrics."""
    return {sample.labels["replica"] for sample in server.samples("flywheel_swaps")}
