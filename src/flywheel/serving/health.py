"""What the host itself answers, however busy the replicas are: /healthz, and /metrics of all replicas together."""

from __future__ import annotations

import http.client
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HEALTH_TIMEOUT_S = 0.5  # a busy replica answers later
BUSY_S = 30  # a replica that did not answer for so long is not only busy
METRICS_TIMEOUT_S = 5


class HostAnswers:
    """An HTTP server of the host on loopback. `ports` gives the replicas' ports, `repairs` the count of repairs."""

    def __init__(self, ports: Callable[[], Sequence[int]], repairs: Callable[[], int]):
        self._ports, self._repairs = ports, repairs
        self._answer = b'{"status": "busy"}'  # the last one of a replica
        self._slow_since: float | None = None

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            error_message_format, error_content_type = '{"error": "%(message)s"}', "application/json"

            def do_GET(_self) -> None:  # noqa: N805
                healthy = _self.path.startswith("/healthz")
                status, kind, body = self._health() if healthy else self._metrics()
                _self.send_response(status)
                _self.send_header("Content-Type", kind)
                _self.send_header("Content-Length", str(len(body)))
                if status == 503:
                    _self.send_header("Retry-After", "2")
                _self.end_headers()
                if _self.command != "HEAD":
                    _self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(_self, *_: object) -> None:  # noqa: N805
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _health(self) -> tuple[int, str, bytes]:
        kind, now = "application/json", time.monotonic()
        until, busy = now + HEALTH_TIMEOUT_S, False
        for port in self._ports():
            try:
                self._answer = get(port, "/healthz", max(until - time.monotonic(), 0.05))
                self._slow_since = None
                return 200, kind, self._answer
            except TimeoutError:
                busy = True
            except (OSError, http.client.HTTPException):
                continue
        if busy:
            self._slow_since = self._slow_since or now
            if now - self._slow_since < BUSY_S:
                return 200, kind, self._answer
        return 503, kind, b'{"error": "no replica answers now; try again"}'

    def _metrics(self) -> tuple[int, str, bytes]:
        ports = self._ports()
        with ThreadPoolExecutor(max(len(ports), 1)) as pool:
            texts = [text for text in pool.map(_metrics_of, ports) if text]
        own = _metric("flywheel_replicas", "gauge", "Replicas that answer.", len(texts))
        own += _metric("flywheel_repairs_total", "counter", "Parts of the server started again.", self._repairs())
        return 200, "text/plain; version=0.0.4; charset=utf-8", merge([own, *texts]).encode()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # with Python's 5, some of 50 requests at once took a second or two

    def handle_error(self, *arguments: Any) -> None:
        """Print an error, unless the client closed the connection, as HAProxy does when it ends."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*arguments)


def get(port: int, path: str, timeout_s: float, host: str = "127.0.0.1") -> bytes:
    """Return the body of a 200 from this machine. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise http.client.HTTPException(response.status)
        return response.read()
    finally:
        connection.close()


def merge(texts: Sequence[str]) -> str:
    """Return the metrics of several texts as one, in which each family and each series stands once."""
    families: dict[str, dict[str, str]] = {}
    for text in texts:
        lines: dict[str, str] = {}
        for line in text.splitlines():
            if line.startswith("# HELP "):
                lines = families.setdefault(line.split(" ")[2], {})
            lines.setdefault(line if line.startswith("#") else line.rpartition(" ")[0], line)
    return "\n".join(line for lines in families.values() for line in lines.values()) + "\n"


def _metrics_of(port: int) -> str:
    try:
        return get(port, "/metrics", METRICS_TIMEOUT_S).decode()
    except (OSError, http.client.HTTPException):
        return ""


def _metric(name: str, kind: str, text: str, value: int) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {value}\n"
