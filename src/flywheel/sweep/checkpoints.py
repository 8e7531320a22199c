"""Where trials keep their weights and where they stand: files with a seal, in a directory or at a URI.

    <place>/<sweep_id>/<trial>/state        where a trial stands: what `training.Training.state` gives, and its results
    <place>/<sweep_id>/<trial>/weights-7    the weights of its best epoch so far, the 7th

Each file begins with the SHA-256 of the rest, so one that is cut off or damaged reads as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel import files

SEAL_BYTES = 32


@dataclass(frozen=True)
class Place:
    """A directory (absolute path) or a URI that fsspec knows (s3://bucket/path), which every node reaches."""

    uri: str

    def below(self, name: str) -> Place:
        """Return the place of a name inside this one."""
        return Place(f"{self.uri.rstrip('/')}/{name}")

    def write(self, name: str, payload: bytes) -> None:
        """Write a sealed file atomically. Raises OSError."""
        data = hashlib.sha256(payload).digest() + payload
        if self._directory is not None:
            with files.atomic(self._directory / name) as temporary:
                temporary.write_bytes(data)
            return
        filesystem, root = self._remote()
        filesystem.makedirs(root, exist_ok=True)
        filesystem.pipe_file(f"{root}/{name}", data)  # object stores show a file only when it is whole

    def read(self, name: str) -> bytes | None:
        """Return what a file holds, or None where there is none or its seal does not fit."""
        try:
            if self._directory is not None:
                data = (self._directory / name).read_bytes()
            else:
                filesystem, root = self._remote()
                data = filesystem.cat_file(f"{root}/{name}")
        except OSError:
            return None
        seal, payload = data[:SEAL_BYTES], data[SEAL_BYTES:]
        return payload if seal == hashlib.sha256(payload).digest() else None

    def names(self) -> list[str]:
        """Return the names of the files and folders in this place."""
        try:
            if self._directory is not None:
                return sorted(path.name for path in self._directory.iterdir())
            filesystem, root = self._remote()
            return sorted(path.rstrip("/").rpartition("/")[2] for path in filesystem.ls(root, detail=False))
        except OSError:
            return []

    def remove(self, name: str = "") -> None:
        """Remove a file or folder, or the whole place; what is not there is no error."""
        if self._directory is not None:
            path = self._directory / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            return
        filesystem, root = self._remote()
        with contextlib.suppress(OSError):
            filesystem.rm(f"{root}/{name}".rstrip("/"), recursive=True)

    def size(self) -> int:
        """Return the bytes of all files in this place."""
        if self._directory is not None:
            return files.size_of(self._directory)
        filesystem, root = self._remote()
        try:
            return int(filesystem.du(root))
        except OSError:
            return 0

    @property
    def _directory(self) -> Path | None:
        return None if "://" in self.uri else Path(self.uri)

    def _remote(self) -> tuple[Any, str]:
        import fsspec  # type: ignore[import-untyped]

        filesystem, root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        return filesystem, str(root)


class Checkpoints:
    """The files of one trial."""

    def __init__(self, place: Place, trial: str):
        self.place = place.below(trial)

    def save_state(self, state: Mapping[str, Any], best_epoch: int) -> None:
        """Write where the trial stands, and of which epoch its best weights are."""
        import torch

        buffer = io.BytesIO()
        torch.save({**state, "best_epoch": best_epoch}, buffer)
        self.place.write("state", buffer.getvalue())

    def tidy(self, *best_epochs: int) -> None:
        """Remove the weights of all epochs but these."""
        kept = {weights_name(epoch) for epoch in best_epochs}
        for name in self.place.names():
            if name.startswith("weights-") and name not in kept:
                self.place.remove(name)

    def load_state(self) -> dict[str, Any] | None:
        """Return what `save_state` wrote, on the CPU; None where it is missing or damaged, or its weights are."""
        import torch

        payload = self.place.read("state")
        if payload is None:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return state if self.place.read(weights_name(state["best_epoch"])) is not None else None

    def save_weights(self, epoch: int, contents: Mapping[str, bytes]) -> None:
        """Keep the files of a saved classifier as the weights of an epoch."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        self.place.write(weights_name(epoch), buffer.getvalue())

    def unpack_weights(self, epoch: int, directory: Path) -> bool:
        """Write the files of an epoch's weights into a directory; False where they are missing or damaged."""
        payload = self.place.read(weights_name(epoch))
        if payload is None:
            return False
        directory.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            archive.extractall(directory)
        return True

    def drop_state(self) -> None:
        """Remove where the trial stood: it ended."""
        self.place.remove("state")

    def drop(self) -> None:
        """Remove all files of the trial."""
        self.place.remove()


def weights_name(epoch: int) -> str:
    """Return the file name of the weights of an epoch."""
    return f"weights-{epoch}"
