"""Images of people's own: what is read, in which order, and how all that is not read is told."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from own_images import FORMS, assert_same, data_of, encode, read
from PIL import Image

from flywheel import files as flywheel_files
from flywheel.commands.report import facts
from flywheel.data import DataError, build, folder, source_files, sources, stage
from flywheel.params import Params
from flywheel.params.file import ParamsError
from flywheel.registry import Registry

Pictures = Callable[..., NDArray[np.uint8]]
Files = dict[str, bytes]
Given = Callable[..., Path]


@pytest.fixture
def pictures(noise_pictures: Pictures) -> Callable[..., Files]:
    """Return a function that makes `count` different images below each folder, as path -> bytes."""

    def make(**counts: int) -> Files:
        data = iter(noise_pictures(sum(counts.values())))
        return {f"{name}/{i}.png": encode(next(data)) for name, count in counts.items() for i in range(count)}

    return make


# What is read


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("top", ["", "./pets/v1.0/"])
def test_every_form_gives_the_decoded_files_in_the_order_of_their_names(
    form: str, top: str, layout: Files, given: Given
) -> None:
    found = read(given({f"{top}{name}": data for name, data in reversed(layout.items())}, form))
    pixels = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in layout.items()}
    assert found.class_names == ("a", "b")
    np.testing.assert_array_equal(found.train.images, [pixels[n] for n in sorted(pixels) if n.startswith("train")])
    np.testing.assert_array_equal(found.test.images, [pixels[n] for n in sorted(pixels) if n.startswith("test")])
    np.testing.assert_array_equal(found.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(found.test.labels, [0, 0, 1, 1])
    assert found.train.images[:].dtype == found.test.images[:].dtype == np.uint8
    assert found.train.labels.dtype == found.test.labels.dtype == np.int64
    assert (found.skipped, found.files) == ((), {"used": 10, "left_out": {}})


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_image_of_a_class_is_left_out_and_counted_in_one_line(
    form: str, layout: Files, given: Given, said: list[str]
) -> None:
    other = {
        "README.md": b"read me",
        "train/a/notes.txt": b"not an image",
        "train/a/.DS_Store": b"\0\0",
        "train/a/._0.png": b"what macOS leaves beside each file",
        "__MACOSX/train/a/._0.png": b"and in each archive",
        "train/cover.png": b"in no class",
        "cover.png": b"in no split",
        ".Trash-1000/files/train/a/9.png": b"hidden",
        "$RECYCLE.BIN/train/a/9.png": b"hidden",
        "data.json": b"{}",
        "extra/a/0.png": b"in neither split",
    }
    path = given({**other, **layout}, form)
    found = read(path)
    assert_same(found, read(given(layout)))
    left_out = {
        "hidden": {"count": 2, "example": "$RECYCLE.BIN/train/a/9.png"},
        "outside of train and test": {"count": 2, "example": "cover.png"},
        "without a class (no folder of a class, no row of a table)": {"count": 1, "example": "train/cover.png"},
    }
    assert {reason: counted["count"] for reason, counted in found.files["left_out"].items()} == {
        reason: counted["count"] for reason, counted in left_out.items()
    }
    assert found.files["used"] == 10
    (line,) = said
    assert line.startswith("data: 10 images are used; left out: 2 hidden, such as ")
    assert line.endswith("; 2 outside of train and test, such as cover.png")


def test_the_content_tells_what_an_image_is(noise_pictures: Pictures, layout: Files, given: Given) -> None:
    first, second = noise_pictures(2)
    odd = {
        "train/a/no-suffix": encode(first),
        "train/a/real.txt": encode(second),
        "train/a/scan": bytes(128) + b"DICM",
        "train/a/drawing.svg": b"<svg></svg>",
        "train/a/photo.NEF": encode(first, "TIFF"),
        "train/a/list.txt": b"BMW is no bitmap",
    }
    found = read(given({**layout, **odd}))
    assert len(found.train.images) == 8
    assert {reason: counted["example"] for reason, counted in found.files["left_out"].items()} == {
        "DICOM (not read)": "train/a/scan",
        "SVG (not read)": "train/a/drawing.svg",
        "camera raw (not read)": "train/a/photo.NEF",
    }
    with pytest.raises(DataError, match=r"found no image; .*; left out: 3 DICOM \(not read\), such as a/0$"):
        read(given({f"a/{i}": bytes(128) + b"DICM" for i in range(3)}))


def test_numbers_in_names_are_in_the_order_of_their_values(pictures: Callable[..., Files], given: Given) -> None:
    counts = {f"{split}/{label}": 2 for split in ("train", "test") for label in (1, 2, 10, 11)}
    files = {**pictures(**counts), **pictures(**{"train/2": 11})}
    found = read(given(files))
    assert found.class_names == ("1", "2", "10", "11")
    decoded = [np.asarray(Image.open(io.BytesIO(files[f"train/2/{i}.png"]))) for i in range(11)]
    np.testing.assert_array_equal(found.train.images[found.train.labels == 1], decoded)


def test_two_members_of_one_name_are_not_silently_one(layout: Files, given: Given) -> None:
    path = given(layout, "zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("train/a/0.png", b"bad")
    with pytest.raises(DataError, match=r"two files are called train/a/0\.png; keep one of them"):
        read(path, skip_corrupt=True)


# Corrupt files


@pytest.fixture
def corrupt(layout: Files) -> Files:
    """The layout with two more files that cannot be read."""
    return {**layout, "train/a/empty.png": b"", "test/b/text.JPG": b"not a picture"}


@pytest.mark.parametrize("form", FORMS)
def test_corrupt_files_are_refused_by_name_or_left_out_with_skip_corrupt(
    form: str, corrupt: Files, layout: Files, given: Given, said: list[str]
) -> None:
    path, clean = given(corrupt, form), read(given(layout), skip_corrupt=True)
    assert (clean.skipped, said) == ((), [])
    with pytest.raises(DataError) as refused:
        read(path)
    reasons = ("test/b/text.JPG: not an image", "train/a/empty.png: the file is empty")
    for part in ("2 files", *reasons, "data.skip_corrupt=true"):
        assert part in str(refused.value)
    found = read(path, skip_corrupt=True)
    assert [line.split(" in one")[0] for line in found.skipped] == list(reasons)
    assert len(said) == 1
    assert said[0].startswith(f"data: left out 2 corrupt files (data.skip_corrupt): {reasons[0]}")
    assert said[0].endswith(f"; {reasons[1]}")
    assert found.files["left_out"] == {"not readable": {"count": 2, "example": "test/b/text.JPG"}}
    assert_same(replace(found, skipped=()), clean)


def test_of_many_corrupt_files_some_are_named_and_all_are_counted(layout: Files, given: Given, said: list[str]) -> None:
    path = given({**layout, **{f"train/a/bad{i:02}.png": b"" for i in range(13)}})
    with pytest.raises(DataError, match="13 files") as refused:
        read(path)
    message = str(refused.value)
    assert "bad09.png: the file is empty and 3 more; mend or remove" in message
    assert message.count("bad") == 10
    read(path, skip_corrupt=True)
    (line,) = said
    assert line.startswith("data: left out 13 corrupt files")
    assert line.endswith("train/a/bad02.png: the file is empty and 10 more")
    assert line.count("bad") == 3


# Names


NAMES = ("кошка", "собака", "قط", "کتاب‌ها", "猫", "🐈", "👨‍👩‍👧", "Ünïcode straße", "a.b c'd\"e$f$", "%s{0}")


@pytest.mark.parametrize("form", FORMS)
def test_names_may_be_in_any_alphabet(form: str, noise_pictures: Pictures, given: Given, tmp_path: Path) -> None:
    pictures = noise_pictures(3 * len(NAMES))
    files = {}
    for index, name in enumerate(NAMES):
        for number, split in enumerate(("train", "train", "test")):
            files[f"{split}/{name}/{name} {number}.png"] = encode(pictures[3 * index + number])
    path = given(files, form)
    found = read(path)
    assert found.class_names == tuple(sorted(NAMES))
    assert source_files.content_digest(path, tmp_path / "cache.json")
    cat = found.class_names.index("🐈")
    np.testing.assert_array_equal(found.test.images[found.test.labels == cat], [pictures[3 * NAMES.index("🐈") + 2]])


@pytest.mark.parametrize("form", FORMS)
def test_one_name_in_two_unicode_forms_is_one_class(
    form: str, noise_pictures: Pictures, layout: Files, given: Given
) -> None:
    """macOS writes é as e and an accent (NFD), others as one character (NFC)."""
    composed, split_up = "caf\u00e9", "cafe\u0301"
    pictures = [encode(picture) for picture in noise_pictures(3)]
    files = {**layout, f"train/{composed}/1.png": pictures[0], f"train/{split_up}/2.png": pictures[1]}
    found = read(given({**files, f"test/{split_up}/1.png": pictures[2]}, form))
    assert found.class_names == ("a", "b", composed)
    assert ((found.train.labels == 2).sum(), (found.test.labels == 2).sum()) == (2, 1)
    files[f"train/{split_up}/1.png"] = pictures[2]
    with pytest.raises(DataError, match=rf"two files are called train/{composed}/1\.png"):
        read(given(files, form))


def test_many_small_files_are_read_and_more_than_the_disk_holds_are_refused_before_they_are_decoded(
    layout: Files, given: Given, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dot = encode(np.zeros((1, 1, 3), np.uint8))
    path = given({**layout, **{f"train/a/{n}-dot.png": dot for n in range(5_000)}}, "zip")
    found = folder.read(data_of(path=str(path)), tmp_path)
    assert len(found.train.images) == 5_006
    assert not any(".npy" in file.name for file in tmp_path.iterdir())  # nothing is left if this process is killed
    need = "5,010 images of 8 pixels need up to 1.9 MB of disk"
    assert said[0].startswith(f"data: {need}; ")
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_900_000))
    monkeypatch.setattr(folder.images, "decode", None)
    with pytest.raises(DataError, match=rf"{need}, and .* has 1\.9 MB free; .*lower data\.image_size or take fewer"):
        folder.read(data_of(path=str(path)), tmp_path)


# Wrong layouts


def without(files: Files, part: str) -> Files:
    return {name: data for name, data in files.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: without(files, "/b/"), r"only the class a; .*train/<class>/<image>"),
        (
            lambda files: {"a/1.png": files["train/a/0.png"]},
            r"found 1 images in a, only the class a; .*test/<class>/<image>",
        ),
        (
            lambda files: {**files, "test/zebra/1.png": files["test/a/0.png"]},
            r"class zebra has test images but no training images \(there are some of a; b\)",
        ),
        (lambda files: {**files, "train/c/0.png": b"bad"}, "train/c has no image that can be read"),
        (lambda files: {**files, "valid/zebra/1.png": files["test/a/0.png"]}, "class zebra has validation images"),
        (lambda files: {**without(files, "test/"), "test/a/0.png": files["test/a/0.png"]}, "found 1 test images"),
    ],
    ids=[
        "one class",
        "no layout",
        "a class not trained",
        "a class of corrupt files",
        "a class not trained but validated",
        "one test image",
    ],
)
def test_a_wrong_layout_is_refused_and_the_right_one_shown(
    change: Callable[[Files], Files], message: str, layout: Files, given: Given
) -> None:
    with pytest.raises(DataError, match=message):
        read(given(change(layout)), skip_corrupt=True)


def test_a_class_without_test_images_is_accepted_and_named(layout: Files, given: Given, said: list[str]) -> None:
    hidden = {"train/.ipynb_checkpoints/0-checkpoint.png": layout["train/a/0.png"]}  # an editor's, not a class
    files = {**layout, **hidden, "train/c/0.png": layout["train/a/0.png"]}
    assert read(given(files)).class_names == ("a", "b", "c")
    assert "data: no test image of c: its accuracy will not be measured" in said


@pytest.mark.parametrize("form", ["directory", "tar", "zip"])
def test_an_empty_class_is_named_and_not_silently_no_class(form: str, layout: Files, given: Given) -> None:
    files = {**layout, "test/c/": b"", "train/.cache/": b""}  # a class that nobody asked for, and a hidden folder
    assert read(given(files, form)).class_names == ("a", "b")
    with pytest.raises(DataError, match="train/c has no image that can be read; add one or remove the folder"):
        read(given({**files, "train/c/": b""}, form))


# Divided, where there is no test folder


def test_without_a_test_folder_each_class_is_divided_by_the_fractions_and_the_seed(
    pictures: Callable[..., Files], given: Given, said: list[str]
) -> None:
    path = given(pictures(**{"flowers/daisy": 40, "flowers/rose": 20, "flowers/tulip": 3}), "zip")
    found = read(path)
    assert [len(found.train.labels), found.test_count, len(found.test.labels)] == [44, 13, 19]
    assert said[0] == (
        "data: there is no labelled test folder, so the images are divided at random, each class alike: 44 for train, "
        "13 for test, 6 for simulation (data.folder_split)"
    )
    for label, count in enumerate((40, 20)):
        for part, fraction in ((found.train.labels, 0.7), (found.test.labels[:13], 0.2), (found.test.labels[13:], 0.1)):
            assert abs((part == label).sum() - fraction * count) <= 2
    assert (found.train.labels == 2).sum() >= 2  # one is for validation
    assert_same(read(path), found)
    assert not np.array_equal(read(path, seed=1).train.images, found.train.images)
    every = np.concatenate([found.train.images, found.test.images])
    assert len(np.unique(every.reshape(63, -1), axis=0)) == 63


def test_too_few_images_to_divide_are_one_clear_error(pictures: Callable[..., Files], given: Given) -> None:
    path = given(pictures(a=5, b=5))
    split = data_of().folder_split.model_copy(update={"train": 0.9, "test": 0.09, "simulation": 0.01})
    with pytest.raises(DataError, match=r"10 images are too few to divide into .*; add some, or .* data\.folder_split"):
        read(path, folder_split=split)


def test_the_fractions_add_up(make_params: Callable[..., Params]) -> None:
    with pytest.raises(ParamsError, match="train, test and simulation must add up to 1"):
        make_params("data.folder_split.train=0.5")


def test_a_validation_folder_is_used_as_it_is(pictures: Callable[..., Files], given: Given) -> None:
    counts = {f"{part}/{label}": n for part, n in (("train", 6), ("valid", 2), ("test", 3)) for label in "ab"}
    source = folder.read(data_of(path=str(given(pictures(**counts)))))
    built = build.build(source, data_of())
    assert [len(built.indices[name]) for name in ("train", "validation", "test", "simulation")] == [12, 4, 5, 1]
    np.testing.assert_array_equal(built.split("validation").images, source.train.images[12:])


# As a source


def test_the_test_images_are_shuffled_by_the_seed_and_cut_by_test_fraction_so_that_no_part_is_empty(
    layout: Files, given: Given, tmp_path: Path
) -> None:
    data = data_of(path=str(given(layout, "zip")))
    for fraction, count in ((0.01, 1), (0.5, 2), (0.8, 3), (0.99, 3)):
        assert folder.read(data.model_copy(update={"test_fraction": fraction})).test_count == count
    loaded = [sources.load(data.model_copy(update={"seed": seed}), tmp_path) for seed in (0, 0, 1, 2, 3)]
    orders = [source.test.ids.tolist() for source in loaded]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1
    in_order = read(Path(str(data.path)))
    for source in loaded:
        np.testing.assert_array_equal(source.test.images, in_order.test.images[source.test.ids])
        np.testing.assert_array_equal(source.test.labels, in_order.test.labels[source.test.ids])
        np.testing.assert_array_equal(source.train.ids, np.arange(6))


def test_uneven_classes_are_said_with_their_counts(
    pictures: Callable[..., Files], given: Given, said: list[str]
) -> None:
    def read_counts(**counts: int) -> None:
        files = pictures(**{f"train/{name}": count for name, count in counts.items()}, **{"test/a": 2})
        folder.read(data_of(path=str(given(files))))

    read_counts(a=2, b=5)
    assert [line for line in said if "uneven" in line] == []
    read_counts(a=2, b=6)
    assert said[-1] == "data: the classes are uneven, so read the accuracy of each: b 6, a 2 training images"
    read_counts(**{f"{letter}": 2 for letter in "abcdefghijk"}, z=9)
    assert said[-1].endswith(": z 9, a 2, b 2, c 2, d 2, …, g 2, h 2, i 2, j 2, k 2 training images")


@pytest.fixture
def params_of(make_params: Callable[..., Params]) -> Callable[..., Params]:
    def make(path: Path) -> Params:
        return make_params(
            f"data.source=folder data.name=mine data.path={path} data.image_size=8 data.skip_corrupt=true "
            "tracking.wandb=disabled"
        )

    return make


def test_the_counts_of_files_are_in_the_data_set_and_the_receipt(
    pictures: Callable[..., Files], given: Given, params_of: Callable[..., Params]
) -> None:
    counts = {f"{part}/{label}": 6 for part in ("train", "test") for label in "ab"}
    params = params_of(given({**pictures(**counts), "train/a/bad.png": b"", "cover.svg": b"<svg>"}))
    registry = Registry(params.store)
    receipt = stage.run(params, registry)
    left_out = {
        "SVG (not read)": {"count": 1, "example": "cover.svg"},
        "not readable": {"count": 1, "example": "train/a/bad.png"},
    }
    description = flywheel_files.read_json(registry.open(registry.resolve("mine_dataset")) / "dataset.json")
    assert description["skipped"] == 1
    assert description["files"] == receipt["metrics"]["files"] == {"used": 24, "left_out": left_out}
    shown = {name: reason for name, _, reason in facts.gather(params, registry).stages}
    left_out_text = "1 SVG (not read), such as cover.svg; 1 not readable, such as train/a/bad.png"
    assert shown["data"].endswith(f"; 24 image files used; left out: {left_out_text}")
