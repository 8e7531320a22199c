"""Fetching an archive, and CIFAR-10 from it, against a real server on this machine: no test needs the internet."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from torchvision.datasets import CIFAR10

from flywheel.data import DataError, fetch, sources
from flywheel.data.dataset import Split

BATCH = 20  # images
CUT = 100_000  # bytes
RESUMED = r"bytes=[1-9]\d*-"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(autouse=True)
def _quick_and_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once, and no proxy of the developer's stands between."""
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@dataclass
class Server:
    """What a server of one file was asked for, and how it misbehaves."""

    url: str
    content: bytes = b""
    ranges: list[str | None] = field(default_factory=list)  # of each request
    sent_bytes: int = 0
    knows_ranges: bool = True
    cut_after_bytes: int | None = None  # the next answer breaks off there
    how_to_cut: str = "close"  # or reset, hang (until `hung` is set), trickle (a byte at a time)
    hung: threading.Event = field(default_factory=threading.Event)
    status: int = 200  # of the next answers, or of the next only
    once: bool = False
    tells_length: bool = True

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers["Range"]
        self.ranges.append(wanted)
        if self.status != 200:
            handler.send_error(self.status)
            self.status = 200 if self.once else self.status
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.knows_ranges else 0  # type: ignore[index]
        if start >= len(self.content):
            handler.send_error(416)
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if self.tells_length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        rest = b""
        if self.cut_after_bytes is not None:
            body, rest, self.cut_after_bytes = body[: self.cut_after_bytes], body[self.cut_after_bytes :], None
        self.sent_bytes += len(body)
        handler.wfile.write(body)
        if rest:
            self.break_off(handler, rest)

    def break_off(self, handler: BaseHTTPRequestHandler, rest: bytes) -> None:
        if self.how_to_cut == "reset":  # closing a socket that lingers for 0 s sends RST
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
        elif self.how_to_cut == "hang":
            self.hung.wait(60)
        elif self.how_to_cut == "trickle":
            with contextlib.suppress(OSError):
                for byte in rest:
                    handler.wfile.write(bytes([byte]))
                    if self.hung.wait(0.02):
                        return


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of one file on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        state = Server(f"http://127.0.0.1:{serving.server_port}/cifar-10-python.tar.gz")
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        state.hung.set()
        serving.shutdown()
        thread.join()


@dataclass(frozen=True)
class Archive:
    """A small CIFAR-10 in the format of the real one: its bytes, what is in it, and torchvision's class for it."""

    content: bytes
    train: Split
    test: Split
    at: Callable[..., Any]  # url -> a subclass of CIFAR10


def tar_gz(files: dict[str, bytes], **odd: tuple[bytes, str]) -> bytes:
    """Return an archive of files, and below `folder` of other kinds of members: name -> kind, target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, (kind, target) in odd.items():
            member = tarfile.TarInfo(f"folder/{name}".removesuffix("/top"))
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return buffer.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def archive() -> Archive:
    """Five training batches and one test batch of noise (so that it does not compress), pickled as the real ones."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6 * BATCH, 32, 32, 3), dtype=np.uint8)
    labels = [int(label) for label in random.permutation(np.arange(6 * BATCH) % 10)]
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    files = {"batches.meta": pickle.dumps({"label_names": list(CLASSES), "num_vis": 3072}, protocol=2)}
    for index, name in enumerate(names):
        part = slice(index * BATCH, (index + 1) * BATCH)
        batch = {"data": images[part].transpose(0, 3, 1, 2).reshape(BATCH, 3072), "labels": labels[part]}
        files[name] = pickle.dumps(batch, protocol=2)
    content = tar_gz({f"{CIFAR10.base_folder}/{name}": data for name, data in files.items()})

    def at(url: str, **overrides: Any) -> Any:
        sums = [[name, md5(files[name])] for name in names]
        meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(files["batches.meta"])}
        known = {"url": url, "tgz_md5": md5(content), "train_list": sums[:5], "test_list": sums[5:], "meta": meta}
        return type("SmallCIFAR10", (CIFAR10,), {**known, **overrides})

    ids = np.r_[: 5 * BATCH, :BATCH]
    train, test = (Split(images[p], np.array(labels[p]), ids[p]) for p in (slice(5 * BATCH), slice(5 * BATCH, None)))
    return Archive(content, train, test, at)


@dataclass
class Cifar:
    """The small CIFAR-10 on a server, and the cache that it is fetched into."""

    server: Server
    archive: Archive
    cache: Path

    @property
    def path(self) -> Path:
        return self.cache / CIFAR10.filename

    @property
    def part(self) -> Path:
        return self.cache / f"{CIFAR10.filename}.part"

    def put(self, path: Path, content: bytes | None = None) -> None:
        """Write a file (the whole archive by default) into the cache."""
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.archive.content if content is None else content)

    def close(self) -> None:
        """Name an address without a server from now on."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.server.url = f"http://127.0.0.1:{listening.getsockname()[1]}/cifar-10-python.tar.gz"

    def load(self, **overrides: Any) -> sources.SourceImages:
        return sources.cifar10(self.cache, self.archive.at(self.server.url, **overrides))

    def refused(self, match: str, **overrides: Any) -> str:
        """Assert that loading fails with one line and leaves nothing under a final name. Returns the message."""
        with pytest.raises(DataError, match=match) as refused:
            self.load(**overrides)
        assert "\n" not in str(refused.value)
        self.assert_nothing_final()
        return str(refused.value)

    def assert_nothing_final(self) -> None:
        assert not self.path.exists()
        assert not (self.cache / CIFAR10.base_folder).exists()

    def assert_loads(self, *ranges: str | None) -> None:
        """Assert that it loads what the archive holds, after requests with these ranges (patterns) altogether."""
        source = self.load()
        for found, expected in ((source.train, self.archive.train), (source.test, self.archive.test)):
            for name in ("images", "labels", "ids"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
                assert getattr(found, name).dtype == getattr(expected, name).dtype
        assert len(self.server.ranges) == len(ranges), self.server.ranges
        for asked, pattern in zip(self.server.ranges, ranges, strict=True):
            assert re.fullmatch(pattern or "", asked or ""), self.server.ranges


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cifar(server: Server, archive: Archive, cache: Path) -> Cifar:
    server.content = archive.content
    return Cifar(server, archive, cache)


# CIFAR-10


def test_cifar10_is_loaded_from_the_archive_and_fetched_once(cifar: Cifar, said: list[str]) -> None:
    cifar.assert_loads(None)
    left = {path.name for path in cifar.cache.iterdir() if path.suffix not in (".lock", ".pid")}
    assert left == {CIFAR10.filename, CIFAR10.base_folder}
    assert cifar.path.read_bytes() == cifar.archive.content
    cifar.path.unlink()
    cifar.assert_loads(None)
    assert said == [f"data: fetching {cifar.server.url}"]
    assert cifar.load().class_names == CLASSES


def test_8000_test_images_are_the_test_set_and_one_at_least_is_simulation(
    cifar: Cifar, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sources.CIFAR10_TEST_IMAGES == 8_000
    assert cifar.load().test_count == BATCH - 1
    monkeypatch.setattr(sources, "CIFAR10_TEST_IMAGES", 12)
    assert cifar.load().test_count == 12


def test_a_damaged_batch_is_never_loaded(cifar: Cifar) -> None:
    cifar.load()
    batch = cifar.cache / CIFAR10.base_folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes() + b"\0")
    with pytest.raises(DataError, match=rf"{CIFAR10.base_folder} does not match its checksums; remove it"):
        cifar.load()


# The fetch


def test_an_archive_put_there_by_hand_is_used_without_a_request(cifar: Cifar) -> None:
    cifar.close()
    cifar.put(cifar.path)
    cifar.assert_loads()


def test_two_at_once_fetch_once(cifar: Cifar) -> None:
    found: list[sources.SourceImages] = []
    threads = [threading.Thread(target=lambda: found.append(cifar.load())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    cifar.assert_loads(None)


@pytest.mark.parametrize(
    ("have", "knows_ranges", "requests", "sent"),
    [
        (lambda content: content[:1000], True, ["bytes=1000-"], -1000),
        (lambda content: content[:1000], False, ["bytes=1000-"], 0),
        (lambda content: content, True, [RESUMED], None),  # it is complete, so nothing is sent
        (lambda content: bytes(len(content) - 1000), True, [RESUMED, None], 1000),
        (lambda content: bytes(len(content) + 1000), True, [RESUMED, None], 0),
    ],
    ids=["resumed", "no ranges", "complete", "of something else", "of something longer"],
)
def test_a_part_is_resumed_or_given_up(
    have: Callable[[bytes], bytes], knows_ranges: bool, requests: list[str | None], sent: int | None, cifar: Cifar
) -> None:
    """`sent`: bytes sent beyond one archive, None for none at all."""
    cifar.server.knows_ranges = knows_ranges
    cifar.put(cifar.part, have(cifar.archive.content))
    cifar.assert_loads(*requests)
    assert cifar.server.sent_bytes == (0 if sent is None else len(cifar.archive.content) + sent)


@pytest.mark.parametrize(
    ("how", "tells_length", "again"),
    [
        ("close", True, RESUMED),
        ("reset", True, f"({RESUMED})?"),
        ("hang", True, f"bytes={CUT}-"),
        ("close", False, None),
    ],
)
def test_a_download_that_breaks_off_is_taken_up_where_it_broke(
    how: str, tells_length: bool, again: str | None, cifar: Cifar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of unknown length, only the checksum shows that it is incomplete, so it is fetched from the start."""
    monkeypatch.setattr(fetch, "READ_TIMEOUT_S", 0.2)
    cifar.server.cut_after_bytes, cifar.server.how_to_cut, cifar.server.tells_length = CUT, how, tells_length
    cifar.assert_loads(None, again)
    # The kernel decides how much of what was sent a reset destroyed; bytes that arrived are not fetched again.
    assert cifar.server.sent_bytes <= CUT + len(cifar.archive.content)


def test_no_network_is_one_error_that_says_what_to_do(cifar: Cifar) -> None:
    cifar.close()
    message = cifar.refused("no connection")
    for advice in (cifar.server.url, str(cifar.path), "data.source=folder", "PROFILE=demo"):
        assert advice in message


def test_a_server_that_never_answers_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "READ_TIMEOUT_S", 0.1)
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/file"
        with pytest.raises(DataError, match="the server does not answer"):
            fetch.archive(url, cache / "file", "0" * 32, "folder")
    assert not (cache / "file").exists()


def test_a_server_that_falls_silent_for_good_is_given_up_and_what_came_is_kept(
    cifar: Cifar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    cifar.server.cut_after_bytes, cifar.server.how_to_cut = CUT, "hang"
    cifar.refused("the server does not answer; put the file at")
    cifar.assert_loads(None, f"bytes={CUT}-")


def test_a_server_that_sends_a_byte_at_a_time_is_given_up_in_time_and_what_came_is_kept(
    cifar: Cifar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TOTAL_TIMEOUT_S", 0.5)
    cifar.server.cut_after_bytes, cifar.server.how_to_cut = CUT, "trickle"
    started = time.monotonic()
    cifar.refused(r"not done after 0\.5 s; run again to resume")
    assert time.monotonic() - started < 30  # all of it would take 5 minutes
    assert cifar.part.stat().st_size > CUT
    monkeypatch.setattr(fetch, "TOTAL_TIMEOUT_S", 3600)
    cifar.assert_loads(None, RESUMED)


def test_the_wait_for_a_silent_server_is_bounded_as_documented() -> None:
    waits = fetch.ATTEMPTS * fetch.READ_TIMEOUT_S, sum(2**attempt for attempt in range(fetch.ATTEMPTS - 1))
    assert waits == (120, 7)  # the comment in fetch.py and docs/faults.md say so


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (429, 4), (500, 4), (503, 4)])
def test_what_the_server_refuses_is_in_the_error(status: int, requests: int, cifar: Cifar) -> None:
    """A refusal that would be repeated is asked for once."""
    cifar.server.status = status
    cifar.refused(f"the server answered {status}")
    assert len(cifar.server.ranges) == requests
    cifar.server.status = 200
    cifar.assert_loads(*[None] * (requests + 1))


@pytest.mark.parametrize("keep", [0, 1, 1000, -1])
def test_a_truncated_archive_is_refused_by_its_checksum(keep: int, cifar: Cifar) -> None:
    """Also 0 bytes; the next run, with the complete archive there, succeeds."""
    cifar.server.content = cifar.archive.content[:keep]
    cifar.refused(rf"its checksum is {md5(cifar.server.content)}, not {md5(cifar.archive.content)}|answered 416")
    assert not cifar.part.exists()
    cifar.server.content = cifar.archive.content
    cifar.assert_loads(*[r".*"] * (len(cifar.server.ranges) + 1))


def test_a_wrong_archive_put_there_by_hand_is_named_and_left_alone(cifar: Cifar) -> None:
    cifar.put(cifar.path, b"something else")
    with pytest.raises(DataError, match=rf"{CIFAR10.filename} does not match its checksum .*remove it"):
        cifar.load()
    assert cifar.path.read_bytes() == b"something else"
    assert not (cifar.cache / CIFAR10.base_folder).exists()
    assert cifar.server.ranges == []


def in_a_process(cifar: Cifar, limit_bytes: int | None = None) -> subprocess.Popen[str]:
    """Fetch in a process of its own, in which no file grows beyond the limit: what a full disk does, for one file."""
    limit = "" if limit_bytes is None else f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes},) * 2)\n"
    code = (
        f"import resource, sys\n{limit}"
        "from pathlib import Path\nfrom flywheel.data import DataError, fetch\n"
        "fetch.BACKOFF_S = 0.001\n"
        "try:\n    fetch.archive(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])\n"
        "except DataError as error:\n    print(error); sys.exit(1)\n"
    )
    arguments = [cifar.server.url, str(cifar.path), md5(cifar.archive.content), CIFAR10.base_folder]
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def last_line_of_failure(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, "")
    return output.splitlines()[-1]


def test_a_disk_that_fills_up_while_fetching_is_one_sentence_and_the_next_run_goes_on(cifar: Cifar) -> None:
    said = last_line_of_failure(in_a_process(cifar, CUT))
    assert said == f"cannot write {cifar.part} (File too large); free space or set paths.cache, and run again"
    cifar.assert_nothing_final()
    cifar.assert_loads(None, f"bytes={CUT}-")


def test_a_disk_that_fills_up_while_extracting_is_one_sentence_and_the_next_run_does_it_again(cifar: Cifar) -> None:
    cifar.close()
    cifar.put(cifar.path)
    said = last_line_of_failure(in_a_process(cifar, 20_000))
    assert said == f"{cifar.path} cannot be extracted (File too large); free space or remove it, and run again"
    left = {left.name for left in cifar.cache.iterdir() if left.suffix not in (".lock", ".pid")}
    assert left == {CIFAR10.filename}
    cifar.assert_loads()


def test_a_killed_fetch_is_taken_up_by_the_next(cifar: Cifar) -> None:
    """kill -9 in the middle of the body: the lock is free, and the part is resumed."""
    cifar.server.cut_after_bytes, cifar.server.how_to_cut = CUT, "hang"
    with processes.once(in_a_process(cifar), lambda: cifar.part.exists() and cifar.part.stat().st_size):
        pass
    cifar.assert_nothing_final()
    cifar.assert_loads(None, RESUMED)


def test_a_cache_that_is_a_file_or_cannot_be_written_is_named(cifar: Cifar) -> None:
    cifar.cache.mkdir()
    lock = cifar.cache / f"{CIFAR10.filename}.lock"
    lock.symlink_to("/proc/nothing")  # where not even root may make a file
    with pytest.raises(
        DataError, match=rf"cannot make {lock} \(No such file.*\); set paths\.cache to a directory that"
    ):
        cifar.load()
    lock.unlink()
    cifar.cache.rmdir()
    cifar.cache.write_text("")
    with pytest.raises(DataError, match=r"cannot make .*cache \(File exists\); set paths\.cache to a directory"):
        cifar.load()


# Unpacking


def put(content: bytes, cache: Path) -> Path:
    cache.mkdir()
    (cache / "file.tar.gz").write_bytes(content)
    return cache / "file.tar.gz"


def test_an_extraction_that_was_killed_is_done_again(cifar: Cifar) -> None:
    cifar.close()
    cifar.put(cifar.path)
    half = cifar.cache / f"{cifar.path.name}.extracting" / CIFAR10.base_folder
    half.mkdir(parents=True)
    (half / "data_batch_1").write_bytes(b"half of it")
    (half / "of an older archive").write_bytes(b"")
    cifar.assert_loads()
    assert not half.parent.exists()
    assert not (cifar.cache / CIFAR10.base_folder / "of an older archive").exists()


REFUSED = {
    "no archive": b"no archive",
    "torn": tar_gz({"folder": b"1"})[:40],
    "another folder": tar_gz({"other/file": b"1"}),
    "a file in its place": tar_gz({"folder": b"1"}),
    "a link in its place": tar_gz({"other/file": b"1"}, top=(tarfile.SYMTYPE, "other")),
    "symlink": tar_gz({"folder/first": b"1"}, last=(tarfile.SYMTYPE, "/etc")),
    "relative symlink": tar_gz({"folder/first": b"1"}, last=(tarfile.SYMTYPE, "../../outside")),
    "hard link": tar_gz({"folder/first": b"1"}, last=(tarfile.LNKTYPE, "/etc/hostname")),
    "relative hard link": tar_gz({"folder/first": b"1"}, last=(tarfile.LNKTYPE, "../outside")),
    "character device": tar_gz({"folder/first": b"1"}, last=(tarfile.CHRTYPE, "")),
    "block device": tar_gz({"folder/first": b"1"}, last=(tarfile.BLKTYPE, "")),
    "pipe": tar_gz({"folder/first": b"1"}, last=(tarfile.FIFOTYPE, "")),
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_an_archive_without_the_folder_or_with_links_that_leave_or_devices_leaves_nothing(
    content: bytes, tmp_path: Path, cache: Path
) -> None:
    path = put(content, cache)
    (tmp_path / "outside").write_text("mine")
    with pytest.raises(DataError, match=r"file\.tar\.gz cannot be extracted") as refused:
        fetch.extract(path, "folder")
    assert "\n" not in str(refused.value)
    assert [left.name for left in cache.iterdir()] == ["file.tar.gz"]
    assert (tmp_path / "outside").read_text() == "mine"


@pytest.mark.parametrize("name", ["../outside", "folder/../../outside", "{root}/outside"])
def test_a_name_that_leads_outside_refuses_the_whole_archive(name: str, tmp_path: Path, cache: Path) -> None:
    outside = name.format(root=tmp_path)
    content = tar_gz({"folder/first": b"1", outside: b"2", "folder/last": b"3"})
    path = put(content, cache)
    before = sorted(tmp_path.rglob("*"))
    try:
        fetch.extract(path, "folder")
    except DataError:
        assert sorted(tmp_path.rglob("*")) == before
    else:  # Python's filter strips the slash of an absolute name; what is left lies inside
        assert not (tmp_path / "outside").exists()
        assert sorted(tmp_path.rglob("*")) == sorted([*before, *(cache / "folder").rglob("*"), cache / "folder"])
