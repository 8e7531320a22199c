"""The client that plays production traffic: images over HTTP in several threads, with bounded retries.

An image ends as an Answer or as a Failure. Tried again, with growing pauses, are connection errors, timeouts and
answers 500, 502, 503, 504 (a prediction changes nothing, so asking twice does no harm); all else is final at once.
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
LONGEST_RETRY_AFTER_S = 60.0  # of what a server asks for; a model takes seconds to load
TIE = 1e-4  # servers round probabilities


@dataclass(frozen=True)
class Answer:
    """What the server said of an image: probabilities (classes,) float32 whose largest is the prediction."""

    place: int
    prediction: int
    probabilities: NDArray[np.float32]
    model: str
    request_id: str
    latency_s: float
    attempts: int

    @property
    def confidence(self) -> float:
        """The probability of the prediction."""
        return float(self.probabilities[self.prediction])


@dataclass(frozen=True)
class Failure:
    """Why an image has no answer: a kind to count (`status_413`, `timeout`, `connection`, `bad_answer`), a reason."""

    place: int
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
        # On this machine no proxy is wanted, whatever HTTP_PROXY says, and netrc is not to be read for each image.
        self.session.trust_env = urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")

    def model(self) -> dict[str, Any]:
        """Return what the server says of its model. Raises SimulationError."""
        found, _, _ = self._ask("GET", "/model")
        if isinstance(found, Failure):
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

    def predict(self, place: int, pixels: NDArray[np.uint8], class_names: Sequence[str]) -> Answer | Failure:
        """Send an image (s, s, 3) uint8 as PNG and return what came of it; never raises for the server's faults."""
        request_id = secrets.token_hex(8)
        headers = {"Content-Type": "image/png", "X-Request-Id": request_id}
        found, attempts, latency_s = self._ask("POST", "/predict", place, headers, png(pixels))
        if isinstance(found, Failure):
            return found
        try:
            said = json.loads(found.content)
            prediction, probabilities = read_prediction(said, class_names)
            if said["request_id"] != request_id:
                raise ValueError("it answers another request")
            return Answer(place, prediction, probabilities, str(said["model"]), request_id, latency_s, attempts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            return Failure(place, "bad_answer", f"not a prediction: {reason}", attempts)

    def _ask(
        self,
        method: str,
        path: str,
        place: int = -1,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[requests.Response | Failure, int, float]:
        """Return (answer or why there is none, attempts, seconds that the last attempt took)."""
        failure = Failure(place, "stopped", "stopped", 0)
        for attempt in range(1, self.options.max_attempts + 1):
            if self.stopping.is_set():
                break
            asked_s = 0.0
            started = time.perf_counter()
            try:
                answer = self.session.request(
                    method, self.url + path, data=body, headers=headers, timeout=self.options.timeout_s,
                    allow_redirects=False,
                )  # fmt: skip
                if answer.status_code == 200:
                    return answer, attempt, time.perf_counter() - started
                failure = Failure(place, f"status_{answer.status_code}", _reason(answer), attempt)
                if answer.status_code not in RETRIED:
                    break
                asked_s = _retry_after_s(answer)
            except requests.Timeout:
                failure = Failure(place, "timeout", f"no answer within {self.options.timeout_s:g} s", attempt)
            except requests.RequestException as error:
                failure = Failure(place, "connection", _cause(error), attempt)
            if attempt < self.options.max_attempts:
                # Some randomness, so that clients which were refused together do not come back together.
                pause_s = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S) * random.uniform(0.5, 1)
                self.stopping.wait(max(pause_s, asked_s))
        return failure, failure.attempts, 0.0


def play(
    url: str,
    options: Simulate,
    places: Sequence[int],
    pixels: Callable[[int], NDArray[np.uint8]],
    class_names: Sequence[str],
) -> Generator[Answer | Failure]:
    """Send the images at `places`, in that order, in `options.concurrency` threads; yield as they come back.

    `pixels` gives an image (s, s, 3) uint8. Closing the iterator (an exception in its user, Ctrl-C) sends nothing
    more and does not wait for what is in flight.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in places:
        waiting.put(place)
    done: queue.SimpleQueue[Answer | Failure | BaseException] = queue.SimpleQueue()
    stopping = threading.Event()

    def work() -> None:
        client = Client(url, options, stopping)
        try:
            with contextlib.suppress(queue.Empty):
                while not stopping.is_set():
                    place = waiting.get_nowait()
                    done.put(client.predict(place, pixels(place), class_names))
        except BaseException as error:  # a bug of ours must not look like a server that hangs
            done.put(error)
        finally:
            client.session.close()

    # Daemons: after Ctrl-C the process ends at once, not after the longest timeout.
    for _ in range(min(options.concurrency, len(places))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in places:
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


def read_prediction(said: Any, class_names: Sequence[str]) -> tuple[int, NDArray[np.float32]]:
    """Return (class, probabilities (classes,) float32) of an answer. Raises ValueError, KeyError or TypeError."""
    if said["label"] not in class_names:
        raise ValueError(f"unknown label {str(said['label'])[:40]!r}")
    prediction = list(class_names).index(said["label"])
    if said["class_id"] != prediction:
        raise ValueError(f"class_id {said['class_id']!r} is not {said['label']}")
    if set(said["probabilities"]) != set(class_names):
        raise ValueError("probabilities of other classes")
    if not isinstance(said["model"], str):
        raise ValueError("the model has no name")
    values = np.array([said["probabilities"][name] for name in class_names], np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or abs(values.sum() - 1) > 0.01:
        raise ValueError("probabilities that are none")
    if values[prediction] < values.max() - TIE or not math.isclose(said["confidence"], values[prediction], abs_tol=TIE):
        raise ValueError(f"{said['label']} is not the most probable class, or its confidence is another")
    probabilities = values.astype(np.float32)
    if probabilities.argmax() != prediction:  # a tie that rounding made
        probabilities[prediction] = np.nextafter(probabilities.max(), np.float32(2))
    return prediction, probabilities


def _retry_after_s(answer: requests.Response) -> float:
    """Return how long a server asks to wait, bounded; 0 when it does not say so in seconds."""
    with contextlib.suppress(ValueError):
        seconds = float(answer.headers.get("Retry-After", ""))
        if math.isfinite(seconds):
            return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)
    return 0.0


def _reason(answer: requests.Response) -> str:
    """Return the reason that an answer gives for its status, in one short line."""
    text = ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = " ".join(str(answer.json()["error"]).split())[:200]
    return f"{answer.status_code} {text or answer.reason or ''}".strip()


def _cause(error: BaseException) -> str:
    """Return the innermost cause of a connection error: `Connection refused`, not three nested exceptions."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(getattr(error, "strerror", None) or error or type(error).__name__).split(": ")[-1][:200]
