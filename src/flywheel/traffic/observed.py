"""Read the records that are new since the last time, and keep what `make monitor` needs of them.

One file holds it all and is replaced atomically: how far each file of records was read, and for each model the state
of its alarm, what it counted in bins of time, and which contents. A run that is killed before that changed nothing.

The bins grow with the time that they cover (1 s, 2 s, 4 s, …), so that there are at most `MAX_BINS`. Contents of hours
that have no records any more are dropped, so the memory needed is bounded by the records (`traffic.max_bytes`), and so
are bins older than the oldest records.
"""

from __future__ import annotations

import array
import contextlib
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel import files
from flywheel.metrics import alarm
from flywheel.params import StorePaths
from flywheel.traffic import records

log = logging.getLogger(__name__)

VERSION = 1
CONFIDENCE_BINS = 20
MAX_BINS = 200  # of all models
READ_BYTES = 4_000_000  # of a file at a time
HOUR_MS = 3_600_000
BLOCK = 100_000  # records that are counted at a time, sorted by their ids
MILLION = 1_000_000  # confidences are added as millionths, so that their order changes no sum
N, MISTAKES, CONFIDENCE, HISTOGRAM = 0, 1, 2, 3  # columns of a table of bins
CLASSES = HISTOGRAM + CONFIDENCE_BINS
SEEN = np.dtype(
    [("id", "S36"), ("ms", "i8"), ("hash", "u8"), ("mistake", "?"), ("confidence", "f8"), ("predicted", "i4")]
)

Prefixes = NDArray[np.uint64]  # the first eight bytes of content hashes


def confidence_bins(confidence: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the bin of each confidence."""
    return np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)


def mean_confidence(counts: Sequence[int]) -> float:
    """Return the mean confidence that a histogram in equal bins shows, to within half a bin."""
    return float(np.average((np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS, weights=counts))


@dataclass(frozen=True)
class Judge:
    """What the predictions of a model are judged by: `trained_on` are contents that do not count, sorted."""

    reference: alarm.Reference
    classes: int
    trained_on: Prefixes


@dataclass
class Observed:
    """The predictions of a model.

    `levels` is the state of its alarm's detector, `level` the evidence after the last prediction, `since_ms` when that
    reached the limit. Each content in `hashes` was counted first in the hour `hours`. `table` has a row for each bin.
    """

    predictions: int = 0
    repeated: int = 0
    trained_on: int = 0
    levels: tuple[float, ...] = alarm.START
    level: float = 0.0
    since_ms: int | None = None
    hashes: Prefixes = field(default_factory=lambda: np.zeros(0, np.uint64))
    hours: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # seconds since 1970
    peaks: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # of the level in each bin
    table: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def count(self, seen: NDArray[Any], judge: Judge, limit: float) -> NDArray[Any]:
        """Judge predictions in the order of time; return those that count with their levels."""
        trained = np.isin(seen["hash"], judge.trained_on)
        fresh = np.zeros(len(seen), bool)
        fresh[np.unique(seen["hash"], return_index=True)[1]] = True
        fresh &= ~np.isin(seen["hash"], self.hashes) & ~trained
        kept = seen[fresh]
        self.trained_on += int(trained.sum())
        self.repeated += len(seen) - len(kept) - int(trained.sum())
        self.predictions += len(kept)
        hashes = np.concatenate([self.hashes, kept["hash"]])
        hours = np.concatenate([self.hours, kept["ms"] // HOUR_MS])
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.hours = hashes[order], hours[order]
        if len(kept):
            levels, self.levels = alarm.levels(kept["mistake"], judge.reference.bound, self.levels)
            self.level = float(levels[-1])
            above = np.flatnonzero(levels >= limit)
            if self.since_ms is None and len(above):
                self.since_ms = int(kept["ms"][above[0]])
            self._add(kept, levels, judge.classes)
        return kept

    def restart(self) -> None:
        """Wait for the next alarm."""
        self.levels, self.level, self.since_ms = alarm.START, 0.0, None

    def bins(self, width_s: int) -> int:
        """Return how many bins of a width there would be."""
        return len(np.unique(self.starts // width_s))

    def merge(self, width_s: int) -> None:
        """Merge bins into those of a width."""
        self.starts, index = np.unique(self.starts // width_s * width_s, return_inverse=True)
        table, peaks = np.zeros((len(self.starts), self.table.shape[1]), np.int64), np.full(len(self.starts), -np.inf)
        np.add.at(table, index, self.table)
        np.maximum.at(peaks, index, self.peaks)
        self.table, self.peaks = table, peaks

    def keep_hours(self, hours: Sequence[int], width_s: int) -> None:
        """Drop contents of other hours than those that have records, and bins from before the oldest."""
        kept = np.isin(self.hours, hours)
        self.hashes, self.hours = self.hashes[kept], self.hours[kept]
        kept = self.starts + width_s > min(hours, default=2**40) * 3600
        self.starts, self.peaks, self.table = self.starts[kept], self.peaks[kept], self.table[kept]

    def _add(self, kept: NDArray[Any], levels: NDArray[np.float64], classes: int) -> None:
        """Add predictions to the bins, in seconds."""
        starts, index = np.unique(kept["ms"] // 1000, return_inverse=True)
        table = np.zeros((len(starts), CLASSES + classes), np.int64)
        np.add.at(table[:, N], index, 1)
        np.add.at(table[:, MISTAKES], index, kept["mistake"])
        np.add.at(table[:, CONFIDENCE], index, np.rint(kept["confidence"] * MILLION).astype(np.int64))
        np.add.at(table, (index, HISTOGRAM + confidence_bins(kept["confidence"])), 1)
        np.add.at(table, (index, CLASSES + kept["predicted"]), 1)
        peaks = np.full(len(starts), -np.inf)
        np.maximum.at(peaks, index, levels)
        self.table = np.concatenate([self.table.reshape(-1, table.shape[1]), table])
        self.starts, self.peaks = np.concatenate([self.starts, starts]), np.concatenate([self.peaks, peaks])


ARRAYS = ("hashes", "hours", "starts", "peaks", "table")


@dataclass
class State:
    """What is known: `offsets` by file of records, `models` by ref, predictions of models that have no judge."""

    offsets: dict[str, int] = field(default_factory=dict)
    width_s: int = 1
    models: dict[str, Observed] = field(default_factory=dict)
    unwatched: dict[str, int] = field(default_factory=dict)

    def update(self, paths: StorePaths, judge: Callable[[str], Judge | None], limit: float) -> None:
        """Count what is new. `judge` is called for each model that answered; the alarm is raised at `limit`."""
        by_hour = {
            int(at.timestamp()) // 3600: of_hour for at, of_hour in records.by_hour(paths.traffic_records).items()
        }
        self._forget_removed(by_hour)
        found: dict[str, list[NDArray[Any]]] = {}
        for hour, of_hour in by_hour.items():
            for path in of_hour:
                for lines, end in _new_lines(path, self.offsets.get(path.name, 0)):
                    for ref, seen in self._judged(lines, hour, judge):
                        found.setdefault(ref, []).append(seen)
                    self.offsets[path.name] = end
            if sum(len(seen) for parts in found.values() for seen in parts) >= BLOCK:
                self._count(found, judge, limit)
        self._count(found, judge, limit)

    def _judged(
        self, lines: list[bytes], hour: int, judge: Callable[[str], Judge | None]
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield for each model its predictions among lines of records of an hour; what is no record is skipped."""
        parsed: dict[str, list[tuple[bytes, int, int]]] = {}
        packed: dict[str, array.array[float]] = {}
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                row = json.loads(line)
                ref, made = str(row["model"]), row["prediction_id"].encode("ascii")
                ms, content = int(made[:8] + made[9:13], 16), int.from_bytes(bytes.fromhex(row["hash"][:16]))
                if ms // HOUR_MS != hour:
                    continue
                judged = judge(ref)
                if judged is None:
                    self.unwatched[ref] = self.unwatched.get(ref, 0) + 1
                    continue
                probabilities = array.array("d", row["probabilities"])
                if len(probabilities) == judged.classes:
                    parsed.setdefault(ref, []).append((made, ms, content))
                    packed.setdefault(ref, array.array("d")).extend(probabilities)
        for ref, about in parsed.items():
            judged = judge(ref)
            assert judged is not None
            table = np.frombuffer(packed[ref]).reshape(len(about), judged.classes)
            finite = np.isfinite(table).all(axis=1)
            seen = np.zeros(len(about), SEEN)
            seen["id"], seen["ms"], seen["hash"] = zip(*about, strict=True)
            seen["mistake"][finite] = judged.reference.mistakes(table[finite])
            seen["confidence"], seen["predicted"] = table.max(axis=1), table.argmax(axis=1)
            yield ref, seen[finite]

    def _count(self, found: dict[str, list[NDArray[Any]]], judge: Callable[[str], Judge | None], limit: float) -> None:
        """Count predictions, sorted by their ids, and empty `found`."""
        for ref, parts in found.items():
            seen, judged = np.concatenate(parts), judge(ref)
            assert judged is not None
            self.models.setdefault(ref, Observed()).count(seen[np.argsort(seen["id"], kind="stable")], judged, limit)
        while sum(observed.bins(self.width_s) for observed in self.models.values()) > MAX_BINS:
            self.width_s *= 2
        for observed in self.models.values():
            observed.merge(self.width_s)
        found.clear()

    def _forget_removed(self, by_hour: Mapping[int, Sequence[Path]]) -> None:
        """Drop what belongs to files of records that are gone."""
        names = {path.name for of_hour in by_hour.values() for path in of_hour}
        self.offsets = {name: offset for name, offset in self.offsets.items() if name in names}
        for observed in self.models.values():
            observed.keep_hours(list(by_hour), self.width_s)


def load(paths: StorePaths) -> State:
    """Return the state of the last run; without one, or with a damaged one, that of the first."""
    try:
        with np.load(paths.monitor_state, allow_pickle=False) as stored:
            known = json.loads(stored["state"].tobytes())
            if known.pop("version") == VERSION:
                models = {}
                for number, (ref, values) in enumerate(known.pop("models").items()):
                    arrays = {name: stored[f"{number}.{name}"] for name in ARRAYS}
                    models[ref] = Observed(**{**values, "levels": tuple(values["levels"])}, **arrays)
                return State(models=models, **known)
    except FileNotFoundError:
        return State()
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        log.info(f"monitor: {paths.monitor_state} cannot be read ({error}); counting all records again")
    return State()


def save(paths: StorePaths, state: State) -> None:
    """Write the state atomically."""
    arrays = {
        f"{number}.{name}": getattr(observed, name)
        for number, observed in enumerate(state.models.values())
        for name in ARRAYS
    }
    values = [one.name for one in fields(Observed) if one.name not in ARRAYS]
    models = {ref: {name: getattr(observed, name) for name in values} for ref, observed in state.models.items()}
    known = {
        "version": VERSION, "offsets": state.offsets, "width_s": state.width_s, "unwatched": state.unwatched,
        "models": models,
    }  # fmt: skip
    paths.traffic.mkdir(parents=True, exist_ok=True, mode=0o700)
    with files.atomic(paths.monitor_state) as temporary:
        np.savez(temporary, state=np.frombuffer(json.dumps(known).encode(), np.uint8), **arrays)


def _new_lines(path: Path, start: int) -> Iterator[tuple[list[bytes], int]]:
    """Yield the complete lines of a file from `start` on, some at a time, and where they end."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(start)
        while lines := file.readlines(READ_BYTES):
            complete = lines[-1].endswith(b"\n")
            if not complete:  # it is being written
                lines.pop()
            start += sum(map(len, lines))
            yield lines, start
            if not complete:
                return
