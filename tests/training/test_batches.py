"""Batches: each image once an epoch, and augmentation that gives shifted or mirrored images and nothing else."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flywheel.models import transfer
from flywheel.training.batches import AugmentedBatches

Pictures = NDArray[np.uint8]
Draw = Callable[..., Pictures]
Make = Callable[..., AugmentedBatches]
CPU = torch.device("cpu")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def make(device: torch.device) -> Make:
    """Return a function that makes batches of images labelled by their index."""

    def made(
        images: Pictures, size: int = 4, *, flip: bool = False, translate: int = 0, seed: int = 0
    ) -> AugmentedBatches:
        images.flags.writeable = False  # as Ray's object store and the memory map give them
        labels = np.arange(len(images))
        return AugmentedBatches(images, labels, size, flip=flip, translate=translate, seed=seed, device=device)

    return made


@pytest.fixture
def noise(random: np.random.Generator) -> Draw:
    """Return a function that draws images (n, size, size, 3) without two equal crops."""
    return lambda count, size=8: random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def seen(batches: AugmentedBatches, *epochs: int) -> Iterator[tuple[Pictures, int]]:
    """Yield every image with its label."""
    for number in epochs or (1,):
        for images, labels in batches.epoch(number):
            yield from zip(images.cpu().numpy(), labels.tolist(), strict=True)


def crops(image: Pictures, padding: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """Return all that augmentation may make of an image, the slow way: bytes -> (row, column, mirrored)."""
    size = len(image)
    found = {}
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    for mirrored in (False, True)[: 1 + flip]:
        for row, column in np.ndindex(2 * padding + 1, 2 * padding + 1):
            crop = padded[row : row + size, column : column + size]
            found[(crop[:, ::-1] if mirrored else crop).tobytes()] = (row, column, mirrored)
    return found


def test_an_epoch_is_every_image_once_with_its_label(device: torch.device, noise: Draw) -> None:
    images, labels = noise(9), np.array([5, 0, 7, 7, 2, 9, 1, 3, 3])
    batches = AugmentedBatches(images, labels, 3, flip=False, translate=0, seed=0, device=device)
    assert len(batches) == 3
    shown = {image.tobytes(): label for image, label in seen(batches)}
    assert shown == {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert len(list(seen(batches))) == 9


def test_an_epoch_leaves_out_the_remainder_different_images_each_time(make: Make, noise: Draw) -> None:
    batches = make(noise(10), 4)
    epochs = [[label for _, label in seen(batches)] for _ in range(30)]
    assert {(len(epoch), len(set(epoch))) for epoch in epochs} == {(8, 8)}
    left_out = [frozenset(range(10)) - set(epoch) for epoch in epochs]
    assert len(set(left_out)) > 10
    assert not frozenset.intersection(*left_out)


def test_fewer_images_than_a_batch_are_one_batch(make: Make, noise: Draw) -> None:
    batches = make(noise(5), 128)
    assert len(batches) == 1
    assert sorted(label for _, label in seen(batches)) == [0, 1, 2, 3, 4]


def test_an_image_is_mirrored_in_every_other_epoch_a_random_half_at_a_time(make: Make, noise: Draw) -> None:
    images = noise(400)
    batches = make(images, 10, flip=True)
    mirrored = []
    for number in (1, 2, 3):
        shown = {label: image for image, label in seen(batches, number)}
        mirrored.append(np.array([np.array_equal(shown[i], images[i][:, ::-1]) for i in range(400)]))
        assert all(mirrored[-1][i] or np.array_equal(shown[i], images[i]) for i in range(400))
    np.testing.assert_array_equal(mirrored[0], mirrored[2])
    np.testing.assert_array_equal(mirrored[0], ~mirrored[1])
    assert 0.42 < mirrored[0].mean() < 0.58  # three standard deviations of 400


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("translate", [1, 2])
def test_a_shift_gives_every_crop_of_the_reflected_image_and_no_other(
    flip: bool, translate: int, make: Make, noise: Draw
) -> None:
    images, epochs = noise(4), 1000
    allowed = [crops(image, translate, flip) for image in images]
    counts: list[Counter[tuple[int, int, bool]]] = [Counter() for _ in images]
    for image, label in seen(make(images, flip=flip, translate=translate), *range(1, epochs + 1)):
        counts[label][allowed[label][image.tobytes()]] += 1  # KeyError: no such crop
    for count, crop in zip(counts, allowed, strict=True):
        assert set(count) == set(crop.values())
        assert max(count.values()) < 3 * epochs / len(crop)  # all crops alike


def test_each_image_of_a_batch_has_its_own_shift_and_flip(make: Make, noise: Draw) -> None:
    images = noise(64)
    allowed = [crops(image, 2, flip=True) for image in images]
    draws = {allowed[label][image.tobytes()] for image, label in seen(make(images, 64, flip=True, translate=2))}
    assert [len({draw[part] for draw in draws}) for part in range(3)] == [5, 5, 2]
    assert len(draws) > 25  # rows, columns and mirroring are drawn independently


def test_a_shift_beyond_the_image_is_limited_to_what_reflection_can_fill(make: Make, noise: Draw) -> None:
    images = noise(4)
    allowed = [crops(image, 7, flip=False) for image in images]
    for image, label in seen(make(images, translate=64), *range(1, 26)):
        assert image.tobytes() in allowed[label]


@pytest.mark.parametrize(("flip", "translate"), [(False, 0), (True, 2)])
def test_the_seed_decides_the_batches_and_torchs_global_generator_stays(
    flip: bool, translate: int, make: Make, noise: Draw
) -> None:
    images = noise(24)

    def drawn(seed: int) -> list[tuple[bytes, int]]:
        batches = make(images, flip=flip, translate=translate, seed=seed)
        return [(image.tobytes(), label) for image, label in seen(batches, 1, 2)]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert drawn(3) == drawn(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn(3) != drawn(4)
    assert drawn(3)[:24] != drawn(3)[24:]  # the next epoch has another order


@pytest.mark.parametrize("options", [{"flip": True, "translate": 1}, {}], ids=str)
def test_batches_are_copies(options: dict[str, Any], make: Make, noise: Draw) -> None:
    images = noise(8)
    original = images.copy()
    for batch, _ in make(images, **options).epoch(1):
        batch.zero_()
    np.testing.assert_array_equal(images, original)


def test_on_the_cpu_read_only_images_are_shared_without_a_warning(noise: Draw) -> None:
    images = noise(4)
    images.flags.writeable = False
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tensor = transfer.tensor(images, CPU)
    finally:
        torch.set_warn_always(always)
    assert np.shares_memory(tensor.numpy(), images)


def test_a_view_that_is_not_contiguous_keeps_its_values(device: torch.device, noise: Draw) -> None:
    images: Any = noise(6)[::2, :, ::-1]
    np.testing.assert_array_equal(transfer.tensor(images, device).cpu().numpy(), images)
