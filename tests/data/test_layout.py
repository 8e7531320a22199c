"""Splits and classes from names alone: every layout that people have is read, or refused with what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.data import DataError, label_table
from flywheel.data.layout import Layout, infer


def many(folder: str, count: int = 3) -> list[str]:
    return [f"{folder}/{number}.jpg".lstrip("/") for number in range(count)]


def split(train: str = "train", test: str = "test", **more: str) -> list[str]:
    """Return the names of two classes; `{}` in a folder is the class, at its end by default."""
    folders = [train, test, *more.values()]
    return [
        name
        for folder in folders
        for label in ("cat", "dog")
        for name in many(folder.format(label) if "{}" in folder else f"{folder}/{label}")
    ]


def counts(part: Mapping[str, str]) -> dict[str, int]:
    return {label: list(part.values()).count(label) for label in sorted(set(part.values()))}


def table(*rows: Iterable[object], delimiter: str = ",") -> bytes:
    return "\n".join(delimiter.join(map(str, row)) for row in rows).encode()


CATS_AND_DOGS = {"cat": 3, "dog": 3}
SPLIT = {
    "train and test": split(),
    "below other folders": split("pets/v1.0/train", "pets/v1.0/test"),
    "Training and Testing": split("Training", "Testing"),
    "in capitals": split("TRAIN", "TEST"),
    "prefixes, each twice": [*split("seg_train/seg_train", "seg_test/seg_test"), *many("seg_pred/seg_pred")],
    "training_set": split("dataset/training_set", "dataset/test_set"),
    "camel case": split("TrainImages", "TestImages"),
    "evaluation": split("training", "evaluation"),
    "train twice": split("train/train", "test/test"),
    "below one folder in each": split("train/indoor", "test/indoor"),
    "images": split("train/images", "test/images"),
    "classes first": split("{}/train", "{}/test"),
    "a wrapper called train": split("train/train", "train/test"),
    "what looks like train beside train": [*split(), *many("train_masks/cat"), *many("old train/cat")],
    "folders below the classes": split("train/{}/indoor", "test/{}/outdoor"),
}


@pytest.mark.parametrize("names", SPLIT.values(), ids=SPLIT)
def test_train_and_test_are_found(names: list[str]) -> None:
    found = infer(names, {})
    assert counts(found.train) == counts(found.test) == CATS_AND_DOGS
    assert not found.validation
    assert sum(map(len, found.left_out.values())) == len(names) - 12  # used, or counted


BARE = {
    "classes": split("", ""),
    "below one folder": split("flower_photos", "flower_photos"),
    "train alone": split("train", "train"),
    "train, and a test without classes": [*split("train", "train"), *many("test")],
    "train, and test/test": [*split("train", "train"), *many("test/test")],
    "test alone": split("test", "test"),
    "seg_train alone": split("seg_train/seg_train", "seg_train/seg_train"),
}


@pytest.mark.parametrize("names", BARE.values(), ids=BARE)
def test_without_a_labelled_test_folder_all_is_to_be_split(names: list[str]) -> None:
    found = infer(names, {})
    assert set(counts(found.train)) == {"cat", "dog"}
    assert not found.test
    unlabelled = [name for name in names if "/cat/" not in f"/{name}" and "/dog/" not in f"/{name}"]
    assert [name for left_out in found.left_out.values() for name in left_out] == unlabelled


def test_classes_may_be_called_like_splits() -> None:
    found = infer([*many("bus"), *many("train"), *many("car")], {})
    assert counts(found.train) == {"bus": 3, "car": 3, "train": 3}
    names = [f"{part}/{label}/1.jpg" for part in ("train", "test") for label in ("bullet_train", "test tube")]
    assert set(infer(names, {}).test.values()) == {"bullet_train", "test tube"}


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "seg_val"])
def test_a_validation_folder_is_the_validation_or_plays_the_test(name: str) -> None:
    found = infer(split(more=name), {})
    assert counts(found.validation) == counts(found.test) == CATS_AND_DOGS
    found = infer([*split("train", name), *many("test")], {})
    assert counts(found.test) == CATS_AND_DOGS
    assert not found.validation
    assert found.notes == ("there is no labelled test folder, so the validation images are the test images",)
    assert [*found.left_out.values()] == [many("test")]


def test_images_below_a_class_belong_to_it_and_a_class_alone_in_test_is_one() -> None:
    found = infer([*split("train/{}/a", "train/{}"), *many("test/cat/c")], {})
    assert counts(found.train) == {"cat": 6, "dog": 6}
    assert counts(found.test) == {"cat": 3}
    assert found.notes == ("images below a class belong to it, such as train/cat/a/0.jpg to cat",)


REFUSED = {
    "nothing": ([], "found no image; it must hold <class>/<image>"),
    "one class": (many("cat"), r"found 3 images in cat, only the class cat; .* of two classes at least"),
    "flat": (many(""), "found 3 images in the top folder, none in the folder of a class"),
    "flat splits": ([*many("train"), *many("test")], "found 3 images in train, 3 images in test, none"),
    "objects": ([*many("train/images"), *many("valid/images")], "in train/images, 3 .*, only the class images"),
    "the same set twice": (
        split("chest/train", "chest/test", a="chest/chest/train", b="chest/chest/test"),
        "found 2 data sets: chest, chest/chest; set data.path to one of them, or remove the others",
    ),
    "at the top and below": (split(a="data/train", b="data/test"), "found 2 data sets: the top folder, data;"),
    "two sets": (split("color/train", "color/test", a="grey/train", b="grey/test"), "found 2 data sets: color, grey;"),
    "a part of a set": ([*split("p1/train", "p1/test"), *many("p2/train/cat")], "found 2 data sets: p1, p2;"),
    "two sets without splits": (split("color", "grey"), r"found the same folders cat, dog in color, grey: two data"),
    "two train folders": (split("a_train", "b_train", a="test"), "found a_train, b_train side by side; keep one"),
    "many folders": ([name for i in range(9) for name in many(f"s{i}/train/a/b")], r"s0, s1, s2, s3 and 5 more;"),
}


@pytest.mark.parametrize(("names", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_with_what_was_found(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        infer(names, {})


# Tables of labels

ROWS = [(f"{number}.jpg", ("cat", "dog")[number % 2]) for number in range(6)]
FLAT = [name for name, _ in ROWS]
CSV = {
    "a header": table(("filename", "label"), *ROWS),
    "no header": table(*ROWS),
    "label first, other columns": table(("class_id", "Width", "Breed", "img"), *((0, 9, b, a) for a, b in ROWS)),
    "a class and its number": table(("file", "ClassId", "class_name"), *((a, 7, b) for a, b in ROWS)),
    "without suffixes": table(("id", "breed"), *((a.removesuffix(".jpg"), b) for a, b in ROWS)),
    "folders of another machine": table(("path", "y"), *((f"C:\\me\\pets\\{a}", b) for a, b in ROWS)),
    "semicolons": table(("name", "category"), *ROWS, delimiter=";"),
    "tabs": table(("name", "target"), *ROWS, delimiter="\t"),
    "a byte order mark": b"\xef\xbb\xbf" + table(("name", "label"), *ROWS),
    "rows of no image, rows twice": table(("name", "label"), *ROWS, ("gone.jpg", "fox"), ROWS[0], ("0.jpg", "")),
}


@pytest.mark.parametrize("csv", CSV.values(), ids=CSV)
@pytest.mark.parametrize("folder", ["", "images/", "data/train/"])
def test_a_table_labels_a_flat_folder(csv: bytes, folder: str) -> None:
    found = infer([folder + name for name in FLAT], {"labels.csv": csv})
    assert found.train == {folder + name: label for name, label in ROWS}
    assert not found.test
    assert "labels.csv" in found.notes[0]


def test_tables_of_flat_splits_label_each_its_own() -> None:
    names = [*many("train", 6), *many("test", 6)]
    tables = {"train.csv": table(("id", "label"), *ROWS), "test.csv": table(("id", "label"), *reversed(ROWS))}
    for found in (infer(names, tables), infer(names, {f"labels/{name}": data for name, data in tables.items()})):
        assert found.train == {f"train/{name}": label for name, label in ROWS}
        assert found.test == {f"test/{name}": label for name, label in ROWS}
    answers = {"sample_submission.csv": table(("id", "label"), *ROWS), "train.csv": tables["train.csv"]}
    assert not infer(names, answers).test  # a contest's form has examples, no labels


def test_a_column_of_the_table_may_tell_the_split() -> None:
    rows = [(name, label, ("train", "TEST", "valid")[number // 2]) for number, (name, label) in enumerate(ROWS)]
    found = infer(FLAT, {"all.csv": table(("file", "label", "Data set"), *rows)})
    assert [len(part) for part in (found.train, found.test, found.validation)] == [2, 2, 2]


def test_folders_for_training_and_a_table_for_testing() -> None:
    """As GTSRB has it."""
    rows = [(30, 30, number % 2, f"Test/{number}.png") for number in range(4)]
    names = [*many("Train/0"), *many("Train/1"), *(row[3] for row in rows)]
    found = infer(names, {"Test.csv": table(("Width", "Height", "ClassId", "Path"), *rows)})
    assert counts(found.train) == {"0": 3, "1": 3}
    assert counts(found.test) == {"0": 2, "1": 2}


BAD_TABLES = {
    "no label": (
        table(("file", "a", "b"), *((a, 1, 2) for a, _ in ROWS)),
        "columns file, a, b: call the one .* `label`",
    ),
    "two labels": (table(*ROWS, ("0.jpg", "fox")), r"t\.csv labels 0\.jpg fox and cat"),
    "no table": (b"\0\xff" * 100, "none in the folder of a class"),
    "other images": (table(("file", "label"), ("x.jpg", "cat")), "none in the folder of a class"),
    "empty": (b"", "none in the folder of a class"),
}


@pytest.mark.parametrize(("csv", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_table_that_tells_nothing_is_named(csv: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        infer(FLAT, {"t.csv": csv})


def test_a_table_beside_folders_is_ignored_if_it_says_the_same_and_refused_if_not() -> None:
    names = [f"part{number % 3}/{name}" for number, (name, _) in enumerate(ROWS)]
    same = table(("file", "label"), *((name, name[:5].upper()) for name in names))
    assert set(infer(names, {"t.csv": same}).train.values()) == {"part0", "part1", "part2"}
    with pytest.raises(DataError, match=r"folders of classes, part0, .* other labels in label of t\.csv; remove the"):
        infer(names, {"t.csv": table(("file", "label"), *ROWS)})


# Any names

FOLDERS = st.sampled_from(["train", "test", "val", "Training", "seg_test", "cat", "dog", "a", "images", "train.zip"])
NAMES = st.lists(st.lists(FOLDERS, max_size=4), max_size=12)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(NAMES, st.booleans())
def test_every_image_is_used_once_or_counted_once(folders: list[list[str]], labelled: bool) -> None:
    names = ["/".join([*parts, f"{number}.jpg"]) for number, parts in enumerate(folders)]
    tables = {"t.csv": table(("file", "label"), *((name, len(name) % 2) for name in names))} if labelled else {}
    try:
        found: Layout = infer(names, tables)
    except DataError as error:
        assert str(error).startswith("found ")
        return
    parts = (found.train, found.validation, found.test, *found.left_out.values())
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert len(set(found.train.values())) > 1


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_are_a_table_or_none(data: bytes) -> None:
    assert label_table.read({"t.csv": data}, ["1.jpg"]).labels.keys() <= {"1.jpg"}
