"""A node's copy of the images: real Ray tasks read the chunks, and this process acts as a trial on another node."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

import flywheel.training.loop  # noqa: F401 (imports torch, which takes memory)
from flywheel.data import dataset
from flywheel.data.dataset import Dataset
from flywheel.machine import ray_address
from flywheel.sweep import SweepError, nodes, preflight
from flywheel.sweep.checkpoints import CheckpointStore

COUNT = 600  # images of 300 kB: 184 MB, which no test writes but as zeros in a sparse file


@pytest.fixture(scope="module")
def _connected() -> Iterator[None]:
    with ray_address.connect(None, num_cpus=1):
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with few images that are not zero."""
    images = dataset.allocate((COUNT, 320, 320, 3), tmp_path / "images.npy")
    images[::100] = np.random.default_rng(0).integers(0, 255, (6, 320, 320, 3))
    numbers, described = np.arange(COUNT), {"class_names": ["a", "b"], "mean": [0.4] * 3, "std": [0.2] * 3}
    indices = {name: numbers[start::8] for start, name in enumerate(dataset.INDICES)}
    dataset.save(Dataset(images, numbers % 2, np.zeros((COUNT, 32), np.uint8), numbers, indices, described), tmp_path)
    return tmp_path


@pytest.fixture
def data(_connected: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> nodes.NodeData:
    """The data, opened from now on as on another node, whose temporary files are in a folder."""
    made = nodes.NodeData(folder, "sweep-1")
    (folder / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "temporary"))
    monkeypatch.setattr(nodes, "here", lambda: "elsewhere")
    return made


def test_a_node_copies_the_images_once_in_chunks(
    data: nodes.NodeData, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "CHUNK_BYTES", 4 << 20)
    process, stopped = psutil.Process(), threading.Event()

    def private() -> int:
        used = process.memory_info()
        return used.rss - used.shared

    before, most = private(), []

    def watch() -> None:
        while not stopped.wait(0.005):
            most.append(private())

    watcher = threading.Thread(target=watch)
    watcher.start()
    opened = data.open()
    stopped.set()
    watcher.join()
    assert max(most) - before < 40e6  # ten chunks, of the 184 MB
    (copy,) = (folder / "temporary").glob("*/sweep-1-elsewhere/images.npy")
    assert copy.read_bytes() == (folder / "images.npy").read_bytes()
    expected = dataset.open_directory(folder).split("train")
    np.testing.assert_array_equal(opened.images, expected.images)
    np.testing.assert_array_equal(opened.labels, expected.labels)
    written = copy.stat().st_mtime_ns
    assert data.open().validation_images.shape == (75, 320, 320, 3)
    assert copy.stat().st_mtime_ns == written
    assert len(ray.cloudpickle.dumps(data)) < 100_000


def test_copies_that_no_process_uses_are_removed(data: nodes.NodeData, folder: Path) -> None:
    """A killed driver removed none; a killed trial left a part of one."""
    data.open()
    (copy,) = (folder / "temporary").glob("*/sweep-1-elsewhere/images.npy")
    part = copy.parent.with_name("sweep-0-elsewhere")
    part.mkdir()
    (part / ".images.0123.npy").write_bytes(b"part")
    nodes.remove_unused()
    assert copy.exists()
    assert not part.exists()
    nodes._hold(copy).close()
    nodes.remove_unused()
    assert not copy.parent.exists()


@pytest.mark.usefixtures("_connected")
def test_a_node_that_joins_is_checked_once_and_its_fault_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """The only node of this Ray is the one that joins."""
    other = {**preflight.versions(), "torch": "2.13.0"}
    monkeypatch.setattr(preflight, "LOOK_S", 0)
    joining = preflight.Joining(CheckpointStore(str(tmp_path)), 0, 0)

    def look() -> None:
        joining.look()
        joining.wait()

    look()
    assert not said
    joining._known.clear()
    look()
    look()
    assert [line.partition(" in ")[0] for line in said] == ["sweep: 1 node checked"]
    for lost in (None, ray.exceptions.WorkerCrashedError()):
        with monkeypatch.context() as patched:
            patched.setattr(nodes, "ask", lambda work, arguments, _, lost=lost: dict.fromkeys(arguments, lost))
            joining._known.clear()
            look()
        assert said.pop().startswith("sweep: node ")
    assert len(said) == 1  # lost nodes are not called checked
    monkeypatch.setattr(preflight, "versions", lambda: other)
    joining._known.clear()
    look()
    with pytest.raises(
        SweepError, match=r"torch 2.14.1\S* there, 2.13.0 here; install requirements.lock on every node"
    ):
        look()
    assert list(tmp_path.iterdir()) == []
