"""What a W&B run holds, in a file of our own first: whatever becomes of W&B, this is what it should have.

<store>/wandb/runs/<key>.jsonl, a line an event, only ever appended to: start, folder, log, summary, media, use, make,
finish, waited, confirmed. `make sync` uploads what is here and not there.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from flywheel import files
from flywheel.params import StorePaths

STEP = "_step"  # W&B's name of a row's step, where it was given
WEB = re.compile("https?://")


class Medium(NamedTuple):
    """What a run shows under a name (registry.media): kind is picture, table or confusion_matrix, file its name."""

    kind: str
    name: str
    file: str


@dataclass(frozen=True)
class Record:
    """A run as its file tells it.

    `key` is its id in W&B. `folders` are where W&B recorded it, relative to its folder in the store. `media` are the
    last of their names. `finished` is
    None while it runs, and for ever when its process was killed. `waited_s`: what W&B cost the stage, None for a trial.
    `confirmed`: where W&B was seen to have all of it.
    """

    key: str
    job_type: str
    name: str
    group: str
    config: Mapping[str, Any]
    started: str
    pid: int
    pid_started: float
    folders: tuple[str, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    media: tuple[Medium, ...] = ()
    used: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    finished: str | None = None
    waited_s: float | None = None
    confirmed: tuple[str, ...] = ()
    url: str | None = None

    @property
    def running(self) -> bool:
        """Whether the process that writes it lives."""
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

    def start(self, job_type: str, name: str, group: str, config: Mapping[str, Any]) -> None:
        """Begin."""
        import psutil

        self.append(
            "start",
            job_type=job_type, name=name, group=group, config=plain(config), pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
        )  # fmt: skip

    def append(self, event: str, **values: Any) -> None:
        """Add an event."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        files.append_json_lines(self.path, {"event": event, "at": at, **values})

    def read(self) -> Record | None:
        """Return the run, or None when not even its start was written."""
        lines = files.read_json_lines(self.path)
        begun = next((line for line in lines if line.get("event") == "start"), None)
        if begun is None:
            return None
        of = {kind: [line for line in lines if line.get("event") == kind] for kind in KINDS}
        summary: dict[str, Any] = {}
        for line in of["summary"]:
            summary |= line["values"]
        return Record(
            self.path.stem, begun["job_type"], begun["name"], begun["group"], begun["config"], begun["at"],
            begun["pid"], begun["pid_started"],
            tuple(dict.fromkeys(line["path"] for line in of["folder"])),
            tuple(line["values"] for line in of["log"]), summary,
            tuple({line["name"]: Medium(line["kind"], line["name"], line["file"]) for line in of["media"]}.values()),
            tuple(dict.fromkeys(line["ref"] for line in of["use"])),
            tuple(dict.fromkeys(line["ref"] for line in of["make"])),
            of["finish"][-1]["how"] if of["finish"] else None,
            of["waited"][-1]["seconds"] if of["waited"] else None,
            tuple(line["where"] for line in of["confirmed"]),
            next((line["url"] for line in of["folder"] if WEB.match(str(line.get("url")))), None),
        )  # fmt: skip


KINDS = ("folder", "log", "summary", "media", "use", "make", "finish", "waited", "confirmed")


def records(store: Path) -> Iterator[Record]:
    """Yield all runs of a store, oldest first."""
    found = (RunFile(store, path.stem).read() for path in sorted(StorePaths(store).wandb_runs.glob("*.jsonl")))
    yield from sorted((record for record in found if record), key=lambda record: record.started)


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: no NaN, no tuples, no numbers of numpy."""
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")  # as W&B writes them
    return value if isinstance(value, str | int | float | bool | None) else str(value)
