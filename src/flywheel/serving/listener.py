"""Send requests from HAProxy straight to the replicas, without a proxy of Serve or its work for each request.

Each replica listens on a port of its own on loopback. It tells the backend that port over a Unix socket; the end of
that connection tells the backend that the replica takes no more requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import socketserver
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flywheel.serving.app import App

KEEP_ALIVE_S = 75  # longer than HAProxy keeps an idle connection
REROUTED_S = 3  # after which HAProxy sends no request to a replica that said that it ends
POLL_S = 0.05


class Listener:
    """The replica's side."""

    def __init__(self, app: App, server: asyncio.Server, report: asyncio.StreamWriter):
        self._app, self._server, self._report = app, server, report

    @classmethod
    async def start(cls, app: App, backend: str) -> Listener:
        """Listen, and tell the backend whose socket has the path `backend`."""
        import uvicorn
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        from uvicorn.server import ServerState

        class Protocol(HttpToolsProtocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(WholeAnswers(transport))  # type: ignore[arg-type]

        config = uvicorn.Config(
            app, lifespan="off", ws="none", proxy_headers=False, access_log=False, log_config=None, log_level="error",
            timeout_keep_alive=KEEP_ALIVE_S,
        )  # fmt: skip
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Protocol(config, state, {}), "127.0.0.1", 0, backlog=2048)
        _, report = await asyncio.open_unix_connection(backend)
        report.write(f"{server.sockets[0].getsockname()[1]}\n".encode())
        return cls(app, server, report)

    async def close(self) -> None:
        """Take no more requests, and return when those in flight are answered."""
        self._report.close()
        await asyncio.sleep(REROUTED_S)
        self._server.close()
        while self._app.in_flight:
            await asyncio.sleep(POLL_S)


class WholeAnswers:
    """A transport that sends the head and the body of an answer together.

    Otherwise a replica that is killed between the two leaves the client half an answer, and HAProxy cannot send the
    request to another replica.
    """

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send at the end of this step of the event loop, together with all that follows in it."""
        if not self._parts:
            asyncio.get_running_loop().call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Send what is left, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            self._transport.write(b"".join(parts))


class Listeners:
    """The backend's side: the ports of the replicas that take requests. `changed` is set when they change."""

    def __init__(self, path: Path):
        self._ports: set[int] = set()
        self.changed = threading.Event()

        class Handler(socketserver.StreamRequestHandler):
            def handle(_self) -> None:  # noqa: N805
                port = int(_self.rfile.readline())
                self._ports.add(port)
                self.changed.set()
                with contextlib.suppress(OSError):
                    _self.rfile.read()  # until the replica ends
                self._ports.discard(port)
                self.changed.set()

        server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()

    @property
    def ports(self) -> list[int]:
        """The ports, in order."""
        return sorted(self._ports)
