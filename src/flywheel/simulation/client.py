"""The client that sends simulated traffic: images over HTTP in several threads, with bounded retries.

An image ends as a Prediction or as a NoAnswer. Connection errors, timeouts and the statuses 500, 502, 503 and 504 are
retried with growing pauses (a prediction has no side effects); every other error is final at once.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image

from flywheel.params import Simulate
from flywheel.simulation import SimulationError

RETRIED = (500, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # doubled from try to try
LONGEST_RETRY_AFTER_S = 60.0  # however long the server asks for; a model takes seconds to load
LONGEST_START_S = 120.0  # a server that starts asks again and again; such refusals are no attempts until then
TIE = 1e-4  # servers round probabilities


@dataclass(frozen=True)
class Prediction:
    """The server's answer for an image: probabilities (classes,) float32, the largest that of `class_id`.

    `index` is the image's among the simulation images.
    """

    index: int
    class_id: int
    probabilities: NDArray[np.float32]
    model: str
    request_id: str
    prediction_id: str
    latency_s: float
    attempts: int

    @property
    def confidence(self) -> float:
        """The probability of the predicted class."""
        return float(self.probabilities[self.class_id])


@dataclass(frozen=True)
class NoAnswer:
    """Why an image has no prediction: kind (`status_413`, `timeout`, `connection`, `bad_answer`) and reason."""

    index: int
    kind: str
    reason: str
    attempts: int


class Client:
    """One connection to a server; not shared among threads."""

    def __init__(self, url: str, options: Simulate, stopping: threading.Event | None = None):
        self.url = url.rstrip("/")
        self.options = options
        self.stopping = stopping or threading.Event()
        self.session = requests.Session()
        # On this machine HTTP_PROXY does not apply, and requests would read netrc for each image.
        self.session.trust_env = urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")

    def model(self) -> dict[str, Any]:
        """Return the server's description of its model. Raises SimulationError."""
        found, _, _ = self._request("GET", "/model")
        if isinstance(found, NoAnswer):
            raise SimulationError(f"nothing answers at {self.url} ({found.reason})")
        try:
            described = found.json()
            names = described["classes"]
            if not isinstance(described["model"], str) or not all(isinstance(name, str) for name in names):
                raise ValueError("wrong types")
        except (ValueError, KeyError, TypeError):
            raise SimulationError(
                f"{self.url}/model does not describe a model; is that the flywheel's server?"
            ) from None
        return dict(described)

    def predict(self, index: int, pixels: NDArray[np.uint8], class_names: Sequence[str]) -> Prediction | NoAnswer:
        """Send an image (s, s, 3) uint8 as PNG. An error of the server is returned as a NoAnswer, never raised."""
        request_id = secrets.token_hex(8)
        headers = {"Content-Type": "image/png", "X-Request-Id": request_id}
        found, attempts, latency_s = self._request("POST", "/predict", index, headers, png(pixels))
        if isinstance(found, NoAnswer):
            return found
        try:
            answer = json.loads(found.content)
            class_id, probabilities = read_prediction(answer, class_names)
            if answer["request_id"] != request_id:
                raise ValueError("it answers another request")
            prediction_id = str(answer["prediction_id"])
            return Prediction(
                index, class_id, probabilities, str(answer["model"]), request_id, prediction_id, latency_s, attempts
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            return NoAnswer(index, "bad_answer", f"not a prediction: {reason}", attempts)

    def give_labels(self, rows: Sequence[Mapping[str, Any]], token: str) -> list[str] | NoAnswer:
        """Send rows to POST /feedback; return the status of each. Repeating them changes nothing."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        found, attempts, _ = self._request("POST", "/feedback", headers=headers, body=json.dumps(rows).encode())
        if isinstance(found, NoAnswer):
            return found
        try:
            return [str(one["status"]) for one in found.json()["results"]]
        except (ValueError, KeyError, TypeError):
            return NoAnswer(-1, "bad_answer", "its answer lists no results", attempts)

    def _request(
        self,
        method: str,
        path: str,
        index: int = -1,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[requests.Response | NoAnswer, int, float]:
        """Return (the response or a NoAnswer, attempts, seconds that the last attempt took)."""
        no_answer = NoAnswer(index, "stopped", "stopped", 0)
        attempt, waited, waited_s = 0, 0, 0.0
        while attempt - waited < self.options.max_attempts and not self.stopping.is_set():
            attempt, asked_s = attempt + 1, 0.0
            started = time.perf_counter()
            try:
                response = self.session.request(
                    method, self.url + path, data=body, headers=headers, timeout=self.options.timeout_s,
                    allow_redirects=False,
                )  # fmt: skip
                if response.status_code == 200:
                    return response, attempt, time.perf_counter() - started
                no_answer = NoAnswer(index, f"status_{response.status_code}", _reason(response), attempt)
                if response.status_code not in RETRIED:
                    break
                asked_s = _retry_after_s(response)
                if asked_s >= 1 and waited_s < LONGEST_START_S:
                    waited, waited_s = waited + 1, waited_s + asked_s
            except requests.Timeout:
                no_answer = NoAnswer(index, "timeout", f"no answer within {self.options.timeout_s:g} s", attempt)
            except requests.RequestException as error:
                no_answer = NoAnswer(index, "connection", _cause(error), attempt)
            if attempt - waited < self.options.max_attempts:
                # Jitter, so that clients that were refused together do not come back together.
                pause_s = min(FIRST_PAUSE_S * 2 ** min(attempt - 1, 9), LONGEST_PAUSE_S) * random.uniform(0.5, 1)
                self.stopping.wait(max(pause_s, asked_s))
        return no_answer, no_answer.attempts, 0.0


def send(
    url: str,
    options: Simulate,
    indices: Sequence[int],
    pixels: Callable[[int], NDArray[np.uint8]],
    class_names: Sequence[str],
) -> Generator[Prediction | NoAnswer]:
    """Send the images of `indices`, in that order, in `options.concurrency` threads; yield as they come back.

    `pixels` gives an image (s, s, 3) uint8. Closing the iterator (an exception in its user, Ctrl-C) sends nothing
    more and does not wait for requests in flight.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in indices:
        waiting.put(index)
    done: queue.SimpleQueue[Prediction | NoAnswer | BaseException] = queue.SimpleQueue()
    stopping = threading.Event()

    def work() -> None:
        client = Client(url, options, stopping)
        try:
            with contextlib.suppress(queue.Empty):
                while not stopping.is_set():
                    index = waiting.get_nowait()
                    done.put(client.predict(index, pixels(index), class_names))
        except BaseException as error:  # a bug of ours must not look like a server that hangs
            done.put(error)
        finally:
            client.session.close()

    # Daemons: after Ctrl-C the process ends at once, not after the longest timeout.
    for _ in range(min(options.concurrency, len(indices))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in indices:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stopping.set()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image (h, w, 3) uint8 as PNG, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read_prediction(answer: Any, class_names: Sequence[str]) -> tuple[int, NDArray[np.float32]]:
    """Return (class id, probabilities (classes,) float32). Raises ValueError, KeyError or TypeError."""
    if answer["label"] not in class_names:
        raise ValueError(f"unknown label {str(answer['label'])[:40]!r}")
    class_id = list(class_names).index(answer["label"])
    if answer["class_id"] != class_id:
        raise ValueError(f"class_id {answer['class_id']!r} is not {answer['label']}")
    if set(answer["probabilities"]) != set(class_names):
        raise ValueError("probabilities of other classes")
    if not isinstance(answer["model"], str):
        raise ValueError("the model has no name")
    values = np.array([answer["probabilities"][name] for name in class_names], np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or abs(values.sum() - 1) > 0.01:
        raise ValueError("probabilities that are none")
    if values[class_id] < values.max() - TIE or not math.isclose(answer["confidence"], values[class_id], abs_tol=TIE):
        raise ValueError(f"{answer['label']} is not the most probable class, or its confidence is another")
    probabilities = values.astype(np.float32)
    if probabilities.argmax() != class_id:  # a tie that rounding made
        probabilities[class_id] = np.nextafter(probabilities.max(), np.float32(2))
    return class_id, probabilities


def _retry_after_s(response: requests.Response) -> float:
    """Return how long a server asks to wait, bounded; 0 when it does not say so in seconds."""
    with contextlib.suppress(ValueError):
        seconds = float(response.headers.get("Retry-After", ""))
        if math.isfinite(seconds):
            return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)
    return 0.0


def _reason(response: requests.Response) -> str:
    """Return the reason that a response gives for its status, in one short line."""
    text = ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = " ".join(str(response.json()["error"]).split())[:200]
    return f"{response.status_code} {text or response.reason or ''}".strip()


def _cause(error: BaseException) -> str:
    """Return the innermost cause of a connection error: `Connection refused`, not three nested exceptions."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(getattr(error, "strerror", None) or error or type(error).__name__).split(": ")[-1][:200]
