"""Ask the nodes of a cluster, and give each of them one copy of the training images.

Trials on the driver's node map the file in its store. Every other node copies that file to its local disk when its
first trial starts, in chunks that tasks on the driver's node read. The driver removes the copies at the end of the
sweep; what a killed driver or a lost node left, the next sweep's preflight removes (`remove_unused`).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from flywheel import files
from flywheel.data import dataset
from flywheel.data.images import Pixels
from flywheel.machine import threads

if TYPE_CHECKING:
    from flywheel.training.loop import TrainingData

CHUNK_BYTES = 16 << 20
REMOVE_TIMEOUT_S = 20  # a busy node may take more than five seconds to start the worker for it
IMAGES = "images.npy"


def alive() -> dict[str, Mapping[str, Any]]:
    """Return node id -> Ray's description, of the connected cluster's nodes that are alive."""
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


def here() -> str:
    """Return the id of the node that this process runs on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def ask(work: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], timeout_s: float) -> dict[str, Any]:
    """Run work(*arguments[node]) on each node, all at once. Returns results, errors, or None (no answer in time)."""
    import ray

    remote = ray.remote(num_cpus=0, max_retries=0)(work)
    asked = {node: remote.options(scheduling_strategy=_on(node)).remote(*given) for node, given in arguments.items()}
    waiting = list(asked.values())
    ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=timeout_s) if waiting else ([], [])
    answers: dict[str, Any] = {}
    for node, reference in asked.items():
        if reference not in ready:
            answers[node] = None
            ray.cancel(reference, force=True)
            continue
        try:
            answers[node] = ray.get(reference)
        except ray.exceptions.RayError as error:
            answers[node] = error
    return answers


class NodeData:
    """The training data of a sweep, which each trial opens on its node. Pickled, it holds no image."""

    def __init__(self, folder: Path, sweep_id: str):
        """`folder` holds the data set on the driver's node, where this is called."""
        opened = dataset.open_directory(folder.resolve())
        self._path, self._shape = folder.resolve() / IMAGES, opened.images.shape
        self._rest = replace(opened, images=np.empty((0, *self._shape[1:]), np.uint8), hashes=np.empty(0, np.uint8))
        self._home, self._sweep_id = here(), sweep_id

    @classmethod
    @contextlib.contextmanager
    def shared(cls, folder: Path, sweep_id: str) -> Iterator[NodeData]:
        """Return the data for the duration of the block, and remove the copies at its end."""
        data = cls(folder, sweep_id)
        try:
            yield data
        finally:
            ask(_remove, {node: (sweep_id,) for node in alive() if node != data._home}, REMOVE_TIMEOUT_S)

    def open(self) -> TrainingData:
        """Return the data; on a node without a copy, make one first. Raises DataError when its disk is full."""
        from flywheel.training.loop import TrainingData

        images = np.load(self._path if here() == self._home else self._copy(), mmap_mode="r", allow_pickle=False)
        return TrainingData.of(replace(self._rest, images=images))

    def _copy(self) -> Path:
        """Return this node's copy of the images."""
        path = _folder(self._sweep_id) / IMAGES
        _root().mkdir(mode=0o700, exist_ok=True)
        with files.lock(_root() / "copies.lock", wait=True):
            if not path.exists():
                with files.atomic(path) as temporary:
                    self._write(dataset.allocate(self._shape, temporary))
            _hold(path)
        return path

    def _write(self, copy: Pixels) -> None:
        import ray

        read = ray.remote(num_cpus=0)(_read).options(scheduling_strategy=_on(self._home))
        rows = max(1, CHUNK_BYTES // copy.strides[0])
        chunks = (slice(start, start + rows) for start in range(0, len(copy), rows))
        pending = ((chunk, read.remote(self._path, chunk)) for chunk in chunks)
        for chunk, images in threads.ordered(lambda one: (one[0], ray.get(one[1])), pending, 1, 1):
            copy[chunk] = images


def remove_unused() -> None:
    """Remove this machine's copies that no live process has opened."""
    if not _root().is_dir():
        return
    with contextlib.suppress(files.Locked), files.lock(_root() / "copies.lock"):
        for folder in filter(Path.is_dir, _root().iterdir()):
            with contextlib.suppress(BlockingIOError):
                if (folder / IMAGES).exists():
                    _lock_file(folder / IMAGES, fcntl.LOCK_EX | fcntl.LOCK_NB).close()
                shutil.rmtree(folder, ignore_errors=True)


def free_bytes() -> int:
    """Return the free bytes of the disk that holds this machine's copies."""
    return shutil.disk_usage(_root().parent).free


def _root() -> Path:
    return Path(tempfile.gettempdir()) / f"flywheel-{os.getuid()}-images"


def _folder(sweep_id: str) -> Path:
    return _root() / f"{sweep_id}-{here()}"


@functools.cache
def _hold(path: Path) -> BinaryIO:
    """Mark a copy as used for as long as this process lives."""
    return _lock_file(path, fcntl.LOCK_SH)


def _lock_file(path: Path, kind: int) -> BinaryIO:
    file = path.open("rb")
    fcntl.flock(file, kind)
    return file


def _remove(sweep_id: str) -> None:
    shutil.rmtree(_folder(sweep_id), ignore_errors=True)


def _read(path: Path, rows: slice) -> Pixels:
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[rows])


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)
