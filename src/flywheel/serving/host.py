"""Start, run and stop the server on this machine, and keep its parts running.

The host process holds the lock `serve` while it lives, so that the lock, not a pid, tells whether a server runs. It
owns the listening socket, HAProxy and a backend: a process with a Ray of its own and the replicas. It starts HAProxy
again when that ends, and another backend beside one that fails. Every process has the store's path in its environment
(MARK): `stop` finds what a crashed host left by that.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import fingerprint, server_record
from flywheel.pipeline.server_record import Served
from flywheel.serving import ServingError, haproxy, health, settings
from flywheel.serving.backend import MARK, RUN, WAITING, Backend, end_marked

log = logging.getLogger(__name__)

REPLACES = "FLYWHEEL_SERVER_REPLACES"  # the pid of the host that a new one replaces when it is ready
STOP_S = haproxy.DRAIN_S + 10
KILL_AFTER_S = 5  # a process that was asked to end and still runs
POLL_S = 0.1
READY_S = 5  # for the answer to the host's own request
MAX_FAILURES = 3  # starts of a backend in a row that fail


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
    _check_cluster(params)
    replaced_pid = int(os.environ.pop(REPLACES, "0"))
    for handler in logging.getLogger("flywheel").handlers:  # a full disk or a closed pipe ends no server
        handler.handleError = lambda _: None  # type: ignore[method-assign, assignment]
    run_id = os.environ.setdefault(RUN, secrets.token_hex(8))
    os.environ[MARK] = str(params.store)
    folder = params.store_paths.serving / run_id
    lock = params.store_paths.lock("serve")
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda number, _: signals.append(number))
    with contextlib.ExitStack() as held:
        if not replaced_pid:
            held.enter_context(files.lock(lock))
            _remove_leftovers(params)
        if not replaced_pid or not _listens_there(params):
            _check_port(params)
        # Beside a server that answers, it listens only when its replicas are ready.
        server = _Server(params, folder, listen_at_once=not replaced_pid)
        held.callback(server.close)
        while not signals and not server.ready():
            server.step()
            time.sleep(POLL_S)
        if replaced_pid and not signals:
            _end_host(params, replaced_pid, signal.SIGUSR2)
            held.enter_context(files.lock(lock, wait=True))
        if not signals:
            url, now = settings.url(params), datetime.now(UTC).isoformat(timespec="seconds")
            digest = settings.digest(params)
            server_record.write(params, Served(url, os.getpid(), now, model.label, digest, folder=str(folder)))
            held.callback(_remove_record, params)
            log.info(f"serve: {model.label} answers at {url} (pid {os.getpid()})")
        while not signals:
            server.step()
            time.sleep(POLL_S)
        log.info("serve: stopping when the requests in flight are answered")
        server.drain(replaced=signals[0] == signal.SIGUSR2)
    log.info("serve: stopped")


def stop(params: Params) -> bool:
    """End the server on this machine, or the processes a crashed one left. Returns whether there were any."""
    pid = files.holder(params.store_paths.lock("serve"))
    if pid is not None:
        _end_host(params, pid, signal.SIGTERM)
    return _remove_leftovers(params) or pid is not None


class _Server:
    """The parts that the host watches: HAProxy, the backend and, while one is replaced, the next backend."""

    def __init__(self, params: Params, folder: Path, *, listen_at_once: bool = True):
        self._params, self._folder = params, folder
        # Replicas that start later must run the code of the first, so they import a copy.
        shutil.copytree(fingerprint.PACKAGE, folder / "code" / "flywheel", ignore=shutil.ignore_patterns("__pycache__"))
        self._live: Backend | None = None
        self._next: Backend | None = None
        self._replaced: list[Backend] = []
        self._failures = self._repairs = 0
        self._answers = health.HostAnswers(self._ports, lambda: self._repairs)
        self._own_proxy = haproxy.binary() is None
        self._haproxy: haproxy.HAProxy | None = None
        if listen_at_once:
            self._listen()

    def ready(self) -> bool:
        """Return whether replicas answer, asked as a client would."""
        host, port = str(urlsplit(settings.url(self._params)).hostname), self._params.serve.port
        if self._live is None or not (self._own_proxy or (self._haproxy is not None and self._haproxy.settled())):
            return False
        with contextlib.suppress(OSError, http.client.HTTPException):
            return all(health.get(port, path, READY_S, host) for path in ("/healthz", "/model"))
        return False

    def step(self) -> None:
        """Repair what failed. Raises ServingError if it cannot be repaired."""
        if self._haproxy is not None and (repaired := self._haproxy.check()):
            self._repaired(repaired)
        if self._next is None and (self._live is None or (problem := self._live.problem())):
            if self._live is not None:
                self._repaired(f"{problem}; starting another Ray")
                if self._own_proxy:  # both would listen on the same port
                    self._live.close()
            self._next = Backend(self._params, self._folder, own_proxy=self._own_proxy)
        if self._next is not None:
            self._wait_for(self._next)
        if self._haproxy is None and self._live is not None:
            self._listen()
        if self._haproxy is not None:
            self._haproxy.route(self._ports())
            while self._replaced and self._haproxy.settled():  # no request is on its way to the replaced replicas
                self._replaced.pop().close()

    def drain(self, *, replaced: bool) -> None:
        """Finish the requests in flight."""
        _remove_record(self._params)
        if self._haproxy is not None:
            self._haproxy.stop(replaced=replaced)
        elif self._live is not None:
            self._live.drain()

    def close(self) -> None:
        """End everything."""
        for part in (self._haproxy, self._live, self._next, *self._replaced):
            if part is not None:
                part.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listen(self) -> None:
        if not self._own_proxy:
            self._haproxy = haproxy.HAProxy(self._params, self._folder, self._answers.port, self._ports())

    def _wait_for(self, coming: Backend) -> None:
        if coming.ports:
            before, self._live, self._next, self._failures = self._live, coming, None, 0
            if before is not None:
                self._replaced.append(before)
                log.info(f"serve: replicas answer again after {time.monotonic() - coming.started:.1f} s")
        elif problem := coming.problem():
            coming.close()
            self._next = None
            self._failures += 1
            if self._live is None or self._failures == MAX_FAILURES:
                raise ServingError(problem)
            log.error(f"serve: {problem}; trying again")

    def _repaired(self, what: str) -> None:
        self._repairs += 1
        log.warning(f"serve: {what}")

    def _ports(self) -> Sequence[int]:
        return self._live.ports if self._live is not None else ()


def _start(params: Params, host_command: Sequence[str]) -> Served:
    settings.production(params)
    _check_cluster(params)
    served, wanted = server_record.read(params), settings.digest(params)
    running = files.holder(params.store_paths.lock("serve"))
    if running is not None:
        if served is None:
            raise files.Locked(f"a server of profile {params.profile} is starting or stopping; wait for it")
        if served.settings == wanted and served.answers():
            log.info(f"serve: nothing changed since {served.started}")
            return served
        log.info("serve: settings or code changed, or it does not answer; restarting")
    if running is None or haproxy.binary() is None:
        stop(params)
        running = None
        _check_port(params)
    run_id = secrets.token_hex(8)
    printed = params.store_paths.log("serve").with_suffix(".out")
    printed.parent.mkdir(parents=True, exist_ok=True)
    with printed.open("wb") as output:
        process = subprocess.Popen(
            list(host_command),
            env=os.environ | {MARK: str(params.store), RUN: run_id, REPLACES: str(running or 0)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until, shown = time.monotonic() + params.serve.start_timeout_s, 0
        while (served := server_record.read(params)) is None or served.pid != process.pid:
            if process.poll() is not None:
                raise ServingError(_last_error(printed))
            if time.monotonic() > until:
                raise ServingError(
                    f"no answer within serve.start_timeout_s={params.serve.start_timeout_s:g} s; {printed} has more"
                )
            lines = printed.read_text(errors="replace").splitlines()
            for line in lines[shown:]:
                if line.startswith(WAITING):
                    with contextlib.suppress(BrokenPipeError):  # a reader such as head that has enough ends no server
                        print(line, flush=True)
            shown = len(lines)
            time.sleep(POLL_S)
    except BaseException:
        end_marked(RUN, run_id, grace_s=KILL_AFTER_S)
        raise
    return served


def _end_host(params: Params, pid: int, number: int) -> None:
    """Ask a host to end and kill it if it does not."""
    path = params.store_paths.lock("serve")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        until = time.monotonic() + STOP_S
        while files.holder(path) == pid and time.monotonic() < until:
            time.sleep(POLL_S)
        if files.holder(path) == pid:
            os.kill(pid, signal.SIGKILL)


def _remove_leftovers(params: Params) -> bool:
    """End every other process of this store's servers and remove their files. Returns whether there were processes."""
    ended = end_marked(MARK, str(params.store), grace_s=KILL_AFTER_S)
    for link in params.store_paths.serving.glob("*/ray-*"):
        shutil.rmtree(link.resolve(), ignore_errors=True)
    shutil.rmtree(params.store_paths.serving, ignore_errors=True)
    server_record.remove(params)
    return bool(ended)


def _remove_record(params: Params) -> None:
    """Remove the record of this process; that of a server which it was to replace stays."""
    served = server_record.read(params)
    if served is not None and served.pid == os.getpid():
        server_record.remove(params)


def _listens_there(params: Params) -> bool:
    """Return whether the server that runs already listens where these params say."""
    served = server_record.read(params)
    return served is not None and served.url == settings.url(params)


def _check_cluster(params: Params) -> None:
    """Raise ServingError while this profile is served on a cluster: without its record, nobody could stop it."""
    served = server_record.read(params)
    if served is not None and served.address is not None:
        raise ServingError(
            f"profile {params.profile} is served on the cluster at {served.address} ({served.url}); "
            f"make stop PROFILE={params.profile} ends that server"
        )


def _check_port(params: Params) -> None:
    """Raise ServingError if the port cannot be used."""
    if problem := settings.port_problem(params):
        host, port = params.serve.host, params.serve.port
        raise ServingError(
            f"serve.host={host} serve.port={port} cannot be used ({problem}); "
            f'choose another: make serve SET="serve.port={port + 1}"'
        )


def _last_error(printed: Path) -> str:
    """Return the last error that the host process printed."""
    lines = printed.read_text(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"the server ended before it answered; {printed} has more"
