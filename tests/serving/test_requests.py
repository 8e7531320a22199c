"""Requests, valid and invalid, and their answers."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import io
import json
import socket
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from served import CLASSES, Server, png

from flywheel.data import images
from flywheel.models import classifier
from flywheel.serving import app


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bomb(side: int) -> bytes:
    """Return a small PNG file that decodes to side x side black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    pixels = zlib.compress(b"\0" * (side + 1) * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_an_image_gets_the_probabilities_of_the_model(server: Server) -> None:
    version = server.registry.resolve("model-1")
    model = classifier.load(server.registry.open(version))
    for seed in range(3):
        answer = server.predict(png(seed), **{"Content-Type": "image/png"})
        assert answer.status_code == 200
        body = answer.json()
        expected = model.predict(images.decode(png(seed), 32)[None])[0]
        told = [body["probabilities"][name] for name in CLASSES]
        np.testing.assert_allclose(told, expected, atol=0.01)
        assert body["class_id"] == int(np.argmax(told))
        assert body["label"] == CLASSES[body["class_id"]]
        assert body["confidence"] == max(told)
        assert body["model"] == version.label
        assert abs(sum(told) - 1) < 1e-4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize(
    "content_type",
    [None, "image/png", "application/octet-stream", "application/x-www-form-urlencoded"],  # the last is curl's
)
def test_the_content_decides_not_the_content_type(server: Server, kind: str, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    picture = Image.fromarray(np.full((20, 30, 3), 120, dtype=np.uint8))
    assert server.predict(encoded(picture, kind), **headers).status_code == 200


def test_a_request_keeps_its_id_or_gets_one(server: Server) -> None:
    given = server.predict(png(), **{"X-Request-Id": "order-66"})
    assert given.json()["request_id"] == given.headers["x-request-id"] == "order-66"
    own = server.predict(png())
    assert own.json()["request_id"] == own.headers["x-request-id"] != ""
    refused = server.predict(b"", **{"X-Request-Id": "empty"})
    assert refused.json()["request_id"] == refused.headers["x-request-id"] == "empty"


def test_many_parts_answer_in_order_each_with_its_result_or_error(server: Server) -> None:
    parts = [("file", ("a.png", png(1))), ("file", ("b.txt", b"no image")), ("file", ("c.png", png(2)))]
    answer = requests.post(f"{server.url}/predict", files=parts, timeout=60)
    assert answer.status_code == 200
    first, second, third = answer.json()["predictions"]
    assert first["label"] == server.predict(png(1)).json()["label"]
    assert third["probabilities"].keys() == set(CLASSES)
    assert list(second) == ["error"]
    assert "not an image" in second["error"]


ANIMATED = [Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (0, 255)]
BAD = {
    "empty": (b"", "empty"),
    "text": (b"hello", "not an image in one of the formats"),
    "truncated": (png()[:200], "truncated"),
    "animated": (encoded(ANIMATED[0], "GIF", save_all=True, append_images=ANIMATED[1:]), "animated"),
    "pages": (encoded(ANIMATED[0], "TIFF", save_all=True, append_images=ANIMATED[1:]), "2 pages"),
    "CIELAB": (encoded(Image.new("LAB", (8, 8)), "TIFF"), "CIELAB"),
    "bomb": (bomb(50_000), "pixels"),
}


@pytest.mark.parametrize("case", BAD)
def test_unusable_images_are_refused_with_the_reason(server: Server, case: str) -> None:
    body, reason = BAD[case]
    answer = server.predict(body)
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]
    assert server.predict(png()).status_code == 200


def test_a_large_body_is_refused_before_it_is_read(server: Server) -> None:
    """The answer comes before any of the 100 GB is sent."""
    with socket.create_connection(("127.0.0.1", server.params.serve.port), timeout=30) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")
        head = client.recv(4096).decode()
    assert " 413 " in head.splitlines()[0]
    assert server.predict(b"x" * 200_001).status_code == 413
    assert "200,000 bytes (serve.max_body_bytes)" in server.predict(b"x" * 200_001).json()["error"]


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(server: Server) -> None:
    sent = 0

    def endless() -> Any:
        nonlocal sent
        while sent < 500_000_000:
            sent += 50_000
            yield b"x" * 50_000

    try:
        answer = requests.post(f"{server.url}/predict", data=endless(), timeout=60)
        assert answer.status_code == 413
    except requests.ConnectionError:
        pass  # the server closed the connection, which also refuses the request
    assert sent < 100_000_000
    assert server.predict(png()).status_code == 200


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        ({"Content-Encoding": "gzip"}, gzip.compress(png()), "Content-Encoding: gzip is not supported"),
        ({"Content-Type": "application/json"}, b'{"image": "iVBORw0KGgo="}', "JSON or base64 is not supported"),
        ({}, base64.b64encode(png()), "JSON or base64 is not supported"),
        ({}, b"data:image/png;base64,iVBORw0KGgo=", "JSON or base64 is not supported"),
    ],
)
def test_an_encoded_image_is_refused_by_name(server: Server, headers: dict[str, str], body: bytes, reason: str) -> None:
    answer = server.predict(body, **headers)
    assert answer.status_code == 415
    assert reason in answer.json()["error"]


def test_a_large_header_is_refused_in_json(server: Server) -> None:
    assert server.predict(png(), **{"X-Large": "x" * 20_000}).status_code == 200
    answer = server.predict(png(), **{"X-Large": "x" * 40_000})
    assert answer.status_code == 431
    assert "larger than 32,768 bytes" in answer.json()["error"]


@pytest.mark.parametrize(
    ("start", "part", "reason"),
    [
        (b"POST /pre", b"d", b" 408 "),
        (
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n",
            b"x",
            b"(serve.header_timeout_s, serve.request_timeout_s)",
        ),
    ],
)
def test_a_request_that_arrives_in_drips_is_ended(server: Server, start: bytes, part: bytes, reason: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.params.serve.port), timeout=60) as client:
        client.sendall(start)
        client.settimeout(0.3)
        answer = b""
        until = time.monotonic() + 60
        while not answer:
            assert time.monotonic() < until
            client.sendall(part)
            with contextlib.suppress(TimeoutError):
                answer = client.recv(4096)
        client.settimeout(30)
        while reason not in answer and (more := client.recv(4096)):  # headers and body may come apart
            answer += more
    assert b" 408 " in answer
    assert reason in answer


def test_a_client_that_closes_its_sending_side_gets_its_answer(server: Server) -> None:
    body = png()
    with socket.create_connection(("127.0.0.1", server.params.serve.port), timeout=60) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")


def test_only_pages_of_cors_origins_may_call_the_server_and_none_may_send_labels(server: Server) -> None:
    for origin, allowed in (("https://example.org", True), ("https://example.com", False)):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight, labels = (
            requests.options(f"{server.url}/{path}", headers=asked, timeout=60) for path in ("predict", "feedback")
        )
        answer = server.predict(png(), Origin=origin)
        assert answer.status_code == 200
        for response in (preflight, answer):
            assert (response.headers.get("access-control-allow-origin") == origin) is allowed
        assert "access-control-allow-origin" not in labels.headers


def test_too_many_parts_are_refused(server: Server) -> None:
    parts = [("file", (f"{number}.png", png(size=8))) for number in range(9)]
    answer = requests.post(f"{server.url}/predict", files=parts, timeout=60)
    assert answer.status_code == 413
    assert "more than 8 parts (serve.max_parts)" in answer.json()["error"]
    assert requests.post(f"{server.url}/predict", files=parts[:8], timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        ({"Content-Type": "multipart/form-data"}, b"x", "boundary"),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"no parts here", "not multipart"),
        (
            {"Content-Type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n--b--\r\n',
            "no part is a file called 'file'",
        ),
    ],
)
def test_broken_multipart_says_what_is_wrong(server: Server, headers: dict[str, str], body: bytes, reason: str) -> None:
    answer = server.predict(body, **headers)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]


def test_wrong_paths_and_methods_are_answered_in_json(server: Server) -> None:
    nowhere = requests.get(f"{server.url}/nowhere", timeout=60)
    assert nowhere.status_code == 404
    assert "POST an image to /predict" in nowhere.json()["error"]
    wrong = requests.get(f"{server.url}/predict", timeout=60)
    assert wrong.status_code == 405
    assert "GET is not for /predict" in wrong.json()["error"]
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("OPTIONS * HTTP/1.1", 405),
        ("DELETE /healthz HTTP/1.1", 501),
        ("HEAD /healthz HTTP/1.1", 200),
        ("TRACE /predict HTTP/1.1", 405),
        ("FOO /predict HTTP/1.1", 405),
        ("GET /%00 HTTP/1.1", 404),
        ("GET /model HTTP/0.9", 200),
        ("GET /model?a=%ff&a=&= HTTP/1.1", 200),
    ],
)
def test_an_odd_request_is_answered_in_json(server: Server, line: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.params.serve.port), timeout=60) as client:
        client.sendall(f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = http.client.HTTPResponse(client, method=line.partition(" ")[0])
        answer.begin()
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
        assert line.startswith("HEAD") or json.load(answer)


def test_a_hundred_disconnects_do_not_stop_the_server(server: Server) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(png())}\r\n\r\n".encode()

    def hang_up(number: int) -> None:
        with socket.create_connection(("127.0.0.1", server.params.serve.port), timeout=30) as client:
            client.sendall(head + (png() if number % 2 else png()[:100]))

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(hang_up, range(100)))
    # Images of disconnected clients stay queued until Serve cancels them, so the next request may get 503 first.
    deadline = time.monotonic() + 30
    while (answer := server.predict(png())).status_code == 503 and time.monotonic() < deadline:
        assert answer.elapsed.total_seconds() < 5  # at once
        time.sleep(float(answer.headers["retry-after"]))
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() < 30


def test_overload_is_answered_at_once_and_leaves_nothing_behind(server: Server) -> None:
    parts = [("file", (f"{number}.png", png(number))) for number in range(8)]  # eight images a request fill the queue

    def ask(_: int) -> tuple[int, str | None, float]:
        answer = requests.post(f"{server.url}/predict", files=parts, timeout=60)
        return answer.status_code, answer.headers.get("Retry-After"), answer.elapsed.total_seconds()

    with ThreadPoolExecutor(48) as pool:
        pending = [pool.submit(ask, number) for number in range(160)]
        healths = []
        while not all(future.done() for future in pending):
            healths.append(requests.get(f"{server.url}/healthz", timeout=30).status_code)
            time.sleep(0.1)
        answers = [future.result() for future in pending]
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 503}
    assert all(1 <= int(after or 0) <= 60 for status, after, _ in answers if status == 503)
    assert set(healths) == {200}
    assert [ask(0)[0] for _ in range(5)] == [200] * 5


def test_a_few_bytes_with_many_pixels_hold_up_no_other_request(server: Server) -> None:
    vast = encoded(Image.new("RGB", (7990, 7990)), "WEBP", lossless=True)
    assert len(vast) < app.INLINE_BYTES
    with ThreadPoolExecutor(1) as pool, requests.Session() as session:
        answer = pool.submit(server.predict, vast)
        waits = []
        while not answer.done():
            model = session.get(f"{server.url}/model", timeout=30)  # the host itself answers /healthz
            assert model.ok
            waits.append(model.elapsed)
    assert answer.result().status_code == 200
    assert max(waits) < answer.result().elapsed / 2  # on the event loop, one of them would wait for the decoder


def test_metrics_count_requests_and_predictions(server: Server) -> None:
    def counts() -> np.ndarray:
        names = ("flywheel_predictions_total", "flywheel_request_seconds_count", "flywheel_confidence_count")
        return np.array([server.metric("flywheel_requests_total", path="/predict"), *map(server.metric, names)])

    before = counts()
    for seed in range(4):
        server.predict(png(seed))
    server.predict(b"")
    assert (counts() - before).tolist() == [5, 4, 4, 4]
    assert server.samples("flywheel_model_info", model="model-1:v0")
    assert server.samples("flywheel_queue_images")
    assert server.metric("flywheel_replicas") == 1


def test_the_access_log_has_a_line_a_request(server: Server) -> None:
    server.predict(png(), **{"X-Request-Id": "look-for-me"})
    lines = [json.loads(line) for path in (server.params.store / "logs").glob("access-*.jsonl") for line in path.open()]
    (found,) = [line for line in lines if line["request_id"] == "look-for-me"]
    assert (found["method"], found["path"], found["status"]) == ("POST", "/predict", 200)
    assert found["ms"] > 0
    assert found["model"] == "model-1:v0"


def test_model_describes_the_model_in_production(server: Server) -> None:
    told = requests.get(f"{server.url}/model", timeout=60).json()
    version = server.registry.resolve("model-1")
    assert (told["model"], told["ref"], told["classes"]) == (version.label, version.ref, list(CLASSES))
    assert told["swap_error"] is None
    assert requests.get(f"{server.url}/healthz", timeout=60).json() == {"status": "ready", "model": version.label}
