"""Directories and archives: they are one thing, damaged and hostile ones are refused, and nothing is written."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from own_images import FORMS, assert_same, encode, read, write

from flywheel.data import DataError, source_files

Files = dict[str, bytes]
Given = Callable[..., Path]


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


def test_the_backslashes_of_windows_separate_folders(layout: Files, given: Given) -> None:
    """In a zip, and in the names of files that a tool unpacked from one."""
    windows = {name.replace("/", "\\"): data for name, data in layout.items()}
    for form in ("zip", "directory"):
        assert_same(
            read(given({"train\\a\\": b"", **windows} if form == "zip" else windows, form)), read(given(layout))
        )


def test_a_pipe_and_a_device_in_a_directory_are_not_read(layout: Files, given: Given, tmp_path: Path) -> None:
    """Either would be read for ever."""
    path = given(layout)
    os.mkfifo(path / "train" / "a" / "pipe.png")
    (path / "train" / "a" / "zero.png").symlink_to("/dev/zero")
    assert source_files.content_digest(path, tmp_path / "cache.json")
    with pytest.raises(DataError, match=r"2 files cannot be read: train/a/pipe\.png: not a file"):
        read(path)
    assert len(read(path, skip_corrupt=True).train.images) == 6
    for odd in (Path("/dev/zero"), path / "train" / "a" / "pipe.png"):
        with pytest.raises(DataError, match="no such directory or archive"):
            source_files.content_digest(odd, tmp_path / "cache.json")


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
        assert source_files.content_digest(path, tmp_path / "cache.json")


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
    before = source_files.content_digest(linked, tmp_path / "cache.json")
    (tmp_path / "store" / "train" / "b" / "0.png").write_bytes(layout["train/a/0.png"])
    assert source_files.content_digest(linked, tmp_path / "cache.json") != before


def test_a_link_to_nothing_is_a_corrupt_file(layout: Files, given: Given, tmp_path: Path) -> None:
    path = given(layout)
    (path / "train" / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"train/a/gone\.png"):
        read(path)
    assert len(read(path, skip_corrupt=True).skipped) == 1
    assert source_files.content_digest(path, tmp_path / "cache.json")


# Bombs


def test_a_zip_that_declares_huge_files_is_refused_before_one_is_read(layout: Files, given: Given) -> None:
    path = given(layout, "zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"train/a/bomb{number}.bmp", bytes(source_files.MAX_FILE_BYTES // 2))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match="unpacks to more than 100 times its size, as decompression bombs do") as bomb:
        read(path, skip_corrupt=True)
    assert "set data.path to the directory" in str(bomb.value)


def test_a_tar_that_unpacks_to_much_is_refused_before_it_is_unpacked(layout: Files, tmp_path: Path) -> None:
    """Also where the bomb is no image: to pass over it would unpack it."""
    path = tmp_path / "mine.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("zeros")
        member.size = 4 * source_files.MAX_FILE_BYTES
        with Path("/dev/zero").open("rb") as zeros:
            archive.addfile(member, zeros)
        for name, data in layout.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match="as decompression bombs do"):
        read(path)


def test_a_file_too_large_is_corrupt_not_read_whole(
    layout: Files, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(len(data) for data in layout.values())
    monkeypatch.setattr(source_files, "MAX_FILE_BYTES", largest)
    large = {**layout, "train/a/large.png": layout["train/a/0.png"] + bytes(largest)}
    for form in FORMS:
        with pytest.raises(DataError, match=r"1 files cannot be read: train/a/large\.png: larger than "):
            read(given(large, form))


# What is no archive

NOT_THERE = "no such directory or archive; set data.path"
OTHER_KIND = "is not read; set data.path to a directory (unpack an archive), a .tar, .tar.gz or .zip"
DAMAGED = "not a readable directory, .tar, .tar.gz or .zip"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        *((name, None, NOT_THERE) for name in ("nothing", "nothing.zip", "nothing.tar.gz")),
        *(("mine.zip", data, DAMAGED) for data in (b"", b"hello", b"PK\x03\x04 no", b"\x1f\x8b no")),
        ("mine.zip", bytes(2000), "found no image"),  # a tar without files
        ("mine.7z", b"7z\xbc\xaf\x27\x1c", f".7z {OTHER_KIND}"),
        ("mine.tar.zst", b"\x28\xb5\x2f\xfd", f".zst {OTHER_KIND}"),
        ("mine.rar", b"Rar!\x1a\x07", f".rar {OTHER_KIND}"),
        ("mine.tar.lz4", b"\x04\x22\x4d\x18", f".lz4 {OTHER_KIND}"),
        ("mine.csv", b"a.jpg,cat", f".csv {OTHER_KIND}"),
        ("mine.parquet", b"PAR1", f".parquet {OTHER_KIND}"),
        ("mine.jpg", b"\xff\xd8\xff", f".jpg {OTHER_KIND}"),
    ],
)
def test_a_file_of_another_kind_is_named_in_one_line(
    name: str, data: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path}: {message}")
    assert "\n" not in str(refused.value)
    if data is None:
        with pytest.raises(DataError, match=f"{name}: {NOT_THERE}"):
            source_files.content_digest(path, tmp_path / "cache.json")


@pytest.mark.parametrize("names", [("train.zip", "test.7z"), ("train.tar.gz",)])
def test_archives_in_a_folder_are_to_be_unpacked(names: tuple[str, ...], given: Given) -> None:
    with pytest.raises(DataError, match=r"found no image but .*train\..*; unpack it and try again"):
        read(given(dict.fromkeys(names, b"packed")))


@pytest.mark.parametrize(("form", "closed"), [("directory", "train/a"), ("directory", "."), ("zip", "")])
def test_what_may_not_be_read_is_named_and_not_left_out_silently(form: str, closed: str, layout: Files) -> None:
    """A hidden folder may be closed, such as lost+found at the top of a disk."""
    nobody = 65534 if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # which another user can reach, unlike pytest's
        Path(name).chmod(0o755)
        path = write(form, {**layout, "lost+found/inner/": b""} if form == "directory" else layout, Path(name) / "mine")
        if form == "directory":
            (path / "lost+found").chmod(0)
        mode = (path / closed).stat().st_mode
        before = os.geteuid()
        try:
            os.seteuid(nobody)
            read(path)
            os.seteuid(before)
            (path / closed).chmod(0)
            os.seteuid(nobody)
            with pytest.raises(DataError, match=rf"{path / closed}: cannot be read \(Permission denied\); change its"):
                read(path)
        finally:
            os.seteuid(before)
            (path / closed).chmod(mode)


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
    compression: int, layout: Files, tmp_path: Path
) -> None:
    path = tmp_path / "mine.zip"
    soft = encode(np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8), "BMP")  # what compresses well
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in layout:
            archive.writestr(name.replace("0.png", "ü.bmp").replace(".png", ".bmp"), soft)
    data, accent = path.read_bytes(), "ü".encode()
    refused = 0
    for position in {data.index(accent), data.rindex(accent), *range(40, len(data), max(len(data) // 60, 1))}:
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
    outside = {"../../../train/a/up.png": picture, "train/../../train/a/sideways.png": picture}
    path = given({**layout, **outside, "/train/a/absolute.png": picture}, form)
    working = tmp_path / "one" / "two" / "three"
    working.mkdir(parents=True)
    monkeypatch.chdir(working)
    before = sorted(tmp_path.rglob("*"))
    found = read(path)
    assert len(found.train.images) == 7
    left_out = {"names that lead outside": {"count": 2, "example": "../../../train/a/up.png"}}
    assert found.files == {"used": 11, "left_out": left_out}
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
    return str(source_files.content_digest(path, cache))


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
    before = source_files.content_digest(mine, cache)
    file = a_file_of(mine)
    status = file.stat()

    def rewritten(content: bytes, later_ns: int) -> str:
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + later_ns))
        return source_files.content_digest(mine, cache)

    assert rewritten(bytes(status.st_size), 0) == before  # the bytes were not read again
    assert rewritten(bytes(status.st_size), 1_000_000_000) != before
    assert rewritten(bytes(status.st_size + 1), 0) != before


def test_the_cached_digest_of_one_path_is_not_given_for_another(mine: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    before = source_files.content_digest(mine, cache)
    other = tmp_path / f"other{mine.suffix}"
    if mine.is_dir():
        shutil.copytree(mine, other)
    else:
        shutil.copy2(mine, other)
    status = a_file_of(mine).stat()
    a_file_of(other).write_bytes(bytes(status.st_size))
    os.utime(a_file_of(other), ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source_files.content_digest(other, cache) != before
    assert source_files.content_digest(mine, cache) == before


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "{}", '{"stamp": 1}'])
def test_a_damaged_cache_is_no_obstacle(damage: str, layout: Files, given: Given, tmp_path: Path) -> None:
    path = given(layout, "zip")
    before = digest(path)
    cache = tmp_path / "cache.json"
    cache.write_text(damage)
    assert source_files.content_digest(path, cache) == before
