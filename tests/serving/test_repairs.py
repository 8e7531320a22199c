"""What happens when a part of the server ends: it is started again, or the server ends; in between, 503 in JSON."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kills
import processes
import psutil
import pytest
import requests
from served import Server, free_port, png
from waiting import wait_until

from flywheel.commands import doctor
from flywheel.params import Params
from flywheel.pipeline import server_record
from flywheel.pipeline.server_record import Served
from flywheel.serving import ServingError, backend, haproxy, health, host

needs_haproxy = pytest.mark.skipif(haproxy.binary() is None, reason="no HAProxy here; Serve's own proxy is used")

# A backend whose only replica is this process. It answers with its pid and with the folder of its code. The first POST
# gets no answer, as if the replica had been killed.
SMALL_BACKEND = """
import http.server, json, os, sys, threading, time, flywheel
class Replica(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/silent":
            time.sleep(60)
        if self.path == "/odd":
            return self.wfile.write(b"odd")
        body = json.dumps({"pid": os.getpid(), "code": flywheel.__path__[0]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        lost.append(self)
        if len(lost) > 1:
            self.do_GET()
        else:
            self.close_connection = True
lost = []
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replica)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(json.dumps({"ports": [server.server_address[1]]}), flush=True)
sys.stdin.readline()
sys.stdin.read()
"""


@pytest.fixture
def small(
    make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[tuple[host._Server, str]]:
    """The host's parts, HAProxy among them, with a small backend instead of Ray; and the URL."""
    params = make_params(f"serve.port={free_port()} serve.header_timeout_s=0.5 {getattr(request, 'param', '')}")
    monkeypatch.setattr(backend, "COMMAND", SMALL_BACKEND)
    monkeypatch.setenv(backend.MARK, str(params.store))
    server = host._Server(params, params.store_paths.serving / "run")
    yield server, f"http://127.0.0.1:{params.serve.port}"
    server.close()
    assert [process for process in processes.of(params.store) if process.pid != os.getpid()] == []
    assert not (params.store_paths.serving / "run").exists()


@needs_haproxy
def test_before_and_between_backends_the_answer_is_503_in_json(small: tuple[host._Server, str]) -> None:
    server, url = small
    for path in ("/predict", "/healthz", "/model"):
        refused = requests.get(url + path, timeout=60)
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/json")
        assert int(refused.headers["retry-after"]) >= 1
        assert "error" in refused.json()
    wait_until(server.ready, step=server.step)
    assert requests.get(f"{url}/predict", timeout=60).status_code == 200
    server.drain(replaced=False)
    assert requests.get(f"{url}/predict", timeout=60).status_code == 503


GOOD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@needs_haproxy
@pytest.mark.parametrize("small", ["serve.request_timeout_s=0.1"], indirect=True)
def test_haproxy_answers_in_json_what_it_can_read(small: tuple[host._Server, str]) -> None:
    server, _ = small
    cases = [
        (400, "", b"nonsense\r\n\r\n"),  # no JSON: HAProxy's own page, as for whatever is not HTTP
        (408, "", b"GET / HT"),
        (408, "serve.request_timeout_s", GOOD.replace(b"GET", b"POST")[:-2] + b"Content-Length: 5\r\n\r\n"),
        (502, "send it again", GOOD.replace(b"/", b"/odd", 1)),
        (504, "serve.request_timeout_s", GOOD.replace(b"/", b"/silent", 1)),
    ]

    def ask(status: int, reason: str, sent: bytes) -> None:
        with socket.create_connection(("127.0.0.1", server._params.serve.port), timeout=60) as client:
            client.sendall(sent)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert answer.status == status
            if reason:
                assert answer.headers["content-type"] == "application/json"
                assert reason in json.load(answer)["error"]

    wait_until(server.ready, step=server.step)
    with ThreadPoolExecutor(len(cases)) as pool:
        for done in [pool.submit(ask, *case) for case in cases]:
            done.result()


@needs_haproxy
def test_a_request_that_a_replica_lost_is_sent_again_also_if_its_body_came_after_its_head(
    small: tuple[host._Server, str],
) -> None:
    server, _ = small
    wait_until(server.ready, step=server.step)
    client = http.client.HTTPConnection("127.0.0.1", server._params.serve.port, timeout=60)
    client.putrequest("POST", "/predict")
    client.putheader("Content-Length", "5")
    client.endheaders()
    time.sleep(0.2)  # HAProxy has read the head
    client.send(b"image")
    assert client.getresponse().status == 200


@needs_haproxy
def test_a_backend_that_ends_is_replaced_and_logged(small: tuple[host._Server, str], said: list[str]) -> None:
    server, url = small
    wait_until(server.ready, step=server.step)
    first = requests.get(f"{url}/predict", timeout=60).json()
    assert first["code"].endswith("/serving/run/code/flywheel")  # not the checkout, which may change meanwhile
    os.kill(first["pid"], signal.SIGKILL)
    wait_until(lambda: server.ready() and server._repairs, step=server.step)
    assert requests.get(f"{url}/predict", timeout=60).json()["pid"] != first["pid"]
    assert f"Ray's driver (pid {first['pid']}) ended; starting another Ray" in "".join(said)
    assert "replicas answer again" in "".join(said)
    assert "flywheel_repairs_total 1" in requests.get(f"{url}/metrics", timeout=60).text


@needs_haproxy
def test_nothing_that_a_backend_started_outlives_it(
    small: tuple[host._Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = small
    child = "import subprocess\nsubprocess.Popen(['/bin/sleep', '600'], stdin=-3, stdout=-3)\n"
    monkeypatch.setattr(backend, "COMMAND", child + SMALL_BACKEND)
    server.step()
    wait_until(server.ready, step=server.step)
    first = requests.get(f"{url}/predict", timeout=60).json()["pid"]
    (started,) = psutil.Process(first).children()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not started.is_running() or started.status() == psutil.STATUS_ZOMBIE, step=server.step)
    assert server._repairs


@needs_haproxy
def test_haproxy_that_ends_is_started_again_and_no_new_request_is_refused(
    small: tuple[host._Server, str], said: list[str]
) -> None:
    server, url = small
    wait_until(server.ready, step=server.step)
    server._haproxy._process.kill()  # type: ignore[union-attr]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(requests.get, f"{url}/predict", timeout=60)  # waits in the socket of the host
        wait_until(answer.done, step=server.step)
        assert answer.result().status_code == 200
    assert "ended with exit code -9; started again" in "".join(said)

    def kill_again() -> None:
        server._haproxy._process.kill()  # type: ignore[union-attr]
        server.step()

    with pytest.raises(ServingError, match="ends again and again"):
        wait_until(lambda: False, step=kill_again)


@needs_haproxy
def test_replicas_that_come_and_go_are_not_counted_as_ends_of_haproxy(small: tuple[host._Server, str]) -> None:
    server, _ = small
    running = server._haproxy
    assert running is not None
    for port in range(1, haproxy.MAX_ENDS + 1):
        running.route([port])
    assert running._process is not None
    running._process.kill()
    running._process.wait()
    assert "started again" in str(running.check())


@needs_haproxy
def test_a_server_that_ends_before_it_answers_leaves_the_record_of_the_one_that_runs(
    small: tuple[host._Server, str],
) -> None:
    server, url = small
    other = Served(url, os.getpid() + 1, "", "model-1:v0", "")
    server_record.write(server._params, other)
    server.drain(replaced=False)
    assert server_record.read(server._params) == other


# The host with a small backend, without a model.
SMALL_HOST = f"""
import pickle, sys, types
from flywheel import cli
from flywheel.serving import backend, host, settings
backend.COMMAND = "print('{{\\"waits_for\\": \\"nothing\\"}}', flush=True)" + {SMALL_BACKEND!r}
settings.production = lambda *_, **__: types.SimpleNamespace(label="model-1:v0")
params = pickle.loads(bytes.fromhex(sys.argv[1]))
with cli.logged(params, "serve"):
    host.run(params)
"""


@needs_haproxy
def test_a_reader_of_the_output_that_has_enough_ends_no_server(make_params: Callable[..., Params]) -> None:
    params = make_params(f"serve.port={free_port()}")
    command = [sys.executable, "-c", SMALL_HOST, pickle.dumps(params).hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.close()
            wait_until(lambda: (served := server_record.read(params)) and served.answers())
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert "serve: stopped" in params.store_paths.log("serve").read_text()


@needs_haproxy
@pytest.mark.parametrize("fault", ["reports an error", "is silent"])
def test_a_faulty_backend_answers_until_another_does(
    small: tuple[host._Server, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    server, url = small
    failed = tmp_path / "failed"
    report = f"""
import time
while not os.path.exists({str(failed)!r}):
    time.sleep(0.05)
print('{{"error": "a part failed"}}', flush=True)
sys.stdin.read()"""
    monkeypatch.setattr(backend, "COMMAND", SMALL_BACKEND.removesuffix("sys.stdin.read()\n") + report)
    wait_until(server.ready, step=server.step)
    first = server._live
    monkeypatch.setattr(backend, "COMMAND", SMALL_BACKEND)
    if fault == "reports an error":
        failed.touch()
    else:
        monkeypatch.setattr(backend, "SILENT_S", 0)
    statuses = set()

    def step() -> None:
        server.step()
        if server._live is not first:
            monkeypatch.setattr(backend, "SILENT_S", 60)
        if server.ready():
            statuses.add(requests.get(f"{url}/predict", timeout=60).status_code)

    wait_until(lambda: server._live is not first, step=step)
    assert statuses == {200}


@needs_haproxy
def test_a_server_whose_backend_cannot_start_ends_with_its_error(
    small: tuple[host._Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = small
    monkeypatch.setattr(backend, "COMMAND", """print('{"error": "no room"}', flush=True)""")
    with pytest.raises(ServingError, match="no room"):
        wait_until(lambda: False, step=server.step)
    monkeypatch.setattr(backend, "COMMAND", "import sys; sys.stdin.read()")
    server.step()
    assert server._next is not None
    assert server._next.problem() is None
    server._next._seen -= server._params.serve.start_timeout_s + backend.SILENT_S
    with pytest.raises(ServingError, match="hangs"):
        server.step()
    monkeypatch.setattr(backend, "COMMAND", SMALL_BACKEND)
    wait_until(server.ready, step=server.step)
    monkeypatch.setattr(backend, "COMMAND", "")
    server._live.close()  # type: ignore[union-attr]
    with pytest.raises(ServingError, match="ended"):  # after some attempts
        wait_until(lambda: False, step=server.step)
    assert server._failures == host.MAX_FAILURES


@needs_haproxy
def test_the_moved_log_is_reopened_and_a_killed_haproxy_comes_back(server: Server) -> None:
    log = server.params.store_paths.log("serve")
    log.rename(log.with_suffix(".1"))
    before = server_record.read(server.params)
    (victim,) = [process for process in processes.of(server.params.store) if process.name() == "haproxy"]
    victim.kill()
    assert server.predict(png()).status_code == 200
    assert server_record.read(server.params) == before
    wait_until(lambda: log.exists() and f"HAProxy (pid {victim.pid}) ended" in log.read_text())


@needs_haproxy
def test_health_is_answered_while_the_replica_is_busy(server: Server) -> None:
    (replica,) = [process for process in processes.of(server.params.store) if "ServeReplica" in process.name()]
    assert requests.get(f"{server.url}/healthz", timeout=60).status_code == 200
    replica.suspend()
    try:
        answer = requests.get(f"{server.url}/healthz", timeout=60)
        assert (answer.status_code, answer.json()["model"]) == (200, "model-1:v0")
    finally:
        replica.resume()


def test_the_host_is_small(server: Server) -> None:
    served = server_record.read(server.params)
    assert served is not None
    process = psutil.Process(served.pid)
    assert process.memory_info().rss < 150_000_000
    assert not [entry.path for entry in process.memory_maps() if "torch" in entry.path]


def test_no_process_of_serve_imports_pandas(server: Server) -> None:
    serves = [process for process in processes.of(server.params.store) if "Serve" in process.name()]
    assert len(serves) == 2  # controller and replica
    assert not [entry.path for process in serves for entry in process.memory_maps() if "pandas" in entry.path]


def test_status_and_doctor_ask_whether_a_server_answers(server: Server) -> None:
    served = server_record.read(server.params)
    assert served is not None
    assert doctor._port(server.params).text.endswith(f"this profile's server (pid {served.pid})")
    process = psutil.Process(served.pid)
    process.suspend()
    try:
        assert "running, does not answer" in server.run("status")
        assert "does not answer" in doctor._port(server.params).text
    finally:
        process.resume()


@pytest.mark.long
def test_parts_that_are_killed_under_load_are_repaired(fresh: Server) -> None:
    """The benchmark kills.py measures the same with more repeats."""
    # With the 2 s of the other tests, starved clients got HAProxy's page for late headers, which is no JSON.
    as_by_default = "serve.header_timeout_s=10"
    assert "answers at" in fresh.run("serve", extra=as_by_default)
    for part in kills.PARTS:
        found = kills.kill(fresh.url, fresh.params.store, part)
        assert found["unanswered"] <= kills.CLIENTS, (part, found)  # those in flight
        assert found["not_json"] == [], part
        assert requests.get(f"{fresh.url}/healthz", timeout=60).status_code == 200
    log = fresh.params.store_paths.log("serve").read_text()
    for line in ("HAProxy (pid", "gcs_server (pid", "raylet (pid", "driver (pid", "was removed"):
        assert line in log
    served = server_record.read(fresh.params)
    assert served is not None
    assert served.pid is not None
    os.kill(served.pid, signal.SIGKILL)
    assert processes.gone(fresh.params.store, 15)
    assert re.search(r"serve +crashed +make serve starts it again\n", fresh.run("status"))
    assert "answers at" in fresh.run("serve", extra=as_by_default)


@pytest.mark.long
def test_a_restart_for_changed_settings_keeps_answering(fresh: Server) -> None:
    assert "answers at" in fresh.run("serve")
    with kills.Load(fresh.url) as load:
        assert "restarting" in fresh.run("serve", extra="serve.max_parts=3")
    assert set(load.statuses) == {"200"}
    assert not fresh.run("serve", extra="serve.cpus_per_replica=1000").endswith("[exit 0]")  # cannot start
    assert fresh.predict(png()).status_code == 200  # so the one before stays


def test_a_client_that_closes_the_connection_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    answers = health.HostAnswers(list, lambda: 0)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", answers.port)) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    with pytest.raises(http.client.HTTPException, match="503"):
        health.get(answers.port, "/healthz", 10)
    assert "Traceback" not in capfd.readouterr().err


def test_the_host_answers_many_requests_at_once_without_delay() -> None:
    answers = health.HostAnswers(list, lambda: 0)

    def seconds() -> float:
        started = time.monotonic()
        with ThreadPoolExecutor(50) as pool:
            list(pool.map(lambda _: health.get(answers.port, "/metrics", 10), range(50)))
        return time.monotonic() - started

    assert min(seconds() for _ in range(3)) < 1  # a connection that is refused at first is tried again after 1 s


def test_metrics_of_several_replicas_have_each_series_once() -> None:
    text = '# HELP a A.\n# TYPE a gauge\na{replica="1"} 1\n# HELP b B.\n# TYPE b gauge\nb 2\n'
    merged = health.merge([text, text.replace('"1"', '"2"')])
    assert merged.splitlines()[2:4] == ['a{replica="1"} 1', 'a{replica="2"} 1']
    assert merged.splitlines().count("b 2") == 1
