"""The data set: building, saving and opening it, and drift; on made images and on the digits."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from flywheel import files
from flywheel import params as parameters
from flywheel.data import DataError, drift, sources, splits
from flywheel.data.build import build
from flywheel.data.dataset import (
    ARRAYS,
    Dataset,
    ImageRows,
    SourceImages,
    Split,
    histogram,
    open_directory,
    save,
    statistics,
)

Pictures = NDArray[np.uint8]
Draw = Callable[..., Pictures]
MakeData = Callable[..., parameters.Data]
Make = Callable[..., parameters.Params]
NO_DRIFT = "data.drift={rotation: 0, noise: 0, blur: 0, brightness: 0, contrast: 0}"
KINDS = ("rotation", "noise", "blur", "brightness", "contrast")

steady = settings(derandomize=True, deadline=None, max_examples=200)


@pytest.fixture
def make_data(make_params: Make) -> MakeData:
    """The section `data` of the profile demo for images of 8 pixels without drift, with overrides."""
    return lambda overrides="": make_params(f"data.image_size=8 {NO_DRIFT} {overrides}").data


@pytest.fixture(scope="module")
def built() -> dict[str, Dataset]:
    """The data sets of the digits that were built, by overrides."""
    return {}


@pytest.fixture
def digits(make_params: Make, built: dict[str, Dataset]) -> Callable[..., Dataset]:
    """Build the data set of the digits as the profile demo has it, with overrides."""

    def of(overrides: str = "") -> Dataset:
        if overrides not in built:
            data = make_params(overrides).data
            built[overrides] = build(sources.digits(data), data)
        return built[overrides]

    return of


@pytest.fixture
def source(noise_pictures: Draw) -> SourceImages:
    """40 training and 20 test images of noise."""
    return with_images(noise_pictures(40), noise_pictures(20))


def with_images(train: Pictures, test: Pictures) -> SourceImages:
    """Return a source of two classes, alternately; the first 8 test images are the split `test`."""
    parts = [Split(images, np.arange(len(images)) % 2, np.arange(len(images))) for images in (train, test)]
    return SourceImages(("even", "odd"), *parts, test_count=8)  # type: ignore[misc]


# Statistics


@steady
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_statistics_are_numpys(images: Pictures) -> None:
    mean, std = statistics(histogram(images))
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=0, atol=1e-9)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=0, atol=1e-9)


# Build


def test_a_data_set_holds_every_image_of_the_source_under_its_id(source: SourceImages, make_data: MakeData) -> None:
    built = build(source, make_data())
    train, validation = built.split("train"), built.split("validation")
    assert sorted([*train.ids, *validation.ids]) == list(range(40))
    for split in (train, validation):
        np.testing.assert_array_equal(split.images, source.train.images[split.ids])
        np.testing.assert_array_equal(split.labels, source.train.labels[split.ids])
    for name, ids in (("test", range(8)), ("simulation", range(8, 20))):
        split = built.split(name)
        assert split.ids.tolist() == list(ids)
        np.testing.assert_array_equal(split.images, source.test.images[split.ids])
        np.testing.assert_array_equal(split.labels, source.test.labels[split.ids])
    np.testing.assert_array_equal(built.hashes, splits.content_hashes(built.images))


def test_the_description_counts_the_splits_and_names_the_params(source: SourceImages, make_data: MakeData) -> None:
    data = make_data("data.validation_fraction=0.25 data.seed=3")
    built = build(dataclasses.replace(source, skipped=("train/a/b.png: empty",)), data)
    description = built.description
    assert description["splits"] == {"train": 30, "validation": 10, "test": 8, "simulation": 12}
    assert description["splits"] == {name: len(built.split(name).labels) for name in splits.SPLITS}
    assert description["holdout"] == built.holdout.sum() == splits.is_holdout(built.hashes[48:]).sum()
    assert description["skipped"] == 1
    assert description["seed"] == 3
    assert description["drift"] == dict.fromkeys(KINDS, 0)
    assert description["duplicates"] == {"within": {}, "across": {}}
    assert built.class_names == ("even", "odd")
    assert built.image_size == 8


def test_statistics_are_of_train_and_validation_only(source: SourceImages, make_data: MakeData) -> None:
    built = build(with_images(source.train.images, source.test.images // 2 + 128), make_data())
    mean, std = statistics(histogram(np.asarray(source.train.images)))
    assert built.mean == tuple(mean)
    assert built.std == tuple(std)


def test_duplicates_across_splits_are_dropped_and_reported(source: SourceImages, make_data: MakeData) -> None:
    data = make_data()
    plain = build(source, data)
    in_train, in_validation = plain.indices["train"][:4], plain.indices["validation"][:2]
    train_images = source.train.images.copy()
    train_images[in_train[0]] = source.test.images[0]  # test
    train_images[in_train[1]] = train_images[in_validation[0]]
    train_images[in_train[2]] = source.test.images[10]  # simulation
    train_images[in_train[3]] = train_images[plain.indices["train"][4]]  # twice in train: stays
    train_images[in_validation[1]] = source.test.images[1]
    test_images = source.test.images.copy()
    test_images[11] = test_images[2]
    built = build(with_images(train_images, test_images), data)
    assert built.description["duplicates"] == {
        "within": {"train": 1},
        "across": {
            "test/train": 1, "validation/train": 1, "simulation/train": 1, "test/validation": 1, "test/simulation": 1,
        },
    }  # fmt: skip
    assert built.description["splits"] == {"train": 29, "validation": 7, "test": 8, "simulation": 11}
    contents = [{row.tobytes() for row in built.split(name).images} for name in splits.SPLITS]
    assert sum(map(len, contents)) == len(set.union(*contents))


def test_a_class_left_without_training_images_is_named(source: SourceImages, make_data: MakeData) -> None:
    data = make_data()
    train = build(source, data).indices["train"]
    train_images = source.train.images.copy()
    train_images[train[source.train.labels[train] == 1]] = source.test.images[0]
    with pytest.raises(DataError, match="class odd has no training image left"):
        build(with_images(train_images, source.test.images), data)


@pytest.mark.parametrize("value", [0, 15, 59, 118, 255])
def test_a_channel_without_any_contrast_is_refused_whatever_its_value(
    value: int, make_data: MakeData, noise_pictures: Draw
) -> None:
    """Its deviation is 0, and pixels are divided by it."""
    train_images, test_images = noise_pictures(70), noise_pictures(20)
    train_images[..., 2] = value
    with pytest.raises(DataError, match="same colour"):
        build(with_images(train_images, test_images), make_data())


# Save and open


@pytest.fixture
def saved(source: SourceImages, make_data: MakeData, tmp_path: Path) -> tuple[Dataset, Path]:
    """A small data set and the directory where it was saved."""
    built = build(source, make_data())
    save(built, tmp_path / "set")
    return built, tmp_path / "set"


def stored_arrays(dataset: Dataset) -> dict[str, NDArray[Any]]:
    own = {name: getattr(dataset, name) for name in ("images", "labels", "hashes", "ids")}
    return {**own, **dataset.indices}


def test_what_was_saved_is_opened(saved: tuple[Dataset, Path]) -> None:
    built, directory = saved
    opened = open_directory(directory)
    for name, array in stored_arrays(built).items():
        np.testing.assert_array_equal(stored_arrays(opened)[name], array, err_msg=name)
        assert stored_arrays(opened)[name].dtype == array.dtype
    assert tuple(opened.indices) == (*splits.SPLITS, "clean")
    assert {path.name for path in directory.iterdir()} == {f"{name}.npy" for name in ARRAYS} | {"dataset.json"}
    assert {**built.description, "format": 2} == opened.description
    assert opened.class_names == built.class_names
    assert (opened.mean, opened.std, opened.image_size) == (built.mean, built.std, built.image_size)
    np.testing.assert_array_equal(opened.holdout, built.holdout)
    for name in splits.SPLITS:
        np.testing.assert_array_equal(opened.split(name).images, built.split(name).images)


def test_arrays_are_memory_mapped_and_read_only(saved: tuple[Dataset, Path]) -> None:
    for name, array in stored_arrays(open_directory(saved[1])).items():
        assert isinstance(array, np.memmap), name
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_images_of_a_split_are_read_when_they_are_indexed_also_in_another_process(saved: tuple[Dataset, Path]) -> None:
    """Pickled or copied, they are the path of a file."""
    built, directory = saved
    images = open_directory(directory).split("train").images
    assert isinstance(images, ImageRows)
    assert len(pickle.dumps(images)) < 2_000 + 16 * len(images)
    expected = built.images[built.indices["train"]]
    for rows in (images, copy.copy(images), ImageRows.of(images)):
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(rows[3], expected[3])
        np.testing.assert_array_equal(rows[[4, 1]], expected[[4, 1]])


def test_rows_of_several_arrays_are_one_after_the_other(noise_pictures: Draw) -> None:
    first, second = noise_pictures(5), noise_pictures(9)[5:]
    every = np.concatenate([first, second[::-1], first])
    rows = ImageRows.of(first, ImageRows(second).select(slice(None, None, -1)), first)
    assert rows.shape == every.shape
    for key in (slice(None), slice(3, 8), [6, 0, 6, 13], np.arange(14) % 3 == 0, 8):
        np.testing.assert_array_equal(rows[key], every[key])
    np.testing.assert_array_equal(copy.copy(rows), every)  # arrays in memory are copied


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_neither_written_nor_loaded(saved: tuple[Dataset, Path], tmp_path: Path) -> None:
    dataset, directory = saved
    with pytest.raises(ValueError, match="allow_pickle=False"):
        save(dataclasses.replace(dataset, labels=np.array([{}] * 60)), tmp_path / "objects")
    np.save(directory / "labels.npy", np.array([Trap(tmp_path / "sprung")]), allow_pickle=True)
    with pytest.raises(DataError, match="is not a data set"):
        open_directory(directory)
    assert not (tmp_path / "sprung").exists()
    np.load(directory / "labels.npy", allow_pickle=True)
    assert (tmp_path / "sprung").exists()  # the trap works


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in ARRAYS), "dataset.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_a_damaged_directory_is_one_error_with_the_command_to_run(
    name: str, damage: str, saved: tuple[Dataset, Path]
) -> None:
    path = saved[1] / name
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": data[: len(data) * 2 // 3], "text": b"hello"}[damage])
    with pytest.raises(DataError, match=r"set is not a data set .*run make data FORCE=1"):
        open_directory(saved[1])


def test_another_format_is_refused(saved: tuple[Dataset, Path]) -> None:
    path = saved[1] / "dataset.json"
    files.write_json(path, {**files.read_json(path), "format": 3})
    with pytest.raises(DataError, match=r"of format 3, not 2; run make data FORCE=1"):
        open_directory(saved[1])


# Digits


def test_digits_are_scikit_learns_each_once(digits: Callable[..., Dataset]) -> None:
    built, bunch = digits(f"data.image_size=8 {NO_DRIFT}"), load_digits()
    assert sorted(built.ids) == list(range(1797))
    np.testing.assert_array_equal(built.labels, bunch.target[built.ids])
    grey = np.round(bunch.images[built.ids] * 255 / 16)
    np.testing.assert_array_equal(built.images, np.repeat(grey[..., None], 3, axis=3))


def test_the_digits_keep_the_bytes_of_earlier_versions(digits: Callable[..., Dataset], tmp_path: Path) -> None:
    save(digits("data.image_size=32"), tmp_path)
    before = {"images": "bed5de3e", "hashes": "a33954a3", "train": "13cf7674", "simulation": "45aea161"}
    assert {name: files.digest_file(tmp_path / f"{name}.npy").sha256[:8] for name in before} == before
    assert digits().class_names == tuple("0123456789")
    other = digits("data.seed=1")
    for name, array in stored_arrays(digits()).items():
        assert name in ("test", "simulation", "clean") or not np.array_equal(array, stored_arrays(other)[name]), name


def test_the_source_that_is_named_is_loaded(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data("data.image_size=8")
    np.testing.assert_array_equal(sources.load(data, tmp_path).train.images, sources.digits(data).train.images)
    assert not list(tmp_path.iterdir())


# Drift


def corrupted(images: Pictures, kind: str, severity: float) -> Pictures:
    severities = {**dict.fromkeys(KINDS, 0.0), kind: severity}
    changed: Pictures = drift.apply(images, np.arange(len(images)), parameters.Drift(**severities), 0)
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
    return changed


def effect(images: Pictures, kind: str, severity: float) -> float:
    return float(np.abs(corrupted(images, kind, severity).astype(float) - images).mean())


def test_drift_changes_simulation_only(digits: Callable[..., Dataset]) -> None:
    drifted, plain = digits(), digits(NO_DRIFT)
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(drifted.split(name).images, plain.split(name).images)
    simulation, original = drifted.split("simulation"), plain.split("simulation")
    np.testing.assert_array_equal(simulation.labels, original.labels)
    np.testing.assert_array_equal(simulation.ids, original.ids)
    for image, before in zip(simulation.images, original.images, strict=True):
        assert not np.array_equal(image, before)
    assert (drifted.mean, drifted.std) == (plain.mean, plain.std)


@pytest.mark.parametrize("seed", [0, 4])
def test_drift_is_drawn_by_the_params_seed_and_the_source_ids(
    seed: int, source: SourceImages, make_data: MakeData
) -> None:
    data = make_data(f"data.drift.noise=3 data.drift.brightness=2 data.seed={seed}")
    expected = drift.apply(source.test.images[8:], source.test.ids[8:], data.drift, seed)
    np.testing.assert_array_equal(build(source, data).split("simulation").images, expected)


def test_values_are_clipped_and_do_not_wrap_around() -> None:
    ends = np.zeros((2, 32, 32, 3), np.uint8)
    ends[1] = 255
    black, white = corrupted(ends, "noise", 1)
    assert black.max() < 100
    assert white.min() > 155


@pytest.mark.parametrize("kinds", [KINDS, ("blur",)])
def test_the_images_without_drift_are_kept_on_the_same_sides(digits: Callable[..., Dataset], kinds: Any) -> None:
    """Or a model trained on clean traffic would know an image of the holdout."""
    drifted = digits(f"data.drift={{{', '.join(f'{kind}: {3 * (kind in kinds)}' for kind in KINDS)}}}")
    plain = digits(NO_DRIFT)
    clean = drifted.traffic("none")
    np.testing.assert_array_equal(drifted.images[clean], plain.split("simulation").images)
    np.testing.assert_array_equal(drifted.ids[clean], drifted.split("simulation").ids)
    np.testing.assert_array_equal(splits.is_holdout(drifted.hashes[clean]), drifted.holdout)
    changed = (drifted.images[clean] != drifted.split("simulation").images).any(axis=(1, 2, 3))
    assert changed.mean() > 0.99
    np.testing.assert_array_equal(plain.traffic("none"), plain.traffic("data"))


def test_an_image_that_cannot_change_sides_stays_as_it_is(smooth_pictures: Pictures) -> None:
    """Blur does nothing to a constant image, whatever the draw."""
    constant = np.full((5, 8, 8, 3), 7, np.uint8)
    np.testing.assert_array_equal(corrupted(constant, "blur", 3), constant)


def test_a_simulation_image_whose_original_is_in_another_split_is_dropped(
    source: SourceImages, make_data: MakeData
) -> None:
    test_images = source.test.images.copy()
    test_images[11] = test_images[2]
    built = build(with_images(source.train.images, test_images), make_data("data.drift.noise=3"))
    assert built.description["duplicates"]["across"] == {"test/simulation": 1}
    assert len(built.indices["simulation"]) == len(built.indices["clean"]) == 11


def test_format_1_has_no_images_without_drift(saved: tuple[Dataset, Path]) -> None:
    path = saved[1] / "dataset.json"
    files.write_json(path, {**files.read_json(path), "format": 1})
    (saved[1] / "clean.npy").unlink()
    opened = open_directory(saved[1])
    np.testing.assert_array_equal(opened.traffic("data"), saved[0].indices["simulation"])
    with pytest.raises(DataError, match="no simulation images without drift; run make data FORCE=1"):
        opened.traffic("none")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_an_effect_that_grows_with_severity(kind: str, noise_pictures: Draw) -> None:
    pictures = noise_pictures(40, 32)  # details to the last pixel: on soft blobs a blur of severity 1 does nothing
    before = pictures.copy()
    effects = [effect(pictures, kind, severity) for severity in (0, 1, 2, 3, 4, 5)]
    np.testing.assert_array_equal(pictures, before)
    assert effects[0] == 0
    assert all(weaker < stronger for weaker, stronger in itertools.pairwise(effects))


ALL = parameters.Drift(rotation=3, noise=2, blur=1, brightness=2, contrast=2)


def test_the_draw_depends_on_seed_and_id_only(smooth_pictures: Pictures, random: np.random.Generator) -> None:
    ids = np.arange(40) * 7
    together = drift.apply(smooth_pictures, ids, ALL, 5)
    order = random.permutation(40)
    np.testing.assert_array_equal(drift.apply(smooth_pictures[order], ids[order], ALL, 5), together[order])
    np.testing.assert_array_equal(drift.apply(smooth_pictures[3:4], ids[3:4], ALL, 5), together[3:4])
    assert not np.array_equal(drift.apply(smooth_pictures, ids, ALL, 6), together)
    assert not np.array_equal(drift.apply(smooth_pictures, ids + 1, ALL, 5), together)


@pytest.mark.parametrize("kind", ["rotation", "noise", "brightness", "contrast"])
def test_every_image_has_a_draw_of_its_own(kind: str, smooth_pictures: Pictures) -> None:
    same = np.repeat(smooth_pictures[:1], 20, axis=0)
    assert len({image.tobytes() for image in corrupted(same, kind, 5)}) > 15


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_noise_is_gaussian_of_the_documented_strength(severity: int) -> None:
    grey = np.full((50, 32, 32, 3), 128, np.uint8)
    noise = corrupted(grey, "noise", severity).astype(float) - 128
    assert abs(noise.std() - 0.047 * 255 * severity) < 0.3
    assert abs(noise.mean()) < 0.5
    assert abs(np.corrcoef(noise[..., 0].reshape(-1), noise[..., 1].reshape(-1))[0, 1]) < 0.03


def test_brightness_is_a_factor_within_its_range_both_ways() -> None:
    grey = np.full((200, 8, 8, 3), 100, np.uint8)
    factors = corrupted(grey, "brightness", 2).mean(axis=(1, 2, 3)) / 100
    assert factors.min() >= 1 - 0.24 - 0.005
    assert factors.max() <= 1 + 0.24 + 0.005
    assert factors.min() < 0.8
    assert factors.max() > 1.2


def test_contrast_spreads_about_the_mean_within_its_range_both_ways(smooth_pictures: Pictures) -> None:
    changed = corrupted(np.concatenate([smooth_pictures] * 5), "contrast", 2)
    original = np.concatenate([smooth_pictures] * 5)
    np.testing.assert_allclose(changed.mean(axis=(1, 2, 3)), original.mean(axis=(1, 2, 3)), atol=0.5)
    factors = changed.std(axis=(1, 2, 3)) / original.std(axis=(1, 2, 3))
    assert 0.69 < factors.min() < 0.75
    assert 1.25 < factors.max() < 1.31


def test_blur_smooths_and_keeps_the_mean(noise_pictures: Draw) -> None:
    pictures = noise_pictures(10, 32)
    changed = corrupted(pictures, "blur", 3)
    assert changed.std() < 0.6 * pictures.std()
    assert abs(changed.mean() - pictures.mean()) < 1.5


def test_blur_scales_with_the_image_size() -> None:
    sharp = {size: np.zeros((1, size, size, 3), np.uint8) for size in (32, 128)}
    for size, images in sharp.items():
        images[:, :, size // 2 :] = 255
    small, large = (corrupted(images, "blur", 5)[0, size // 2, :, 0] for size, images in sharp.items())
    assert abs((small > 25).sum() / 32 - (large > 25).sum() / 128) < 0.04


def test_rotation_turns_about_the_centre_and_fills_with_the_border() -> None:
    images = np.full((100, 33, 33, 3), 40, np.uint8)
    images[:, 15:18, 4:29] = 240  # a bar
    changed = corrupted(images, "rotation", 3)
    assert (changed[:, 16, 16] == 240).all()
    corners = changed[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 40).all()
    rows, columns = np.mgrid[:33, :33] - 16
    angles = []
    for image in changed[..., 0].astype(float):
        weight = image - 40
        tensor = (weight * columns * rows).sum(), (weight * (columns**2 - rows**2)).sum()
        angles.append(np.degrees(0.5 * np.arctan2(2 * tensor[0], tensor[1])))
    assert -22 < min(angles) < -15
    assert 15 < max(angles) < 22
