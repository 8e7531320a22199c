"""Start, run and stop the server on this machine: a host process with a Ray of its own.

The host process holds the lock `serve` while it lives, so that the lock, not a pid, tells whether a server runs. Every
process it starts has the store's path in its environment (MARK). After a crash of the host, `stop` ends exactly the
processes with that mark: Ray, replicas and HAProxy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from flywheel import files
from flywheel.machine import ray_address
from flywheel.params import Params
from flywheel.pipeline import server_record
from flywheel.pipeline.server_record import Served
from flywheel.serving import ServingError, application, ingress, settings

log = logging.getLogger(__name__)

MARK = "FLYWHEEL_SERVER"
DRAIN_S = 30  # for the requests in flight when the server stops
KILL_AFTER_S = 5  # a process that was asked to end and still runs
POLL_S = 0.1
OBJECT_STORE_BYTES = 80_000_000  # Ray would reserve 30 % of the memory; serving does not use it


def start(params: Params, host_command: Sequence[str]) -> Served:
    """Start a server in the background and return when it answers. Keep one that runs with the same settings.

    `host_command` calls `run` in a new process. Raises ServingError with the last error of that process if it does not
    start, and files.Locked while another process starts one.
    """
    with files.lock(params.store_paths.lock("serve-start")):
        return _start(params, host_command)


def run(params: Params) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight.

    Raises ServingError, RayError, files.Locked.
    """
    model = settings.production(params, ask_wandb=MARK not in os.environ)  # `start` has asked W&B already
    with files.lock(params.store_paths.lock("serve")), _folder() as folder:
        _end_leftovers(params)
        _check_port(params)
        os.environ.update(
            {
                **ingress.environment(folder / "h", params.serve.port),
                "RAY_AUTH_MODE": "token",  # Ray's ports listen on all interfaces and refuse clients without the token
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                MARK: str(params.store),
            }
        )
        stopping = threading.Event()
        try:
            with ray_address.connect(None, object_store_memory=OBJECT_STORE_BYTES, _temp_dir=str(folder / "r")):
                for number in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which sets its own
                    signal.signal(number, lambda *_: stopping.set())
                application.deploy(params)
                url, now = settings.url(params), datetime.now(UTC).isoformat(timespec="seconds")
                server_record.write(
                    params, Served(url, os.getpid(), now, model.label, settings.digest(params), folder=str(folder))
                )
                log.info(f"serve: {model.label} answers at {url} (pid {os.getpid()})")
                while not stopping.wait(1):
                    pass
                log.info("serve: stopping when the requests in flight are answered")
                server_record.remove(params)
                application.delete(params)
        finally:
            server_record.remove(params)
            _end_leftovers(params)
    log.info("serve: stopped")


def stop(params: Params) -> bool:
    """End the server on this machine, or the processes a crashed one left. Returns whether there were any."""
    ended = False
    path = params.store_paths.lock("serve")
    served = server_record.read(params)
    if (pid := files.holder(path)) is not None:
        ended = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            until = time.monotonic() + DRAIN_S + 2 * KILL_AFTER_S
            while files.holder(path) == pid and time.monotonic() < until:
                time.sleep(POLL_S)
            if files.holder(path) == pid:
                os.kill(pid, signal.SIGKILL)
    ended = bool(_end_leftovers(params)) or ended
    if served is not None and served.folder:
        shutil.rmtree(served.folder, ignore_errors=True)
    server_record.remove(params)
    return ended


def _start(params: Params, host_command: Sequence[str]) -> Served:
    settings.production(params)
    served, wanted = server_record.read(params), settings.digest(params)
    if files.holder(params.store_paths.lock("serve")) is not None:
        if served is None:
            raise files.Locked(f"a server of profile {params.profile} is starting or stopping; wait for it")
        if served.settings == wanted and served.answers():
            log.info(f"serve: nothing changed since {served.started}")
            return served
        log.info("serve: settings or code changed, or it does not answer; restarting")
    stop(params)
    _check_port(params)
    printed = params.store_paths.log("serve").with_suffix(".out")
    printed.parent.mkdir(parents=True, exist_ok=True)
    with printed.open("wb") as output:
        process = subprocess.Popen(
            list(host_command),
            env=os.environ | {MARK: str(params.store)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + params.serve.start_timeout_s
        while (served := server_record.read(params)) is None or not served.answers():
            if process.poll() is not None:
                raise ServingError(_last_error(printed))
            if time.monotonic() > until:
                raise ServingError(
                    f"no answer within serve.start_timeout_s={params.serve.start_timeout_s:g} s; {printed} has more"
                )
            time.sleep(POLL_S)
    except BaseException:
        stop(params)
        raise
    return served


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Yield a private directory for the sockets of Ray and HAProxy, whose paths must be short; remove it afterwards."""
    parent = tempfile.gettempdir()
    made = Path(tempfile.mkdtemp(prefix="fw-", dir=parent if len(parent) < 20 else "/tmp"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _check_port(params: Params) -> None:
    """Raise ServingError if the port cannot be used."""
    if problem := settings.port_problem(params):
        host, port = params.serve.host, params.serve.port
        raise ServingError(
            f"serve.host={host} serve.port={port} cannot be used ({problem}); "
            f'choose another: make serve SET="serve.port={port + 1}"'
        )


def _end_leftovers(params: Params) -> list[int]:
    """End every other process that carries the mark of this store. Returns their pids."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(params.store):
                process.terminate()
                found.append(process)
    _, alive = psutil.wait_procs(found, timeout=KILL_AFTER_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=KILL_AFTER_S)
    return [process.pid for process in found]


def _last_error(printed: Path) -> str:
    """Return the last error that the host process printed."""
    lines = printed.read_text(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"the server ended before it answered; {printed} has more"
