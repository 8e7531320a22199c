"""A data set in a store, and a server over real HTTP that answers by the contract and can be told to fail."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import made_models
import pytest
import scripts

from flywheel.data import images
from flywheel.data.dataset import Dataset
from flywheel.params import Params
from flywheel.pipeline import server_record
from flywheel.pipeline.server_record import Served
from flywheel.registry import Registry, Version
from flywheel.traffic import keys, records
from flywheel.traffic.capture import Answered, Recorder
from flywheel.traffic.labels import LabelLog

MODEL_REF = "model-1@sha256:00"
OVERRIDES = "data.image_size=8 tracking.wandb=disabled simulate.concurrency=4"


class Server:
    """Knows every image by its pixels and answers its true class, except for those it is told to get wrong.

    `fault` is asked before each prediction, with the number of the request (from 1) and how often this image was
    sent (from 1); what it returns is called with the handler instead of an answer.
    """

    def __init__(self, opened: Dataset, params: Params):
        self.names = opened.class_names
        self.truth = {opened.hashes[i].tobytes(): int(opened.labels[i]) for i in opened.indices["simulation"]}
        self.wrong: set[bytes] = set()
        self.model: Callable[[int], str] = lambda number: "model-1:v0"
        self.fault: Callable[[int, int], Callable[[Any], None] | None] = lambda number, tries: None
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
        self.described: Any = None  # what /model says, if not the truth
        self.sent: dict[bytes, int] = {}
        self.requests = self.label_requests = 0
        self.lose_label_answers: set[int] = set()
        self.recorder = Recorder(params.store_paths, params.traffic.model_copy(update={"keep_images": 0.0}), "test")
        self.labels = LabelLog(params.store_paths, "test", lambda: self.names, params.traffic.max_age_days)
        self.token = keys.token(params.store_paths)
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def fail(self, opened: Dataset, indices: Any) -> None:
        """Get these simulation images wrong, and no others."""
        self.wrong = {opened.hashes[opened.indices["simulation"][i]].tobytes() for i in indices}

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
        self.recorder.close()

    def answer(self, body: bytes, number: int, request_id: str) -> dict[str, Any]:
        pixels = images.decode(body, 8)
        key = hashlib.sha256(pixels.tobytes()).digest()
        label = self.truth[key]  # PNG loses nothing, so every image is known
        predicted = (label + 1) % len(self.names) if key in self.wrong else label
        rest = 0.1 / (len(self.names) - 1)
        made, probabilities = records.new_id(), [0.9 if i == predicted else rest for i in range(len(self.names))]
        self.recorder.add(Answered(made, pixels, None, MODEL_REF, self.names[predicted], probabilities, 0.001))
        return {
            "prediction_id": made,
            "label": self.names[predicted],
            "class_id": predicted,
            "confidence": 0.9,
            "probabilities": dict(zip(self.names, probabilities, strict=True)),
            "model": self.model(number),
            "request_id": request_id,
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else every answer waits 40 ms for the client's delayed ACK
            wbufsize = -1

            def log_message(self, *_: Any) -> None:
                pass

            def reply(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, text in (headers or {}).items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.reply(200, server.described or {"model": server.model(0), "classes": list(server.names)})

            def take_labels(self, body: bytes) -> None:
                if self.headers["Authorization"] != f"Bearer {server.token}":
                    self.reply(401, {"error": "labels need a token"})
                    return
                with server.lock:
                    answers = server.labels.add(json.loads(body))
                    server.label_requests += 1
                    lost = server.label_requests in server.lose_label_answers
                if lost:
                    self.reply(503, {"error": "the labels were taken, but the client is not told"})
                else:
                    self.reply(200, {"results": [{"status": answer.status} for answer in answers]})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/feedback":
                    self.take_labels(body)
                    return
                assert self.headers["Content-Type"] == "image/png"
                with server.lock:
                    server.requests += 1
                    number = server.requests
                    key = hashlib.sha256(body).digest()
                    server.sent[key] = tries = server.sent.get(key, 0) + 1
                fault = server.fault(number, tries)
                if fault:
                    fault(self)
                else:
                    self.reply(200, server.change(server.answer(body, number, self.headers["X-Request-Id"])))

        return Handler


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a made data set (150 simulation images) and two models in the registry."""
    root = tmp_path_factory.mktemp("built")
    params = load(root)
    registry = Registry(params.store)
    data = made_models.publish_dataset(registry, params, made_models.dataset(params))
    for name in ("model-1", "model-2"):
        (root / name).write_text(name)
        registry.publish(name, "model", {"a": root / name}, inputs={"dataset": data.ref})
    return root


def load(root: Path, overrides: str = "") -> Params:
    return scripts.load(root, f"{OVERRIDES} {overrides}")


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A copy of the built store."""
    shutil.copytree(built / "store", tmp_path / "store")
    return tmp_path


@pytest.fixture
def make_params(root: Path) -> Callable[..., Params]:
    """Load the params of that copy with overrides; `params` and `registry` are of it, too."""
    return lambda overrides="": load(root, overrides)


@pytest.fixture
def make(make_params: Callable[..., Params]) -> Callable[..., Params]:
    return make_params


@pytest.fixture
def dataset_version(registry: Registry) -> Version:
    return registry.resolve("digits_dataset")


@pytest.fixture
def server(opened: Dataset, params: Params) -> Iterator[Server]:

    running = Server(opened, params)
    server_record.write(params, Served(running.url, 1, "", "model-1:v0", ""))
    yield running
    running.close()
