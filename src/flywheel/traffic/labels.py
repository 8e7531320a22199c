"""Labels of answered images: who says what an image shows. People and applications give them, at any time.

labels/<writer>-<hour>.jsonl   {prediction_id, label, labeller, sequence, at, verdict}

Each process that takes labels writes files of its own, in the hour of the prediction. The latest label of a labeller
counts: the one with the highest sequence number, which is one more than the highest that the writer knew for that
prediction. Clocks decide nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from flywheel import files
from flywheel.params import StorePaths
from flywheel.traffic import records

PENDING_S = 60  # a label may come before its prediction is on disk
MAX_PENDING = 10_000
MAX_CACHED_IDS = 500_000  # about 60 MB
MAX_LABELLER = 100  # characters
DEFAULT_LABELLER = "api"
KEYS = ("prediction_id", "label", "labeller", "verdict")
NOT_OURS = "not_ours"
UNCONFIRMED = "unconfirmed"
UNDECIDED = ("not_sure", UNCONFIRMED)
VERDICTS = (*UNDECIDED, NOT_OURS)
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")  # JSON can spell half of a pair; UTF-8 cannot hold it
PAGE = re.compile(r"page(\d+)-")  # writers that are pages of make label, with the number of the sample
WRITTEN = ("prediction_id", "label", "labeller", "sequence", "at", "verdict")

Status = Literal["accepted", "duplicate", "replaced", "conflict", "pending", "unknown", "expired", "invalid"]
STORED: tuple[Status, ...] = ("accepted", "replaced", "conflict", "pending")


@dataclass(frozen=True, order=True)
class Label:
    """What a labeller says about a prediction; ordered by what counts. `label` None takes a label back.

    `verdict` tells why a person gave no label: not_sure, or not_ours (the image belongs to no class). A label
    that is `unconfirmed` counts nowhere until it is given again (label.second_above). `sample` is the number of the
    sample for which the labeller first labelled the image on the page of `make label`, if at all.
    """

    sequence: int
    writer: str
    prediction_id: str
    label: str | None
    labeller: str
    at: str
    verdict: str = ""
    sample: float = field(default=math.inf, compare=False)

    @property
    def said(self) -> str:
        """The verdict, otherwise the label, or "" if it was taken back."""
        return self.verdict or self.label or ""

    @property
    def counts(self) -> bool:
        """Whether it is a label, and no verdict makes it count nowhere."""
        return self.label is not None and not self.verdict


@dataclass(frozen=True)
class Answer:
    """What became of a row."""

    prediction_id: str | None
    status: Status
    reason: str = ""


ByLabeller = dict[str, Label]


def fold(known: dict[str, ByLabeller], label: Label) -> None:
    """Add a label to those of its prediction; the order and repetitions do not matter."""
    of_prediction = known.setdefault(label.prediction_id, {})
    before = of_prediction.get(label.labeller, label)
    first = min(label.sample, before.sample)
    of_prediction[label.labeller] = replace(max(label, before), sample=first)


def parse(row: Mapping[str, Any], writer: str) -> Label:
    """Return a line of a label file. Raises KeyError or TypeError for what is none."""
    return Label(
        int(row["sequence"]), writer, row["prediction_id"], row["label"], str(row["labeller"]), str(row["at"]),
        str(row.get("verdict", "")), _sample_of(writer),
    )  # fmt: skip


def read(paths: StorePaths) -> Iterator[tuple[datetime, dict[str, ByLabeller]]]:
    """Yield (hour, {prediction_id: {labeller: label}}) for every hour with labels, the oldest first."""
    for hour, of_labels in records.by_hour(paths.traffic_labels).items():
        known: dict[str, ByLabeller] = {}
        for path in of_labels:
            for row in records.read_file(path):
                fold(known, parse(row, path.stem))
        yield hour, known


def current(of_prediction: Mapping[str, Label]) -> tuple[str, ...]:
    """Return the distinct labels that hold for a prediction, sorted: none, one, or several that are in dispute."""
    return tuple(sorted({label.said for label in of_prediction.values() if label.counts}))


@dataclass
class LabelledImage:
    """What is known of an image that has or had a label: one or several predictions of the same content."""

    hash: str
    first: Mapping[str, Any]  # the record with the lowest id
    given: list[Label] = field(default_factory=list)  # those that count, of all labellers

    @property
    def labels(self) -> set[str]:
        """The distinct labels: one, or several that are in dispute."""
        return {label.said for label in self.given}


def join(paths: StorePaths) -> tuple[dict[str, LabelledImage], int]:
    """Return the images that have or had a label, by content hash, and the number of labels without a record."""
    found: dict[str, LabelledImage] = {}
    unknown, of_records = 0, records.by_hour(paths.traffic_records)
    for hour, by_prediction in read(paths):
        missing = set(by_prediction)
        for path in of_records.get(hour, ()):
            for row in records.read_file(path, missing):
                made = row["prediction_id"]
                missing.discard(made)
                image = found.setdefault(row["hash"], LabelledImage(row["hash"], row))
                image.first = min(image.first, row, key=lambda each: str(each["prediction_id"]))
                image.given += [label for label in by_prediction[made].values() if label.counts]
        unknown += len(missing)
    return found, unknown


@dataclass
class _Hour:
    """What is known of an hour: ids of predictions, labels, and how far each file was read."""

    ids: set[str] = field(default_factory=set)
    labels: dict[str, ByLabeller] = field(default_factory=dict)
    offsets: dict[Path, int] = field(default_factory=dict)


class LabelLog:
    """Take labels: check each row, write the good ones, answer each. For one thread."""

    def __init__(self, paths: StorePaths, writer: str, class_names: Callable[[], Sequence[str]], max_age_days: float):
        self._paths, self._writer, self._class_names = paths, writer, class_names
        self._max_age = timedelta(days=max_age_days)
        self._hours: OrderedDict[str, _Hour] = OrderedDict()
        self._pending: deque[float] = deque()

    def add(self, rows: Sequence[object]) -> list[Answer]:
        """Take rows {prediction_id, label, labeller?, verdict?}. What is stored is on disk when this returns.

        Raises OSError when the disk refuses; the rows may be sent again.
        """
        try:
            return self._take(rows)
        except BaseException:
            self._hours.clear()  # what was not written is not known
            raise

    def known(self, prediction_id: str) -> ByLabeller:
        """Return what labellers said on the page about a prediction and did not take back. Raises ValueError."""
        given = self._look_at(records.hour_of(prediction_id)).labels.get(prediction_id, {})
        return {name: label for name, label in given.items() if label.sample < math.inf and label.said}

    def _take(self, rows: Sequence[object]) -> list[Answer]:
        answers: list[Answer] = []
        stored: dict[str, list[Label]] = {}
        hours: dict[str, _Hour] = {}
        names = frozenset(self._class_names())
        for row in rows:
            try:
                given = _checked(row, names)
            except (ValueError, RecursionError) as error:
                shown = row.get("prediction_id") if isinstance(row, dict) else None
                shown = shown if isinstance(shown, str) and not LONE_SURROGATE.search(shown) else None
                answers.append(Answer(shown, "invalid", str(error)))
                continue
            name = records.hour_of(given.prediction_id)
            hour = hours.get(name) or hours.setdefault(name, self._look_at(name))
            status, reason = self._judge(hour, given)
            answers.append(Answer(given.prediction_id, status, reason))
            if status in STORED:
                known = hour.labels.get(given.prediction_id, {}).values()
                highest = max((label.sequence for label in known), default=0)
                writer = f"{self._writer}-{name}"
                given = replace(given, sequence=highest + 1, writer=writer, sample=_sample_of(writer))
                fold(hour.labels, given)
                stored.setdefault(name, []).append(given)
        self._paths.traffic.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, labels in stored.items():
            path = self._paths.traffic_labels / f"{self._writer}-{name}.jsonl"
            files.append_json_lines(path, *({key: getattr(label, key) for key in WRITTEN} for label in labels))
        return answers

    def _judge(self, hour: _Hour, given: Label) -> tuple[Status, str]:
        age = datetime.now(UTC) - records.time_of(given.prediction_id)
        if age > self._max_age:
            return "expired", f"older than traffic.max_age_days={self._max_age.total_seconds() / 86400:g}"
        known = hour.labels.get(given.prediction_id, {})
        before = known.get(given.labeller)
        if before is not None and (before.label, before.verdict) == (given.label, given.verdict):
            return "duplicate", ""
        if given.prediction_id not in hour.ids:
            if age.total_seconds() > PENDING_S:
                return "unknown", "no prediction with this id is recorded"
            while self._pending and self._pending[0] < time.monotonic() - PENDING_S:
                self._pending.popleft()
            if len(self._pending) >= MAX_PENDING:
                return "unknown", f"{MAX_PENDING:,} labels wait for their predictions; send it again in a minute"
            self._pending.append(time.monotonic())
            return "pending", "the prediction is not on disk yet; the label is"
        if before is None and not given.said:
            return "duplicate", f"{given.labeller} gave no label that could be taken back"
        others = set(current({name: label for name, label in known.items() if name != given.labeller}))
        if given.counts and (others := others - {given.said}):
            return "conflict", f"another labeller says {', '.join(sorted(others))}"
        return ("accepted" if before is None else "replaced"), ""

    def _look_at(self, hour: str) -> _Hour:
        """Return an hour after reading what was added to its files."""
        known = self._hours.setdefault(hour, _Hour())
        self._hours.move_to_end(hour)
        for path in self._paths.traffic_records.glob(f"*-{hour}.jsonl"):
            for line in self._added(known, path):
                known.ids.add(records.line_id(line))
        for path in self._paths.traffic_labels.glob(f"*-{hour}.jsonl"):
            for line in self._added(known, path):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    fold(known.labels, parse(json.loads(line), path.stem))
        while len(self._hours) > 1 and sum(len(each.ids) for each in self._hours.values()) > MAX_CACHED_IDS:
            self._hours.popitem(last=False)
        return known

    def _added(self, hour: _Hour, path: Path) -> list[bytes]:
        """Return the lines of a file that were added since the last call; a line that is being written comes later."""
        start = hour.offsets.get(path, 0)
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(start)
            added = file.read()
            end = added.rfind(b"\n") + 1
            hour.offsets[path] = start + end
            return added[:end].splitlines()
        return []


def _sample_of(writer: str) -> float:
    found = PAGE.match(writer)
    return int(found[1]) if found else math.inf


def _checked(row: object, class_names: frozenset[str]) -> Label:
    """Return the label that a row gives. Raises ValueError that says what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("not an object with prediction_id and label")
    if unknown := set(row) - set(KEYS):
        raise ValueError(f"unknown key {min(unknown, key=str)!r:.50}; there are {', '.join(KEYS)}")
    if missing := {"prediction_id", "label"} - set(row):
        raise ValueError(f"{min(missing)} is missing")
    records.time_of(row["prediction_id"])
    label, labeller, verdict = row["label"], row.get("labeller", DEFAULT_LABELLER), row.get("verdict", "")
    if label is not None and (not isinstance(label, str) or label not in class_names):
        raise ValueError(f"{label!r:.50} is not a class of the model; GET /model lists them")
    named = isinstance(labeller, str) and labeller.strip() and not LONE_SURROGATE.search(labeller)
    if not named or len(labeller) > MAX_LABELLER:
        raise ValueError(f"labeller must be a name of at most {MAX_LABELLER} characters")
    if verdict not in ("", *VERDICTS) or (verdict and (label is None) == (verdict == UNCONFIRMED)):
        raise ValueError("verdict must be not_sure or not_ours, with label null")
    return Label(0, "", row["prediction_id"], label, labeller, files.timestamp(), verdict)
