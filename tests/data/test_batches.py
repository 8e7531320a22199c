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

from flywheel.training.batches import AugmentedBatches, resident

Pictures = Callable[..., NDArray[np.uint8]]
Labels = NDArray[np.int64]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def make(device: torch.device) -> Callable[..., AugmentedBatches]:
    """Batches of images whose label is their index."""

    def made(
        images: NDArray[np.uint8], size: int = 4, *, flip: bool = False, translate: int = 0, seed: int = 0
    ) -> AugmentedBatches:
        images.flags.writeable = False  # as Ray's object store and the memory map give them
        labels = np.arange(len(images))
        return AugmentedBatches(images, labels, size, flip=flip, translate=translate, seed=seed, device=device)

    return made


def seen(batches: AugmentedBatches, epochs: int = 1) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Every image with its label."""
    for number in range(1, epochs + 1):
        for images, labels in batches.epoch(number):
            yield from zip(images.cpu().numpy(), labels.tolist(), strict=True)


def crops(image: NDArray[np.uint8], padding: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """All that augmentation may make of an image, the slow and obvious way: bytes -> (row, column, mirrored)."""
    size = len(image)
    found = {}
    for mirrored in (False, True)[: 1 + flip]:
        whole = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        for row in range(2 * padding + 1):
            for column in range(2 * padding + 1):
                crop = whole[row : row + size, column : column + size]
                found[(crop[:, ::-1] if mirrored else crop).tobytes()] = (row, column, mirrored)
    return found


def test_an_epoch_is_every_image_once_exact_and_with_its_label(
    make: Callable[..., AugmentedBatches], noise_pictures: Pictures
) -> None:
    images = noise_pictures(12)
    labels = []
    for image, label in seen(make(images)):
        np.testing.assert_array_equal(image, images[label])
        labels.append(label)
    assert sorted(labels) == list(range(12))


def test_labels_are_the_given_ones(device: torch.device, noise_pictures: Pictures) -> None:
    images, labels = noise_pictures(9), np.array([5, 0, 7, 7, 2, 9, 1, 3, 3])
    given = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    batches = AugmentedBatches(images, labels, 3, flip=False, translate=0, seed=0, device=device)
    for image, label in seen(batches):
        assert label == given[image.tobytes()]


@pytest.mark.parametrize(("flip", "translate"), [(False, 0), (True, 0), (False, 2), (True, 2)])
def test_a_batch_has_the_form_that_a_classifier_takes(
    flip: bool, translate: int, make: Callable[..., AugmentedBatches], noise_pictures: Pictures, device: torch.device
) -> None:
    batches = make(noise_pictures(11, 10), 3, flip=flip, translate=translate)
    taken = list(batches.epoch(1))
    assert len(taken) == len(batches) == 3
    for images, labels in taken:
        assert images.shape == (3, 10, 10, 3)
        assert images.dtype == torch.uint8
        assert labels.shape == (3,)
        assert labels.dtype == torch.int64
        assert images.device.type == labels.device.type == device.type


def test_what_does_not_fill_a_batch_is_left_out_other_images_each_time(
    make: Callable[..., AugmentedBatches], noise_pictures: Pictures
) -> None:
    batches = make(noise_pictures(10), 4)
    epochs = [[label for _, label in seen(batches)] for _ in range(30)]
    assert {len(epoch) for epoch in epochs} == {8}
    assert {len(set(epoch)) for epoch in epochs} == {8}
    left_out = [frozenset(range(10)) - set(epoch) for epoch in epochs]
    assert len(set(left_out)) > 10
    assert not frozenset.intersection(*left_out)


def test_fewer_images_than_a_batch_are_one_batch(
    make: Callable[..., AugmentedBatches], noise_pictures: Pictures
) -> None:
    batches = make(noise_pictures(5), 128)
    assert len(batches) == 1
    assert sorted(label for _, label in seen(batches)) == [0, 1, 2, 3, 4]


def test_a_flip_gives_the_image_or_its_mirror_image_half_the_time(
    make: Callable[..., AugmentedBatches], noise_pictures: Pictures
) -> None:
    images = noise_pictures(50)
    mirrored = []
    for image, label in seen(make(images, 10, flip=True), epochs=20):
        mirrored.append(np.array_equal(image, images[label][:, ::-1]))
        assert mirrored[-1] or np.array_equal(image, images[label])
    assert 0.45 < np.mean(mirrored) < 0.55  # three standard deviations of 1,000


def test_two_epochs_in_a_row_show_both_sides_of_every_image(
    make: Callable[..., AugmentedBatches], noise_pictures: Pictures
) -> None:
    images = noise_pictures(20)
    batches = make(images, 10, flip=True)
    one, two, three = (
        {
            label: np.array_equal(image.numpy(), images[label][:, ::-1])
            for part, labels in batches.epoch(number)
            for image, label in zip(part.cpu(), labels.tolist(), strict=True)
        }
        for number in (1, 2, 3)
    )
    assert three == one == {label: not mirrored for label, mirrored in two.items()}
    assert len(set(one.values())) == 2


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("translate", [1, 2])
def test_a_shift_gives_every_crop_of_the_reflected_image_and_no_other(
    flip: bool, translate: int, make: Callable[..., AugmentedBatches], noise_pictures: Pictures
) -> None:
    images = noise_pictures(4)
    allowed = [crops(image, translate, flip) for image in images]
    counts: list[Counter[tuple[int, int, bool]]] = [Counter() for _ in images]
    epochs = 1000
    for image, label in seen(make(images, flip=flip, translate=translate), epochs):
        assert image.tobytes() in allowed[label]
        counts[label][allowed[label][image.tobytes()]] += 1
    for count, crop in zip(counts, allowed, strict=True):
        assert set(count) == set(crop.values())
        assert max(count.values()) < 3 * epochs / len(crop)  # all crops alike


def test_images_of_a_batch_are_shifted_and_mirrored_each_by_its_own_draw(
    make: Callable[..., AugmentedBatches], noise_pictures: Pictures
) -> None:
    images = noise_pictures(64)
    allowed = [crops(image, 2, flip=True) for image in images]
    draws = {allowed[label][image.tobytes()] for image, label in seen(make(images, 64, flip=True, translate=2))}
    for part in range(3):
        assert len({draw[part] for draw in draws}) == (2 if part == 2 else 5)
    assert len(draws) > 25  # rows, columns and mirroring are drawn apart


def test_a_shift_beyond_the_image_is_held_at_what_reflection_can_give(
    make: Callable[..., AugmentedBatches], noise_pictures: Pictures
) -> None:
    images = noise_pictures(4)
    allowed = [crops(image, 7, flip=False) for image in images]
    for image, label in seen(make(images, translate=64), epochs=25):
        assert image.tobytes() in allowed[label]


@pytest.mark.parametrize(("flip", "translate"), [(False, 0), (True, 2)])
def test_the_same_seed_gives_the_same_batches(
    flip: bool, translate: int, make: Callable[..., AugmentedBatches], noise_pictures: Pictures
) -> None:
    images = noise_pictures(24)

    def drawn(seed: int) -> list[tuple[bytes, int]]:
        batches = make(images, flip=flip, translate=translate, seed=seed)
        return [(image.tobytes(), label) for image, label in seen(batches, epochs=2)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(3)[:24] != drawn(3)[24:]  # the next epoch has another order


def test_batches_leave_the_global_generator_alone(
    make: Callable[..., AugmentedBatches], noise_pictures: Pictures
) -> None:
    images = noise_pictures(8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for _ in seen(make(images, flip=True, translate=2)):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_changes_no_image(make: Callable[..., AugmentedBatches], noise_pictures: Pictures) -> None:
    images = noise_pictures(8)
    original = images.copy()
    for batch, _ in make(images, flip=True, translate=1).epoch(1):
        batch.zero_()  # what is handed out is a copy
    for batch, _ in make(images).epoch(1):
        batch.zero_()
    np.testing.assert_array_equal(images, original)


def test_on_the_cpu_images_are_not_copied(noise_pictures: Pictures) -> None:
    images = noise_pictures(4)
    assert np.shares_memory(resident(images, torch.device("cpu")).numpy(), images)


def test_read_only_images_are_taken_without_a_warning(noise_pictures: Pictures) -> None:
    images = noise_pictures(4)
    images.flags.writeable = False
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resident(images, torch.device("cpu"))
    finally:
        torch.set_warn_always(always)


def test_a_view_that_is_not_contiguous_is_taken_as_it_reads(noise_pictures: Pictures, device: torch.device) -> None:
    images: Any = noise_pictures(6)[::2, :, ::-1]
    np.testing.assert_array_equal(resident(images, device).cpu().numpy(), images)
