"""How the backend learns which replicas take requests, and how a replica stops taking them."""

from __future__ import annotations

import asyncio
import http.client
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from flywheel.serving import listener
from flywheel.serving.listener import Listener, Listeners


class SlowApp:
    """Answers after a moment."""

    in_flight = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.in_flight += 1
        await asyncio.sleep(0.3)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        self.in_flight -= 1


def test_a_replica_that_ends_is_no_longer_listed_and_answers_what_is_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "REROUTED_S", 0.1)
    listeners = Listeners(tmp_path / "replicas")

    async def serve() -> bytes:
        first, other = [await Listener.start(SlowApp(), str(tmp_path / "replicas")) for _ in range(2)]  # type: ignore[arg-type]
        await asyncio.to_thread(wait_until, lambda: len(listeners.ports) == 2)
        port = first._server.sockets[0].getsockname()[1]
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        client.request("GET", "/")
        while not first._app.in_flight:
            await asyncio.sleep(0.01)
        listeners.changed.clear()
        closing = asyncio.create_task(first.close())
        await asyncio.to_thread(wait_until, lambda: listeners.ports == [other._server.sockets[0].getsockname()[1]])
        assert listeners.changed.is_set()
        assert not closing.done()  # the request is in flight
        answer = await asyncio.to_thread(lambda: client.getresponse().read())
        await closing
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.1", port, timeout=30).connect()
        return answer

    assert asyncio.run(serve()) == b"ok"
    wait_until(lambda: listeners.ports == [])  # the other process, this loop, ended without a word


def test_an_answer_is_sent_whole_so_that_no_client_is_left_with_half(tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        time.sleep(0.3)  # a replica that is killed here must not have sent the head
        await send({"type": "http.response.body", "body": b"ok"})

    def ask(port: int, closes: bool) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"Connection: close\r\n" * closes + b"\r\n")
            return client.recv(1000)

    async def serve() -> list[bytes]:
        Listeners(tmp_path / "replicas")
        replica = await Listener.start(app, str(tmp_path / "replicas"))  # type: ignore[arg-type]
        port = replica._server.sockets[0].getsockname()[1]
        return [await asyncio.to_thread(ask, port, closes) for closes in (False, True)]

    assert [answer[-6:] for answer in asyncio.run(serve())] == [b"\r\n\r\nok"] * 2
