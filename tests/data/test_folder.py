"""Images of people's own: a directory and its archives are one thing, nothing is lost silently, nothing is written."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flywheel import params as parameters
from flywheel.data import DataError, folder, sources
from flywheel.data.dataset import Split

Encode = Callable[..., bytes]
Pictures = Callable[..., NDArray[np.uint8]]
Files = dict[str, bytes]
Given = Callable[..., Path]
FORMS = ("directory", "tar", "tar.gz", "zip")


@pytest.fixture
def layout(encode: Encode, noise_pictures: Pictures) -> Files:
    """Two classes with three training and two test images each, as path -> bytes, in the order of the paths."""
    pictures = iter(noise_pictures(10))
    names = [f"{split}/{label}/{i}.png" for split, n in (("test", 2), ("train", 3)) for label in "ab" for i in range(n)]
    return {name: encode(next(pictures)) for name in names}


def write(form: str, files: Mapping[str, bytes], path: Path) -> Path:
    """Write files as a directory or an archive of exactly these names, in this order."""
    if form == "directory":
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path
    path = path.with_name(f"{path.name}.{form}")
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if form == "tar.gz" else "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """Return a function that writes files as `mine` (a directory, or .tar, .tar.gz, .zip) in a folder of its own."""

    def written(files: Mapping[str, bytes], form: str = "directory") -> Path:
        return write(form, files, Path(tempfile.mkdtemp(dir=tmp_path)) / "mine")

    return written


class Read(NamedTuple):
    class_names: tuple[str, ...]
    train: Split
    test: Split
    skipped: tuple[str, ...]


def read(path: Path, *, skip_corrupt: bool = False) -> Read:
    return Read(*folder.read(path, 8, skip_corrupt))


def assert_same(one: Read, other: Read) -> None:
    assert one.class_names == other.class_names
    assert one.skipped == other.skipped
    for split, expected in ((one.train, other.train), (one.test, other.test)):
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_array_equal(split.labels, expected.labels)
        np.testing.assert_array_equal(split.ids, expected.ids)


# What is read


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_decoded_files_in_the_order_of_their_names(form: str, layout: Files, given: Given) -> None:
    found = read(given(layout, form))
    pixels = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in layout.items()}
    assert found.class_names == ("a", "b")
    np.testing.assert_array_equal(found.train.images, [pixels[n] for n in sorted(pixels) if n.startswith("train")])
    np.testing.assert_array_equal(found.test.images, [pixels[n] for n in sorted(pixels) if n.startswith("test")])
    np.testing.assert_array_equal(found.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(found.test.labels, [0, 0, 1, 1])
    assert found.train.images.dtype == found.test.images.dtype == np.uint8
    assert found.train.labels.dtype == found.test.labels.dtype == np.int64
    assert found.skipped == ()


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("seed", range(3))
def test_the_order_in_an_archive_does_not_matter(form: str, seed: int, layout: Files, given: Given) -> None:
    names = np.random.default_rng(seed).permutation(list(layout))
    shuffled = given({str(name): layout[name] for name in names}, form)
    assert_same(read(shuffled), read(given(layout)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("top", ["pets", "pets/v1.0/data", "./pets"])
def test_the_layout_may_lie_below_other_folders(form: str, top: str, layout: Files, given: Given) -> None:
    nested = given({f"{top}/{name}": data for name, data in layout.items()}, form)
    assert_same(read(nested), read(given(layout)))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_image_is_passed_over(form: str, layout: Files, given: Given) -> None:
    other = {
        "README.md": b"read me",
        "train/a/notes.txt": b"not an image",
        "train/a/.DS_Store": b"\0\0",
        "train/a/._0.png": b"what macOS leaves beside each file",
        "__MACOSX/train/a/._0.png": b"and in each archive",
        "train/cover.png": b"in no class",
        "cover.png": b"in no split",
        "extra/a/0.png": b"in neither split",
    }
    path = given({**other, **layout}, form)
    assert_same(read(path), read(given(layout)))


def test_suffixes_may_be_in_capitals_and_formats_mixed(
    encode: Encode, noise_pictures: Pictures, layout: Files, given: Given
) -> None:
    pictures = noise_pictures(3)
    mixed = {
        "train/c/1.PNG": encode(pictures[0]),
        "train/c/2.Bmp": encode(pictures[1], "BMP"),
        "train/c/3.webp": encode(pictures[2], "WEBP", lossless=True),
    }
    found = read(given({**layout, **mixed}))
    assert found.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(found.train.images[found.train.labels == 2], pictures)


@pytest.mark.parametrize("form", FORMS)
def test_two_files_of_one_name_below_different_folders_are_not_silently_one(
    form: str, encode: Encode, noise_pictures: Pictures, layout: Files, given: Given
) -> None:
    files = {f"part1/{name}": data for name, data in layout.items()}
    files["part2/train/a/0.png"] = encode(noise_pictures(1)[0])
    with pytest.raises(DataError, match=r"train/a/0\.png"):
        read(given(files, form))


@pytest.mark.parametrize("corrupt_first", [True, False])
def test_two_files_of_one_name_are_two_also_when_one_is_corrupt(
    corrupt_first: bool, layout: Files, given: Given
) -> None:
    twins = (b"bad", layout["train/a/0.png"]) if corrupt_first else (layout["train/a/0.png"], b"bad")
    files = {**layout, "part1/train/a/9.png": twins[0], "part2/train/a/9.png": twins[1]}
    with pytest.raises(DataError, match=r"train/a/9\.png"):
        read(given(files, "zip"), skip_corrupt=True)


@pytest.mark.parametrize("kind", ["hard", "symbolic"])
def test_linked_images_survive_archiving(kind: str, layout: Files, given: Given, tmp_path: Path) -> None:
    path = given(layout)
    link = path / "train" / "b" / "linked.png"
    if kind == "hard":
        link.hardlink_to(path / "train" / "a" / "0.png")
    else:
        link.symlink_to("../a/0.png")
    with tarfile.open(tmp_path / "mine.tar", "w") as archive:
        archive.add(path, "mine")
    found = read(path)
    assert len(found.train.images) == 7
    assert_same(read(tmp_path / "mine.tar"), found)


# Corrupt files


@pytest.fixture
def corrupt(layout: Files) -> Files:
    """The layout with two more files that cannot be read."""
    return {**layout, "train/a/empty.png": b"", "test/b/text.jpg": b"not a picture"}


@pytest.mark.parametrize("form", FORMS)
def test_corrupt_files_are_refused_by_name_or_left_out_with_skip_corrupt(
    form: str, corrupt: Files, layout: Files, given: Given, said: list[str]
) -> None:
    path, clean = given(corrupt, form), read(given(layout), skip_corrupt=True)
    assert (clean.skipped, said) == ((), [])
    with pytest.raises(DataError) as refused:
        read(path)
    reasons = ("test/b/text.jpg: not an image", "train/a/empty.png: the file is empty")
    for part in ("2 files", *reasons, "data.skip_corrupt=true"):
        assert part in str(refused.value)
    found = read(path, skip_corrupt=True)
    assert [line.split(" in one")[0] for line in found.skipped] == list(reasons)
    assert len(said) == 1
    assert said[0].startswith(f"data: left out 2 corrupt files (data.skip_corrupt): {reasons[0]}")
    assert said[0].endswith(f"; {reasons[1]}")
    assert_same(found._replace(skipped=()), clean)


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


def test_what_has_no_unambiguous_form_is_named_with_its_reason(
    encode: Encode, noise_pictures: Pictures, layout: Files, given: Given
) -> None:
    first, second = (Image.fromarray(picture) for picture in noise_pictures(2))
    odd = {
        "train/a/lab.tif": encode(Image.new("LAB", (8, 8)), "TIFF"),
        "train/a/pages.tif": encode(first, "TIFF", save_all=True, append_images=[second]),
        "train/b/moving.gif": encode(first, "GIF", save_all=True, append_images=[second]),
        "test/a/wide.png": encode(Image.new("1", (8_001, 8_001)), "PNG"),
    }
    fine = {
        "train/a/tiny.png": encode(np.full((1, 1, 3), 7, np.uint8)),
        "train/b/clear.png": encode(Image.new("P", (8, 8)), "PNG", transparency=0),
    }
    path = given({**layout, **odd, **fine}, "zip")
    with pytest.raises(DataError) as refused:
        read(path)
    message = str(refused.value)
    for part in (
        "4 files cannot be read",
        "train/a/lab.tif: CIELAB",
        "train/a/pages.tif: 2 pages",
        "train/b/moving.gif: animated",
        "test/a/wide.png: 8001 x 8001 pixels",
    ):
        assert part in message
    found = read(path, skip_corrupt=True)
    assert (len(found.skipped), len(found.train.images)) == (4, 8)
    names = sorted(name for name in {**layout, **fine} if name.startswith("train"))
    assert (found.train.images[names.index("train/b/clear.png")] == 255).all()  # transparency is laid on white
    assert (found.train.images[names.index("train/a/tiny.png")] == 7).all()


def test_a_pipe_and_a_device_in_a_directory_are_not_read(layout: Files, given: Given, tmp_path: Path) -> None:
    """Either would be read for ever."""
    path = given(layout)
    os.mkfifo(path / "train" / "a" / "pipe.png")
    (path / "train" / "a" / "zero.png").symlink_to("/dev/zero")
    assert folder.content_digest(path, tmp_path / "cache.json")
    with pytest.raises(DataError, match=r"2 files cannot be read: train/a/pipe\.png: not a file"):
        read(path)
    assert len(read(path, skip_corrupt=True).train.images) == 6
    for odd in (Path("/dev/zero"), path / "train" / "a" / "pipe.png"):
        with pytest.raises(DataError, match="no such directory or archive"):
            folder.content_digest(odd, tmp_path / "cache.json")


# Names


NAMES = ("кошка", "собака", "قط", "کتاب‌ها", "猫", "🐈", "👨‍👩‍👧", "Ünïcode straße", "a.b c'd\"e$f$", "%s{0}")


@pytest.mark.parametrize("form", FORMS)
def test_names_may_be_in_any_alphabet(
    form: str, encode: Encode, noise_pictures: Pictures, given: Given, tmp_path: Path
) -> None:
    pictures = noise_pictures(3 * len(NAMES))
    files = {}
    for index, name in enumerate(NAMES):
        for number, split in enumerate(("train", "train", "test")):
            files[f"{split}/{name}/{name} {number}.png"] = encode(pictures[3 * index + number])
    path = given(files, form)
    found = read(path)
    assert found.class_names == tuple(sorted(NAMES))
    assert folder.content_digest(path, tmp_path / "cache.json")
    cat = found.class_names.index("🐈")
    np.testing.assert_array_equal(found.test.images[found.test.labels == cat], [pictures[3 * NAMES.index("🐈") + 2]])


@pytest.mark.parametrize("form", FORMS)
def test_one_name_in_two_unicode_forms_is_one_class(
    form: str, encode: Encode, noise_pictures: Pictures, layout: Files, given: Given
) -> None:
    """macOS writes é as e and an accent (NFD), others as one character (NFC)."""
    composed, split_up = "caf\u00e9", "cafe\u0301"
    pictures = [encode(picture) for picture in noise_pictures(3)]
    files = {**layout, f"train/{composed}/1.png": pictures[0], f"train/{split_up}/2.png": pictures[1]}
    found = read(given({**files, f"test/{split_up}/1.png": pictures[2]}, form))
    assert found.class_names == ("a", "b", composed)
    assert ((found.train.labels == 2).sum(), (found.test.labels == 2).sum()) == (2, 1)
    files[f"train/{split_up}/1.png"] = pictures[2]
    with pytest.raises(DataError, match=rf"two files end in train/{composed}/1\.png"):
        read(given(files, form))


@pytest.mark.parametrize(
    "name", ["two\nlines", "bell\a", "escape\x1b[31m", "line\u2028end", b"\xff\xfe".decode(errors="surrogateescape")]
)
@pytest.mark.parametrize("form", ["directory", "tar"])
def test_a_name_that_cannot_be_shown_is_refused_in_one_sentence(
    form: str, name: str, layout: Files, given: Given, tmp_path: Path
) -> None:
    for path_inside in (f"train/{name}/0.png", f"train/a/{name}.png"):
        path = given({**layout, path_inside: layout["train/a/0.png"]}, form)
        with pytest.raises(DataError, match="has characters that cannot be shown; rename it") as refused:
            read(path)
        str(refused.value).encode()
        assert str(refused.value).isprintable()
        assert folder.content_digest(path, tmp_path / "cache.json")


# Links in a directory


@pytest.fixture
def linked(layout: Files, tmp_path: Path) -> Path:
    """A directory that is a link each for a file and a class, with loops: what is walked leads back and outside."""
    store = write("directory", layout, tmp_path / "store")
    mine = tmp_path / "mine"
    for split in ("train", "test"):
        (mine / split / "a").mkdir(parents=True)
        for file in (store / split / "a").iterdir():
            (mine / split / "a" / file.name).symlink_to(file)
        (mine / split / "b").symlink_to(store / split / "b")
    (mine / "train" / "loop").symlink_to("..")
    (mine / "again").symlink_to("train")
    (store / "train" / "b" / "back").symlink_to(mine)
    return mine


def test_links_out_of_a_directory_are_followed_and_loops_are_not(
    linked: Path, layout: Files, given: Given, tmp_path: Path
) -> None:
    found = read(linked)
    assert_same(found, read(given(layout)))
    before = folder.content_digest(linked, tmp_path / "cache.json")
    (tmp_path / "store" / "train" / "b" / "0.png").write_bytes(layout["train/a/0.png"])
    assert folder.content_digest(linked, tmp_path / "cache.json") != before


# Bombs


def test_a_zip_that_declares_huge_files_is_refused_before_one_is_read(layout: Files, given: Given) -> None:
    path = given(layout, "zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"train/a/bomb{number}.bmp", bytes(folder.MAX_FILE_BYTES // 2))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match="unpacks to more than 100 times its size, as decompression bombs do") as bomb:
        read(path, skip_corrupt=True)
    assert "set data.path to the directory" in str(bomb.value)


def test_a_tar_that_unpacks_to_much_is_refused_before_it_is_unpacked(layout: Files, tmp_path: Path) -> None:
    """Also where the bomb is no image: to pass over it would unpack it."""
    path = tmp_path / "mine.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("zeros")
        member.size = 4 * folder.MAX_FILE_BYTES
        with Path("/dev/zero").open("rb") as zeros:
            archive.addfile(member, zeros)
        for name, data in layout.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match="as decompression bombs do"):
        read(path)


def test_many_small_files_are_read_and_more_than_the_memory_holds_are_refused(
    encode: Encode, layout: Files, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    dot = encode(np.zeros((1, 1, 3), np.uint8))
    path = given({**layout, **{f"train/a/{n}-dot.png": dot for n in range(5_000)}}, "zip")
    assert len(read(path).train.images) == 5_006
    monkeypatch.setattr(folder, "_memory_bytes", lambda: 1_000 * 3 * 8 * 8 * 3)
    with pytest.raises(DataError, match=r"more than 1,000 images of 8 pixels do not fit .* lower data\.image_size"):
        read(path)


def test_a_file_too_large_is_corrupt_not_read_whole(
    layout: Files, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(len(data) for data in layout.values())
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", largest)
    large = {**layout, "train/a/large.png": layout["train/a/0.png"] + bytes(largest)}
    for form in FORMS:
        with pytest.raises(DataError, match=r"1 files cannot be read: train/a/large\.png: larger than "):
            read(given(large, form))


def test_a_link_to_nothing_is_a_corrupt_file(layout: Files, given: Given, tmp_path: Path) -> None:
    path = given(layout)
    (path / "train" / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"train/a/gone\.png"):
        read(path)
    assert len(read(path, skip_corrupt=True).skipped) == 1
    assert folder.content_digest(path, tmp_path / "cache.json")


# Wrong layouts


def without(files: Files, part: str) -> Files:
    return {name: data for name, data in files.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: without(files, "/b/"), r"found 1 classes.*train/<class>/<image>"),
        (lambda files: {"a/1.png": files["train/a/0.png"]}, r"found 0 classes.*test/<class>/<image>"),
        (lambda files: {**files, "test/zebra/1.png": files["test/a/0.png"]}, "test/zebra has no train/zebra"),
        (lambda files: {**files, "train/c/0.png": b"bad"}, "train/c has no image that can be read"),
        (lambda files: without(files, "test/"), "found 0 test images"),
        (lambda files: {**without(files, "test/"), "test/a/0.png": files["test/a/0.png"]}, "found 1 test images"),
    ],
    ids=[
        "one class",
        "no layout",
        "a class not trained",
        "a class of corrupt files",
        "no test image",
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
    assert said == ["data: no test image of c: its accuracy will not be measured"]


def add_folder(form: str, path: Path, name: str) -> None:
    """Add an empty folder to what `write` wrote."""
    if form == "directory":
        (path / name).mkdir()
    elif form == "zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.mkdir(name)
    else:
        with tarfile.open(path, "a") as archive:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE
            archive.addfile(member)


@pytest.mark.parametrize("form", ["directory", "tar", "zip"])
def test_an_empty_class_is_named_and_not_silently_no_class(form: str, layout: Files, given: Given) -> None:
    path = given(layout, form)
    add_folder(form, path, "test/c")  # a class that nobody asked for
    add_folder(form, path, "train/.cache")
    assert read(path).class_names == ("a", "b")
    add_folder(form, path, "train/c")
    with pytest.raises(DataError, match="train/c has no image that can be read; add one or remove the folder"):
        read(path)


def test_a_path_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    for name in ("nothing", "nothing.zip", "nothing.tar.gz"):
        with pytest.raises(DataError, match=rf"{name}: no such directory or archive; set data\.path"):
            read(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name}: no such directory or archive; set data\.path"):
            folder.content_digest(tmp_path / name, tmp_path / "cache.json")


@pytest.mark.parametrize("data", [b"", b"hello", bytes(2000), b"PK\x03\x04 and no more", b"\x1f\x8b and no more"])
def test_a_file_that_is_no_archive_is_one_clear_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"mine\.zip: "):
        read(tmp_path / "mine.zip")


# Archives that are damaged or hostile


@pytest.mark.parametrize("form", ["tar.gz", "zip"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_an_archive_cut_short_is_refused(form: str, part: float, layout: Files, given: Given) -> None:
    path = given(layout, form)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(DataError, match="not a readable"):
        read(path)


@pytest.mark.parametrize("damage", ["a wrong header", "a header cut short"])
def test_a_damaged_tar_is_refused_and_not_read_in_part(damage: str, layout: Files, given: Given) -> None:
    path = given(layout, "tar")
    data = bytearray(path.read_bytes())
    header = data.index(b"train/b/2.png")
    if damage == "a wrong header":
        data[header] ^= 1
    else:
        del data[header + 100 :]
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a readable"):
        read(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_zip_is_read_or_refused_whatever_its_compression(
    compression: int, encode: Encode, layout: Files, tmp_path: Path
) -> None:
    path = tmp_path / "mine.zip"
    soft = encode(np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8), "BMP")  # what compresses well
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in layout:
            archive.writestr(name.replace(".png", ".bmp"), soft)
    data = path.read_bytes()
    refused = 0
    for position in range(40, len(data), max(len(data) // 60, 1)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        try:
            read(path, skip_corrupt=True)
        except DataError:
            refused += 1
    assert refused


@pytest.mark.parametrize("form", FORMS[1:])
def test_names_in_an_archive_write_nothing_anywhere(
    form: str, layout: Files, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = layout["train/a/0.png"]
    outside = tmp_path / "outside"
    hostile = {
        **layout,
        "../../../train/a/up.png": picture,
        "train/../../train/a/sideways.png": picture,
        f"{outside}/train/a/absolute.png": picture,
    }
    path = given(hostile, form)
    working = tmp_path / "one" / "two" / "three"
    working.mkdir(parents=True)
    monkeypatch.chdir(working)
    before = sorted(tmp_path.rglob("*"))
    found = read(path)
    assert len(found.train.images) == 9  # read as images like others, or left out: written they are not
    assert sorted(tmp_path.rglob("*")) == before


def test_links_and_devices_in_a_tar_are_not_followed_outside(layout: Files, given: Given, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(layout["train/a/0.png"])
    path = given(layout, "tar")
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("train/a/symbolic.png", tarfile.SYMTYPE, str(secret)),
            ("train/a/hard.png", tarfile.LNKTYPE, str(secret)),
            ("train/a/pipe.png", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    assert len(read(path, skip_corrupt=True).train.images) == 6
    assert sorted(tmp_path.rglob("*")) == before


# The digest of the content


@pytest.fixture(params=FORMS)
def mine(request: pytest.FixtureRequest, layout: Files, given: Given) -> Path:
    """The layout in each form."""
    return given(layout, request.param)


def digest(path: Path) -> str:
    """The digest without what an earlier call remembers."""
    cache = path.parent / "fresh.json"
    cache.unlink(missing_ok=True)
    return str(folder.content_digest(path, cache))


def a_file_of(path: Path) -> Path:
    return path / "train" / "a" / "0.png" if path.is_dir() else path


def test_the_digest_changes_with_a_byte_and_not_by_touching_moving_or_copying(mine: Path, tmp_path: Path) -> None:
    before = digest(mine)
    file = a_file_of(mine)
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert digest(mine) != before  # one byte counts
    file.write_bytes(data)
    os.utime(file, (1, 1))
    assert digest(mine) == before
    moved = tmp_path / "elsewhere" / f"renamed{mine.suffix}"
    moved.parent.mkdir()
    shutil.move(mine, moved)
    assert digest(moved) == before
    copy = tmp_path / f"copy{mine.suffix}"
    if moved.is_dir():
        shutil.copytree(moved, copy)
    else:
        shutil.copy(moved, copy)
    assert digest(copy) == before


def test_the_digest_changes_with_names_and_with_files_more_or_fewer(layout: Files, given: Given) -> None:
    path = given(layout)
    digests = [digest(path)]
    moved = path / "train" / "b" / "-2.png"  # another class, at the same index in the order of all files
    (path / "train" / "a" / "2.png").rename(moved)
    digests.append(digest(path))
    moved.unlink()
    digests.append(digest(path))
    (path / "train" / "a" / "more.png").write_bytes(b"")
    digests.append(digest(path))
    assert len(set(digests)) == 4


def test_the_digest_does_not_depend_on_the_order_in_which_files_were_made(layout: Files, given: Given) -> None:
    reverse = dict(reversed(layout.items()))
    one, other = given(layout), given(reverse)
    assert digest(one) == digest(other)


def test_the_digest_is_kept_while_sizes_and_times_stay(mine: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    before = folder.content_digest(mine, cache)
    file = a_file_of(mine)
    status = file.stat()

    def rewritten(content: bytes, later_ns: int) -> str:
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + later_ns))
        return folder.content_digest(mine, cache)

    assert rewritten(bytes(status.st_size), 0) == before  # the bytes were not read again
    assert rewritten(bytes(status.st_size), 1_000_000_000) != before
    assert rewritten(bytes(status.st_size + 1), 0) != before


def test_the_cached_digest_of_one_path_is_not_given_for_another(mine: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    before = folder.content_digest(mine, cache)
    other = tmp_path / f"other{mine.suffix}"
    if mine.is_dir():
        shutil.copytree(mine, other)
    else:
        shutil.copy2(mine, other)
    status = a_file_of(mine).stat()
    a_file_of(other).write_bytes(bytes(status.st_size))
    os.utime(a_file_of(other), ns=(status.st_atime_ns, status.st_mtime_ns))
    assert folder.content_digest(other, cache) != before
    assert folder.content_digest(mine, cache) == before


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "{}", '{"stamp": 1}'])
def test_a_damaged_cache_is_no_obstacle(damage: str, layout: Files, given: Given, tmp_path: Path) -> None:
    path = given(layout, "zip")
    before = digest(path)
    cache = tmp_path / "cache.json"
    cache.write_text(damage)
    assert folder.content_digest(path, cache) == before


# As a source


@pytest.fixture
def folder_data(make_params: Callable[..., Any], layout: Files, given: Given) -> Callable[..., parameters.Data]:
    """The section `data` for the layout with overrides."""
    path = given(layout, "zip")

    def make(overrides: str = "") -> parameters.Data:
        data = f"data.source=folder data.name=mine data.path={path} data.image_size=8 {overrides}"
        section: parameters.Data = make_params(data).data
        return section

    return make


def test_the_source_gives_the_folders_images_under_their_index(
    folder_data: Callable[..., parameters.Data], tmp_path: Path
) -> None:
    found = read(Path(str(folder_data().path)))
    source = sources.load(folder_data(), tmp_path / "cache")
    assert source.class_names == found.class_names
    np.testing.assert_array_equal(source.train.images, found.train.images)
    np.testing.assert_array_equal(source.train.ids, np.arange(6))
    np.testing.assert_array_equal(source.test.images, found.test.images[source.test.ids])
    np.testing.assert_array_equal(source.test.labels, found.test.labels[source.test.ids])
    assert sorted(source.test.ids) == [0, 1, 2, 3]


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.5, 2), (0.8, 3), (0.99, 3)])
def test_the_test_images_are_cut_by_test_fraction_and_neither_part_is_empty(
    fraction: float, count: int, folder_data: Callable[..., parameters.Data]
) -> None:
    assert sources.from_folder(folder_data(f"data.test_fraction={fraction}")).test_count == count


def test_the_order_of_the_test_images_is_drawn_by_the_seed(folder_data: Callable[..., parameters.Data]) -> None:
    orders = [sources.from_folder(folder_data(f"data.seed={seed}")).test.ids.tolist() for seed in (0, 0, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1


def test_skipped_files_reach_the_source(
    make_params: Callable[..., Any], corrupt: Files, given: Given, said: list[str]
) -> None:
    path = given(corrupt, "tar")
    data = make_params(f"data.source=folder data.path={path} data.skip_corrupt=true").data
    assert len(sources.from_folder(data).skipped) == 2
    assert len(said) == 1
