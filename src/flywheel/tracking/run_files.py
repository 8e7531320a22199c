"""Record each W&B run in a local file first, so that nothing is lost when an upload fails.

<store>/wandb/runs/<key>.jsonl: one event per line, only appended: start, online, log, summary, media, use, make,
finish, waited, confirmed. `make sync` uploads what these files hold and W&B does not.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from flywheel import files
from flywheel.params import StorePaths

STEP, TIME = "_step", "_timestamp"  # W&B's names of a row's step and time (seconds since 1970)
WEB = re.compile("https?://")


class MediaFile(NamedTuple):
    """A picture, table or confusion_matrix (`kind`) that a run shows under a name; `file` is its name in `media`."""

    kind: str
    name: str
    file: str


@dataclass(frozen=True)
class RunRecord:
    """A run as its file describes it.

    `key` is its id in W&B. `rows` have a TIME, and a STEP if one was given. `media` are the last of their names. `used`
    and `made` are refs. `finished` is how it ended: None while it runs, and if its process was killed. `waited_s` is
    how long the stage waited for W&B, None for a trial. `confirmed` are the W&B projects that were seen to hold all of
    it. `url` is its page, None if it never ran online.
    """

    key: str
    job_type: str
    name: str
    group: str
    config: Mapping[str, Any]
    started: str
    pid: int
    pid_started: float
    rows: tuple[Mapping[str, Any], ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    media: tuple[MediaFile, ...] = ()
    used: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    finished: str | None = None
    waited_s: float | None = None
    confirmed: tuple[str, ...] = ()
    url: str | None = None

    @property
    def running(self) -> bool:
        """Whether the process that writes it is alive."""
        import psutil

        if self.finished is not None:
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.pid_started) < 1
        except psutil.Error:
            return False


class RunFile:
    """The file of one run."""

    def __init__(self, store: Path, key: str):
        self.path = StorePaths(store).wandb_runs / f"{key}.jsonl"

    def start(self, job_type: str, name: str, group: str, config: Mapping[str, Any]) -> RunRecord:
        """Write the first event and return the record."""
        import psutil

        pid_started = psutil.Process().create_time()
        values = {"job_type": job_type, "name": name, "group": group, "config": plain(config)}
        self.append("start", **values, pid=os.getpid(), pid_started=pid_started)
        record = self.read()
        assert record is not None
        return record

    def append(self, event: str, **values: Any) -> None:
        """Add an event."""
        files.append_json_lines(self.path, {"event": event, "at": files.timestamp(), **values})

    def read(self) -> RunRecord | None:
        """Return the record, or None if not even its start was written."""
        events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in files.read_json_lines(self.path):
            events[line.get("event", "")].append(line)
        if not events["start"]:
            return None
        start, media = events["start"][0], events["media"]
        pages = events["online"] + events["folder"]  # folder: of earlier code
        return RunRecord(
            key=self.path.stem,
            **{name: start[name] for name in ("job_type", "name", "group", "config", "pid", "pid_started")},
            started=start["at"],
            rows=tuple(
                {**line["values"], TIME: datetime.fromisoformat(line["at"]).timestamp()} for line in events["log"]
            ),
            summary={key: value for line in events["summary"] for key, value in line["values"].items()},
            media=tuple({m["name"]: MediaFile(m["kind"], m["name"], m["file"]) for m in media}.values()),
            used=tuple(dict.fromkeys(line["ref"] for line in events["use"])),
            made=tuple(dict.fromkeys(line["ref"] for line in events["make"])),
            finished=next((line["how"] for line in events["finish"][::-1]), None),
            waited_s=next((line["seconds"] for line in events["waited"][::-1]), None),
            confirmed=tuple(line["where"] for line in events["confirmed"]),
            url=next((line["url"] for line in pages if WEB.match(str(line.get("url")))), None),
        )


def records(store: Path) -> Iterator[RunRecord]:
    """Yield the records of all runs of a store, oldest first."""
    found = (RunFile(store, path.stem).read() for path in sorted(StorePaths(store).wandb_runs.glob("*.jsonl")))
    yield from sorted((record for record in found if record), key=lambda record: record.started)


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: no NaN, tuples or numpy numbers."""
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")  # as W&B writes them
    return value if isinstance(value, str | int | float | bool | None) else str(value)
