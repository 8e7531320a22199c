"""Prometheus metrics of a replica. GET /metrics returns the counts of the replica that answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flywheel.serving.replica import Replica
from flywheel.traffic.capture import Recorder
from flywheel.traffic.labels import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONFIDENCES = tuple(step / 10 for step in range(1, 11))
REPLICA = ("replica",)


class Metrics:
    """The metrics of one replica; every series has the label `replica`. `more` is a file with those of make monitor."""

    def __init__(self, name: str, more: Path):
        self._name, self._more = name, more
        self._series = functools.cache(lambda metric, *labels: metric.labels(name, *labels))  # a lookup costs 2 us
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "flywheel_requests_total", "Requests by path and status.", (*REPLICA, "path", "status"), registry=registry
        )
        self._latency = Histogram(
            "flywheel_request_seconds", "Duration of a prediction request.", REPLICA,
            registry=registry, buckets=LATENCY_S,
        )  # fmt: skip
        self._batch = Histogram(
            "flywheel_batch_size", "Images per batch.", REPLICA, registry=registry, buckets=BATCH_SIZES
        )
        self._predictions = Counter(
            "flywheel_predictions_total", "Predictions by class.", (*REPLICA, "label"), registry=registry
        )
        self._confidence = Histogram(
            "flywheel_confidence", "Probability of the predicted class.", REPLICA,
            registry=registry, buckets=CONFIDENCES,
        )  # fmt: skip
        self._queue = Gauge("flywheel_queue_images", "Images in the queue.", REPLICA, registry=registry)
        self._model = Gauge(
            "flywheel_model_info", "1 for the model that answers.", (*REPLICA, "model", "ref"), registry=registry
        )
        self._swaps = Gauge("flywheel_swaps", "Models loaded since the start.", REPLICA, registry=registry)
        self._failed_swaps = Gauge(
            "flywheel_failed_swaps", "Models in production that could not be loaded.", REPLICA, registry=registry
        )
        self._labels = Counter("flywheel_labels_total", "Labels by status.", (*REPLICA, "status"), registry=registry)
        self._traffic = Gauge(
            "flywheel_traffic", "Predictions recorded, dropped and waiting, and images kept, since the start.",
            (*REPLICA, "what"), registry=registry,
        )  # fmt: skip
        self._traffic_bytes = Gauge(
            "flywheel_traffic_bytes", "Size of all records and images at the last look.", REPLICA, registry=registry
        )
        self._traffic_oldest = Gauge(
            "flywheel_traffic_oldest_seconds", "Start of the oldest recorded hour, seconds since 1970.", REPLICA,
            registry=registry,
        )  # fmt: skip

    def count_request(self, path: str, status: int, seconds: float | None = None) -> None:
        """Count a request and, for predictions, the `seconds` it took."""
        self._series(self._requests, path, status).inc()
        if seconds is not None:
            self._series(self._latency).observe(seconds)

    def count_batch(self, size: int) -> None:
        """Record the size of a batch."""
        self._series(self._batch).observe(size)

    def count_prediction(self, label: str, confidence: float) -> None:
        """Count a prediction by class and confidence."""
        self._series(self._predictions, label).inc()
        self._series(self._confidence).observe(confidence)

    def count_labels(self, answers: Sequence[Answer]) -> None:
        """Count labels by what became of them."""
        for answer in answers:
            self._labels.labels(self._name, answer.status).inc()

    def text(self, replica: Replica, waiting: int, recorder: Recorder) -> bytes:
        """Return all metrics in Prometheus's text format."""
        counts = recorder.counts
        for what, count in (
            ("recorded", counts.recorded),
            ("dropped", counts.dropped),
            ("kept_images", counts.kept_images),
            ("waiting", recorder.waiting),
        ):
            self._traffic.labels(self._name, what).set(count)
        if recorder.kept is not None:
            self._traffic_bytes.labels(self._name).set(recorder.kept.size_bytes)
            if recorder.kept.oldest is not None:
                self._traffic_oldest.labels(self._name).set(recorder.kept.oldest.timestamp())
        self._queue.labels(self._name).set(waiting)
        self._swaps.labels(self._name).set(replica.swaps)
        self._failed_swaps.labels(self._name).set(replica.failed_swaps)
        self._model.clear()
        self._model.labels(self._name, replica.model.version.label, replica.model.version.ref).set(1)
        more = self._more.read_bytes() if self._more.exists() else b""
        return generate_latest(self._registry) + more
