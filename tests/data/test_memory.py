"""Data sets larger than the memory: neither building nor reading one holds its pixels."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import control_groups
import made_models
import numpy as np
import pytest
import sklearn.model_selection  # noqa: F401 (its own memory does not count)
from PIL import Image

from flywheel.data import build
from flywheel.data.dataset import ImageRows, SourceImages, Split, open_directory, save
from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.retraining import examples, scores
from flywheel.training.batches import AugmentedBatches
from flywheel.training.loop import TrainingData

ROOT = Path(__file__).parents[2]


@contextmanager
def at_most(limit_bytes: int) -> Iterator[None]:
    """Assert that no more memory of Python and numpy is in use at a time; files that are mapped do not count."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit_bytes
    finally:
        tracemalloc.stop()


def test_neither_building_nor_reading_holds_the_images_of_a_split(
    make_params: Callable[..., Params], random: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CHUNK_BYTES", 100_000)
    data = make_params("data.image_size=32").data

    def split(count: int, number: int) -> Split:
        pixels = np.lib.format.open_memmap(tmp_path / f"{number}.npy", "w+", np.uint8, (count, 32, 32, 3))
        for row in range(count):
            pixels[row] = random.integers(0, 256, 3)
            pixels[row, 0] = random.integers(0, 256, (32, 3))
        return Split(ImageRows(pixels), np.arange(count) % 10, np.arange(count))

    source = SourceImages(tuple("0123456789"), split(4_000, 0), split(400, 1), test_count=200)
    directory = tmp_path / "set"
    directory.mkdir()
    with at_most(6_000_000):  # half of the training images
        save(build.build(source, data, directory), directory)
    opened, model = open_directory(directory), made_models.model(size=32)
    with at_most(6_000_000):
        images, simulation = TrainingData.of(opened), opened.split("simulation")
        scores.predict(model, opened)
        mixed = examples.mix(images, simulation.images, simulation.labels, 2, seed=0)
        batches = AugmentedBatches(mixed.images, mixed.labels, 64, flip=True, translate=2, seed=0, device=model.device)
        assert sum(len(labels) for _, labels in batches.epoch(1)) > 3_500


TOO_LARGE = """
import resource, sys
from pathlib import Path
from flywheel import cli
from flywheel.data.dataset import allocate
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000,) * 2)
cli.main(lambda: allocate((400, 32, 32, 3), Path(sys.argv[1])))
"""


def test_images_that_do_not_fit_on_the_disk_are_one_sentence_before_one_is_written(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TOO_LARGE, tmp_path / "a.npy"], capture_output=True, text=True)
    assert done.returncode == 1
    said = (
        rf"error: cannot write {tmp_path}/a\.npy \(File too large, .* free\); (free|raise the limit of a file's) .*\n"
    )
    assert re.fullmatch(said, done.stderr)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 images that are 630 MB at 512 pixels, in small files."""
    root, random = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for number in range(800):
        path = root / ("test" if number % 4 == 3 else "train") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return root


def command(folder: Path, store: Path) -> list[str]:
    overrides = (
        f"data.source=folder data.name=large data.path={folder} data.image_size=512 paths.store={store} "
        f"paths.reports={store}/reports tracking.wandb=disabled"
    )
    return [sys.executable, "scripts/data.py", "--profile", "laptop", "--set", overrides]


@pytest.mark.long
def test_a_folder_larger_than_the_memory_is_built(folder: Path, tmp_path: Path) -> None:
    with control_groups.limited(400_000_000) as prefix:
        done = subprocess.run([*prefix, *command(folder, tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    registry = Registry(tmp_path / "laptop")
    assert open_directory(registry.open(registry.resolve("large_dataset"))).images.nbytes > 600_000_000


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_build_publishes_nothing_and_the_next_run_removes_what_is_left(
    number: signal.Signals, folder: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "laptop/scratch/data"
    with subprocess.Popen(command(folder, tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not list(scratch.glob("*/images.npy")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number), said
    left = list(scratch.glob("*"))
    assert len(left) == (number == signal.SIGKILL)
    registry = Registry(tmp_path / "laptop")
    assert registry.collections() == []
    if left:
        subprocess.run(command(folder, tmp_path), cwd=ROOT, check=True, capture_output=True)
        assert registry.collections() == ["large_dataset"]
        assert list(scratch.glob("*")) == []
