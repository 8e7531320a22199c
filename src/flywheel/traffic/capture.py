"""Record what a replica answers, without ever slowing or failing a prediction.

Predictions go into a bounded queue; one thread writes them. If the queue is full, because the disk is slow or hangs, or
if the disk refuses, predictions are not recorded: they are counted, and the log says so once.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flywheel import files
from flywheel.params import StorePaths, Traffic
from flywheel.traffic import records, retention

log = logging.getLogger("flywheel.serving")

QUEUE_BYTES = 64_000_000
ANSWER_BYTES = 1_000  # of the memory that an answer needs besides its pixels
WRITE_EVERY_S = 0.05  # one write for many predictions, and few switches to the writer's thread
TIDY_EVERY_S = 600


@dataclass(frozen=True)
class Answered:
    """An image (s, s, 3) uint8 and its answer: the class and all probabilities, in the order of the classes."""

    prediction_id: str
    image: NDArray[np.uint8]
    group: str | None
    model: str
    prediction: str
    probabilities: Sequence[float]
    latency_s: float


@dataclass
class Counts:
    """What became of the predictions of this replica."""

    recorded: int = 0
    kept_images: int = 0
    dropped: int = 0


class Recorder:
    """Write the records and images of one replica."""

    def __init__(self, paths: StorePaths, options: Traffic, replica: str):
        self.counts = Counts()
        self._paths, self._options, self._replica = paths, options, replica
        self._queue: deque[Answered] = deque()
        self._wake, self._closed = threading.Event(), False
        self._failing = False
        self.kept: retention.Kept | None = None  # at the last look at the folder
        self._since_tidy_bytes = 0
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def add(self, answered: Answered) -> None:
        """Queue an answered image. Never waits: with a full queue the prediction is dropped and counted."""
        if len(self._queue) >= max(64, QUEUE_BYTES // (answered.image.nbytes + ANSWER_BYTES)):
            self.counts.dropped += 1
            self._say_failing("its disk is too slow")
            return
        self._queue.append(answered)
        if not self._wake.is_set():
            self._wake.set()

    @property
    def waiting(self) -> int:
        """The predictions in the queue."""
        return len(self._queue)

    def close(self, timeout_s: float = 5) -> None:
        """Write what is queued and end the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        tidy_at = 0.0
        while not (self._closed and not self._queue):
            self._wake.wait(TIDY_EVERY_S)
            if not self._closed:
                time.sleep(WRITE_EVERY_S)
            self._wake.clear()
            batch = [self._queue.popleft() for _ in range(len(self._queue))]
            try:
                self._write(batch)
            except Exception as error:  # the thread must live on, whatever the disk does
                self.counts.dropped += len(batch)
                self._say_failing(str(error))
            # Half a per cent of the limit between two looks at the folder.
            if time.monotonic() > tidy_at or self._since_tidy_bytes > self._options.max_bytes / 200:
                tidy_at, self._since_tidy_bytes = time.monotonic() + TIDY_EVERY_S, 0
                try:
                    self.kept = retention.tidy(self._paths, self._options)
                except Exception as error:
                    log.warning(f"traffic: cannot remove old records and images: {error}")

    def _write(self, batch: Sequence[Answered]) -> None:
        self._paths.traffic.mkdir(parents=True, exist_ok=True, mode=0o700)
        forgotten = retention.forgotten(self._paths)
        lines: dict[str, list[dict[str, Any]]] = {}
        for answered in batch:
            content = hashlib.sha256(answered.image.tobytes()).hexdigest()
            if content in forgotten:
                continue
            has_room = self.kept is None or self.kept.has_room
            if self._options.keep_images and has_room and is_kept(answered.prediction_id, self._options.keep_images):
                self._keep(content, answered.image)
            at = records.time_of(answered.prediction_id)
            lines.setdefault(f"{self._replica}-{at:{records.HOUR_FORMAT}}.jsonl", []).append(
                {
                    "prediction_id": answered.prediction_id,
                    "at": at.isoformat(timespec="milliseconds"),
                    "hash": content,
                    "group": answered.group,
                    "model": answered.model,
                    "prediction": answered.prediction,
                    "probabilities": list(answered.probabilities),
                    "latency_ms": round(answered.latency_s * 1000, 2),
                }
            )
        for name, rows in lines.items():
            self._since_tidy_bytes += files.append_json_lines(self._paths.traffic_records / name, *rows)
            self.counts.recorded += len(rows)
        if batch and self._failing:
            self._failing = False
            log.info(f"traffic: recording again; {self.counts.dropped:,} were lost since the start")

    def _keep(self, content: str, image: NDArray[np.uint8]) -> None:
        """Keep an image under its content hash; seen again, it counts as new."""
        path = records.image_path(self._paths, content)
        try:
            os.utime(path)
        except FileNotFoundError:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG", compress_level=1)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{content[:16]}-{self._replica}")
            temporary.write_bytes(buffer.getvalue())
            temporary.replace(path)
            self._since_tidy_bytes += buffer.tell()
            self.counts.kept_images += 1

    def _say_failing(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            log.error(f"traffic: predictions are not recorded: {reason}; they are answered as before")


def is_kept(prediction_id: str, fraction: float) -> bool:
    """Return whether the image of a prediction is kept, by the hash of its id."""
    return int.from_bytes(hashlib.sha256(prediction_id.encode()).digest()[:8]) < fraction * 2**64
