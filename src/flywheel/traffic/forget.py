"""The command `forget`: remove an image of production traffic, and see to it that nothing trains on it again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flywheel import files
from flywheel.params import Params, StorePaths
from flywheel.registry import Registry, Version
from flywheel.traffic import TrafficError, feedback, records

UNREACHED = "W&B is offline, so if they were uploaded, delete them there"


@dataclass(frozen=True)
class Forgotten:
    """What `forget` removed, and by description the versions that still hold the images or were trained on them."""

    hashes: tuple[str, ...]
    records: int
    holders: Mapping[str, tuple[Version, ...]]


def run(params: Params, registry: Registry, ids: Sequence[str], *, everywhere: bool = False) -> Forgotten:
    """Remove images by prediction_id or content hash (hex), and publish feedback that does not list them.

    With `everywhere`, also delete the versions of the feedback that list them, on W&B and here. Raises TrafficError for
    an unknown id, RegistryError when W&B refuses, and files.Locked while feedback is being published.
    """
    paths = params.store_paths
    with files.lock(paths.lock("collect")):
        noted = [{"hash": _content(paths, one), "id": one, "at": files.timestamp()} for one in ids]
        files.append_json_lines(paths.forgotten, *noted)
        hashes = {row["hash"] for row in noted}
        for content in hashes:
            records.image_path(paths, content).unlink(missing_ok=True)
        removed = sum(_blank(path, hashes) for path in paths.traffic_records.glob("*.jsonl"))
        holding = tuple(
            version
            for version in registry.versions(params.feedback_name)
            if any(example.hash in hashes for example in feedback.read(registry, version))
        )
        refs = {version.ref for version in holding}
        models = tuple(
            version
            for name in registry.collections()
            for version in registry.versions(name)
            if version.type == "model" and refs & set(version.inputs.get("feedback", ()))
        )
        unreached: tuple[Version, ...] = ()
        if holding:
            newest, _ = feedback.publish(params, registry, (), {}, {"stage": "forget"}, withdrawn=hashes)
            kept = set(newest.inputs.get("pixels", ())) if newest else set()
            if everywhere:
                pixels = {ref for version in holding for ref in version.inputs.get("pixels", ()) if registry.has(ref)}
                holding += tuple(map(registry.resolve, sorted(pixels - kept)))
                if registry.upstream is not None:
                    unreached = tuple(version for version in holding if not registry.upstream.delete(version))
                registry.remove(holding)
    done = "deleted" if everywhere else "feedback that still lists them (ARGS=--everywhere deletes it)"
    holders = {done: holding, "models trained on such feedback": models}
    return Forgotten(tuple(sorted(hashes)), removed, holders | {UNREACHED: unreached})


def _content(paths: StorePaths, one: str) -> str:
    """Return the content hash that an id names, also of an image that is forgotten already: it may be elsewhere."""
    for row in files.read_json_lines(paths.forgotten):
        if one in (row["hash"], row.get("id")):
            return str(row["hash"])
    try:
        hour = records.hour_of(one)
    except ValueError:
        if len(one) == 64 and set(one) <= set("0123456789abcdef"):
            return one
        raise TrafficError(
            f"{one!r:.80} is neither a prediction_id nor a content hash; name one: make forget ID=…"
        ) from None
    for path in paths.traffic_records.glob(f"*-{hour}.jsonl"):
        for row in records.read_file(path, {one}):
            return str(row["hash"])
    raise TrafficError(f"no prediction {one} is recorded; it may be older than traffic.max_age_days")


def _blank(path: Path, hashes: Collection[str]) -> int:
    """Overwrite the records of images with spaces, in place: a replica may append to the file meanwhile."""
    blanked, position = 0, 0
    with contextlib.suppress(FileNotFoundError), path.open("r+b", buffering=0) as file:
        for line in file.read().splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and row.get("hash") in hashes:
                    os.pwrite(file.fileno(), b" " * (len(line) - 1) + b"\n", position)
                    blanked += 1
            position += len(line)
        os.fsync(file.fileno())
    return blanked
