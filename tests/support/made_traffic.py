"""Answered images, as a replica records them."""

from __future__ import annotations

import hashlib
import itertools
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from flywheel import files
from flywheel.params import StorePaths, Traffic
from flywheel.traffic import records
from flywheel.traffic.capture import Answered, Recorder

CLASSES = ("cat", "dog", "fox")
OPTIONS = Traffic(keep_images=1.0, max_bytes=10**9, max_age_days=30.0, min_free_fraction=0.0, share=False)


def answered(seed: int = 0, *, group: str | None = None, size: int = 8, confidence: float = 0.7) -> Answered:
    """Return an answered image with random pixels."""
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Answered(records.new_id(), image, group, "model-1@sha256:00", "cat", [confidence, 0.2, 0.1], 0.0021)


def content(image: NDArray[np.uint8]) -> str:
    """Return the content hash of an image."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def record_all(paths: StorePaths, answers: Iterable[Answered], options: Traffic = OPTIONS) -> None:
    """Record answers and their images, as a replica does."""
    recorder = Recorder(paths, options, "r")
    for one in answers:
        recorder.add(one)
    recorder.close(60)


def id_of_age(seconds: float) -> str:
    """Return a prediction_id that was made some seconds ago."""
    shifted = (time.time_ns() - int(seconds * 1e9)) // 1_000_000
    text = f"{shifted:012x}"
    return f"{text[:8]}-{text[8:]}{records.new_id()[13:]}"


def record(
    model: str, probabilities: Sequence[float], at: datetime, content: str, number: int = 0
) -> dict[str, object]:
    """Return a record as a replica writes it; equal arguments give the same one."""
    value = int(at.timestamp() * 1000) << 80 | 0x7 << 76 | 0b10 << 62 | number
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    return {
        "prediction_id": str(uuid.UUID(int=value)), "at": at.isoformat(timespec="milliseconds"), "hash": content,
        "group": None, "model": model, "prediction": str(best), "probabilities": list(probabilities), "latency_ms": 2.1,
    }  # fmt: skip


def write_records(paths: StorePaths, rows: Iterable[Mapping[str, object]], replica: str = "r1") -> None:
    """Append records to the files of a replica."""
    for hour, of_hour in itertools.groupby(rows, lambda row: records.hour_of(str(row["prediction_id"]))):
        files.append_json_lines(paths.traffic_records / f"{replica}-{hour}.jsonl", *of_hour)
