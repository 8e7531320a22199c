"""Checkpoints of trials: files with a checksum, in a directory or at a URI.

    <root>/<sweep_id>/<trial>/state        the state of `training.loop.Training`, and the results so far
    <root>/<sweep_id>/<trial>/weights-7    the weights of the best epoch so far, the 7th

Each file begins with the SHA-256 of the rest, so a truncated or damaged file reads as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel import files

DIGEST_BYTES = 32
STATE = "state"


@dataclass(frozen=True)
class CheckpointStore:
    """A directory (absolute path) or an fsspec URI (s3://bucket/path) that every node reaches."""

    uri: str

    def subfolder(self, name: str) -> CheckpointStore:
        """Return the store in a subfolder."""
        return CheckpointStore(f"{self.uri.rstrip('/')}/{name}")

    def write(self, name: str, payload: bytes) -> None:
        """Write a file atomically. Raises OSError."""
        data = hashlib.sha256(payload).digest() + payload
        if self.directory is not None:
            with files.atomic(self.directory / name) as temporary:
                temporary.write_bytes(data)
        else:
            filesystem, root = self._open()
            filesystem.makedirs(root, exist_ok=True)
            filesystem.pipe_file(f"{root}/{name}", data)  # object stores show a file only once it is complete

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it is missing or does not match its digest."""
        filesystem, root = self._open()
        try:
            data = filesystem.cat_file(f"{root}/{name}")
        except OSError:
            return None
        digest, payload = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        return payload if digest == hashlib.sha256(payload).digest() else None

    def names(self) -> list[str]:
        """Return the names of the files and subfolders."""
        filesystem, root = self._open()
        try:
            return sorted(path.rstrip("/").rpartition("/")[2] for path in filesystem.ls(root, detail=False))
        except OSError:
            return []

    def remove(self, name: str = "") -> None:
        """Remove a file or subfolder, or everything; a missing one is no error."""
        filesystem, root = self._open()
        with contextlib.suppress(OSError):
            filesystem.rm(f"{root}/{name}".rstrip("/"), recursive=True)

    def size_bytes(self) -> int:
        """Return the size of all files, 0 if some vanish meanwhile."""
        filesystem, root = self._open()
        try:
            return int(filesystem.du(root))
        except OSError:
            return 0

    @property
    def directory(self) -> Path | None:
        """The directory, or None for a URI."""
        return None if "://" in self.uri else Path(self.uri)

    def _open(self) -> tuple[Any, str]:
        import fsspec  # type: ignore[import-untyped]

        if self.directory is not None:
            return fsspec.filesystem("file"), self.uri
        filesystem, root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        return filesystem, str(root)


class Checkpoints:
    """The checkpoints of one trial."""

    def __init__(self, store: CheckpointStore, trial: str):
        self.store = store.subfolder(trial)

    def save_state(self, state: Mapping[str, Any], best_epoch: int) -> None:
        """Save the state of the trial, and which epoch has its best weights."""
        import torch

        buffer = io.BytesIO()
        torch.save({**state, "best_epoch": best_epoch}, buffer)
        self.store.write(STATE, buffer.getvalue())

    def load_state(self) -> dict[str, Any] | None:
        """Return the saved state, on the CPU; None if it or its best weights are missing or damaged."""
        import torch

        payload = self.store.read(STATE)
        if payload is None:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return state if self.store.read(weights_name(state["best_epoch"])) is not None else None

    def save_weights(self, epoch: int, contents: Mapping[str, bytes]) -> None:
        """Save the files of a classifier as the weights of an epoch."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        self.store.write(weights_name(epoch), buffer.getvalue())

    def unpack_weights(self, epoch: int, directory: Path) -> bool:
        """Write the files of an epoch's weights into a directory; return False if they are missing or damaged."""
        payload = self.store.read(weights_name(epoch))
        if payload is None:
            return False
        directory.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            archive.extractall(directory)
        return True

    def keep_weights(self, *epochs: int) -> None:
        """Remove the weights of all other epochs."""
        kept = {weights_name(epoch) for epoch in epochs}
        for name in self.store.names():
            if name.startswith("weights-") and name not in kept:
                self.store.remove(name)


def weights_name(epoch: int) -> str:
    """Return the file name of the weights of an epoch."""
    return f"weights-{epoch}"
