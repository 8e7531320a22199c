"""A process with a Ray of its own and the replicas in it. It tells the host the ports that the replicas listen on.

The host starts one, and another beside it when that one fails. The process reads the params from its first line of
stdin and ends when stdin is closed, so it cannot outlive the host. It runs the code of a snapshot, and so do replicas
that start later.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import pickle
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from flywheel import FlywheelError
from flywheel.machine import limits, ray_address
from flywheel.params import Params
from flywheel.serving import ServingError, application
from flywheel.serving.listener import Listeners

log = logging.getLogger(__name__)

MARK = "FLYWHEEL_SERVER"  # in the environment of all processes of a server: the store's path
RUN = "FLYWHEEL_SERVER_RUN"  # of all processes of one host
RAY = "FLYWHEEL_SERVER_RAY"  # of all processes of one backend
OBJECT_STORE_BYTES = 80_000_000  # Ray would reserve 30 % of the memory; serving does not use it
REPORT_S = 1
SILENT_S = 30  # a process whose replicas answer and that does not report for so long hangs
NO_CONTROLLER_S = 8  # Serve restarts its controller in less, if Ray works
LONGEST_PARENT = limits.SOCKET_FOLDER_CHARACTERS - len("/fw-12345678") + len("/ray")
KILL_S = 10
PRELOAD = "flywheel.serving.preload"
WAITING = "serve: waiting for "  # lines of the host's output that start so are shown
COMMAND = "from flywheel.serving import backend; backend.main()"


class Backend:
    """The host's side: start the process, read its reports, end everything that it started."""

    def __init__(self, params: Params, run_folder: Path, *, own_proxy: bool):
        self.ports: list[int] = []
        self._start_timeout_s = params.serve.start_timeout_s
        self.started = self._seen = time.monotonic()
        self._error: str | None = None
        self._mark = secrets.token_hex(8)
        parent = str(limits.temporary_folder() or "/tmp")  # the paths of sockets must be short: not in the store
        self._folder = Path(tempfile.mkdtemp(prefix="fw-", dir=parent if len(parent) <= LONGEST_PARENT else "/tmp"))
        self._link = run_folder / f"ray-{self._mark}"
        self._link.symlink_to(self._folder)  # for `make stop` after a crash of the host
        self._process = subprocess.Popen(
            [sys.executable, "-Pc", COMMAND, str(self._folder), str(int(own_proxy))],
            env={**os.environ, **variables(own_proxy), "PYTHONPATH": str(run_folder / "code"), RAY: self._mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the host
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reader notices that the process ended
            self._process.stdin.write(pickle.dumps(params).hex() + "\n")
            self._process.stdin.flush()
        threading.Thread(target=self._read, daemon=True).start()

    def problem(self) -> str | None:
        """Return why this backend must be replaced, or None."""
        silent_s = time.monotonic() - self._seen
        if self._error is None and silent_s > SILENT_S + (0 if self.ports else self._start_timeout_s):
            return f"Ray's driver (pid {self._process.pid}) hangs"
        return self._error

    def drain(self) -> None:
        """Delete the application, which finishes the requests in flight. Only needed without HAProxy."""
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            assert self._process.stdin is not None
            self._process.stdin.write("drain\n")
            self._process.stdin.flush()
            self._process.wait(KILL_S * 4)

    def close(self) -> None:
        """Kill the process and everything that it started."""
        self._process.kill()
        self._process.wait()
        end_marked(RAY, self._mark, grace_s=0)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._link.unlink(missing_ok=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report = json.loads(line)
            self._seen = time.monotonic()
            self._error = report.get("error", self._error)
            if "waits_for" in report:
                log.info(f"{WAITING}{report['waits_for']}")
            self.ports = report.get("ports", self.ports)
        self._error = self._error or f"Ray's driver (pid {self._process.pid}) ended"


def variables(own_proxy: bool) -> dict[str, str]:
    """Return the environment variables to set before Ray starts."""
    return {
        "RAY_AUTH_MODE": "token",  # Ray's ports listen on all interfaces and refuse clients without the token
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",  # without the GCS, replicas answer until others do
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # the model runs in a thread of its own
        "RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE": str(int(own_proxy)),  # the replicas count their requests
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",  # the default of 0.1 uses 2.5 % of a core
        "RAY_preload_python_modules": PRELOAD,
        "SPT_NOENV": "1",  # a Ray process that names itself keeps its environment, and with it the mark
    }


def end_marked(name: str, value: str, *, grace_s: float) -> list[int]:
    """End every other process that has `name`=`value` in its environment; kill it after `grace_s`. Return the pids."""
    ended: set[int] = set()
    kill_at = time.monotonic() + grace_s
    while (found := _marked(name, value)) and time.monotonic() < kill_at + KILL_S:
        for process in found:
            with contextlib.suppress(psutil.Error):
                if time.monotonic() >= kill_at:
                    process.kill()
                elif process.pid not in ended:
                    process.terminate()
            ended.add(process.pid)
        psutil.wait_procs(found, timeout=0.2)
    return sorted(ended)


def _marked(name: str, value: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
    return found


def main() -> None:
    """Deploy the application to a Ray of this process and report until the host closes stdin."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no report
    params: Params = pickle.loads(bytes.fromhex(sys.stdin.readline()))  # noqa: S301
    folder, own_proxy = sys.argv[1], sys.argv[2] == "1"
    draining = threading.Event()
    threading.Thread(target=_obey, args=(draining,), daemon=True).start()

    def report(**values: object) -> None:
        print(json.dumps(values), file=reports)

    report(waits_for="Ray to start")
    try:
        cpus = _cpus(params)
        threading.Thread(target=importlib.import_module, args=(PRELOAD,)).start()  # while Ray starts
        with ray_address.connect(None, num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, _temp_dir=folder):
            try:
                _serve(params, own_proxy, draining, report)
            except FlywheelError as error:
                report(error=str(error))
                threading.Event().wait()  # its replicas answer until the host has another backend
    except FlywheelError as error:
        report(error=str(error))


def _cpus(params: Params) -> int:
    """Return the CPUs that Ray is told of: it starts a process for each at once. One is for Serve's controller."""
    from ray._private.utils import get_num_cpus

    needed = math.ceil(params.serve.max_replicas * params.serve.cpus_per_replica)
    return min(int(get_num_cpus()), needed + 1)


def _obey(draining: threading.Event) -> None:
    """Drain when the host says so; end when the host ended."""
    if sys.stdin.readline():
        draining.set()
    sys.stdin.read()
    end_marked(RAY, os.environ[RAY], grace_s=0)
    os._exit(1)


def _serve(params: Params, own_proxy: bool, draining: threading.Event, report: Callable[..., None]) -> None:
    """Deploy, then report the replicas' ports. Raises ServingError when a part of Ray fails."""
    import ray
    from ray._private import worker
    from ray.serve import context

    node: Any = worker._global_node
    path = Path(sys.argv[1]) / "replicas"
    listeners = Listeners(path)
    report(waits_for="the replicas to load the model")
    if own_proxy:
        application.deploy(params)
    else:
        application.deploy(params, str(path), lambda: len(listeners.ports) >= params.serve.min_replicas)
    client: Any = context._get_global_client()
    answered = had_replica = time.monotonic()
    while not draining.is_set():
        for name, process in node.dead_processes():
            raise ServingError(f"Ray's {name} (pid {process.pid}) ended with exit code {process.poll()}")
        for socket in (node.raylet_socket_name, node.plasma_store_socket_name):
            if not Path(socket).exists():
                raise ServingError(f"{socket} was removed")
        ports = [params.serve.port] if own_proxy else listeners.ports
        if not ports and time.monotonic() - had_replica > params.serve.start_timeout_s:
            raise ServingError(f"no replica started within serve.start_timeout_s={params.serve.start_timeout_s:g} s")
        had_replica = time.monotonic() if ports else had_replica
        report(**{"ports": ports} if ports else {})  # HAProxy sees itself that the last replica ended
        try:
            ray.get(client._controller.check_alive.remote(), timeout=2)
            answered = time.monotonic()
        except ray.exceptions.RayError as error:
            if time.monotonic() - answered > NO_CONTROLLER_S:
                raise ServingError(f"Serve's controller does not answer ({type(error).__name__})") from None
        listeners.changed.wait(REPORT_S)
        listeners.changed.clear()
    application.delete(params)
