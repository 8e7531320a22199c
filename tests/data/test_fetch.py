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
import pytest
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10

from flywheel import params as parameters
from flywheel.data import DataError, build, fetch, sources

BATCH = 20  # images
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


@pytest.fixture
def closed_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listening.getsockname()[1]}/cifar-10-python.tar.gz"


@dataclass(frozen=True)
class Archive:
    """A small CIFAR-10 in the format of the real one: its bytes, what is in it, and torchvision's class for it."""

    content: bytes
    train_images: NDArray[np.uint8]
    train_labels: list[int]
    test_images: NDArray[np.uint8]
    test_labels: list[int]
    at: Callable[..., Any]  # url -> a subclass of CIFAR10


def tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
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

    train = 5 * BATCH
    return Archive(content, images[:train], labels[:train], images[train:], labels[train:], at)


@pytest.fixture
def served(server: Server, archive: Archive) -> Server:
    """The server of the archive."""
    server.content = archive.content
    return server


@pytest.fixture
def data(make_params: Callable[..., Any]) -> parameters.Data:
    """The section `data` of the profile cifar10."""
    section: parameters.Data = make_params(profile="cifar10").data
    return section


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def load(data: parameters.Data, cache: Path) -> Callable[[Any], sources.SourceImages]:
    """Load CIFAR-10 by a class of torchvision's kind, saying nothing."""
    return lambda dataset_class: sources.cifar10(data, cache, dataset_class)


def assert_right(source: sources.SourceImages, archive: Archive) -> None:
    np.testing.assert_array_equal(source.train.images, archive.train_images)
    np.testing.assert_array_equal(source.test.images, archive.test_images)
    assert source.train.labels.tolist() == archive.train_labels
    assert source.test.labels.tolist() == archive.test_labels


def assert_nothing_final(cache: Path) -> None:
    assert not (cache / CIFAR10.filename).exists()
    assert not (cache / CIFAR10.base_folder).exists()


# CIFAR-10


def test_cifar10_is_what_the_archive_holds(served: Server, archive: Archive, load: Any) -> None:
    source = load(archive.at(served.url))
    assert_right(source, archive)
    assert source.class_names == CLASSES
    assert source.train.labels.dtype == source.test.labels.dtype == np.int64
    np.testing.assert_array_equal(source.train.ids, np.arange(5 * BATCH))
    np.testing.assert_array_equal(source.test.ids, np.arange(BATCH))


def test_the_second_time_asks_nobody_and_unpacks_nothing(
    served: Server, archive: Archive, load: Any, cache: Path
) -> None:
    load(archive.at(served.url))
    assert served.ranges == [None]
    (cache / CIFAR10.filename).unlink()
    assert_right(load(archive.at(served.url)), archive)
    assert served.ranges == [None]


def test_the_first_test_images_are_the_test_set_and_the_rest_simulation_in_their_order(
    served: Server, archive: Archive, load: Any, data: parameters.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sources.CIFAR10_TEST_IMAGES == 8_000
    monkeypatch.setattr(sources, "CIFAR10_TEST_IMAGES", 12)
    source = load(archive.at(served.url))
    assert source.test_count == 12
    built = build.build(source, data)
    test, simulation = built.split("test"), built.split("simulation")
    assert test.ids.tolist() == list(range(12))
    assert simulation.ids.tolist() == list(range(12, BATCH))
    np.testing.assert_array_equal(test.images, archive.test_images[:12])
    np.testing.assert_array_equal(simulation.images, archive.test_images[12:])
    assert simulation.labels.tolist() == archive.test_labels[12:]


def test_a_small_test_set_leaves_something_to_simulate(served: Server, archive: Archive, load: Any) -> None:
    assert load(archive.at(served.url)).test_count == BATCH - 1


def test_another_image_size_is_scaled(
    served: Server, archive: Archive, make_params: Callable[..., Any], cache: Path
) -> None:
    small = make_params("data.image_size=16", profile="cifar10").data
    source = sources.cifar10(small, cache, archive.at(served.url))
    assert source.train.images.shape == (5 * BATCH, 16, 16, 3)
    assert source.test.images.shape == (BATCH, 16, 16, 3)
    averaged = archive.train_images.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    assert np.corrcoef(source.train.images.reshape(-1), averaged.reshape(-1))[0, 1] > 0.9


def test_a_damaged_batch_is_never_loaded(served: Server, archive: Archive, load: Any, cache: Path) -> None:
    load(archive.at(served.url))
    batch = cache / CIFAR10.base_folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes() + b"\0")
    with pytest.raises(DataError, match=rf"{CIFAR10.base_folder} does not match its checksums; remove it"):
        load(archive.at(served.url))


# The fetch when all is well


def test_an_archive_put_there_by_hand_is_used_without_a_request(
    closed_url: str, archive: Archive, load: Any, cache: Path
) -> None:
    cache.mkdir()
    (cache / CIFAR10.filename).write_bytes(archive.content)
    assert_right(load(archive.at(closed_url)), archive)


def test_it_says_what_it_fetches_once(
    served: Server, archive: Archive, data: parameters.Data, cache: Path, said: list[str]
) -> None:
    for _ in range(2):
        sources.cifar10(data, cache, archive.at(served.url))
    assert said == [f"data: fetching {served.url}"]


def test_nothing_but_the_archive_its_folder_and_its_lock_is_left(
    served: Server, archive: Archive, load: Any, cache: Path
) -> None:
    load(archive.at(served.url))
    left = {path.name for path in cache.iterdir() if path.suffix not in (".lock", ".pid")}
    assert left == {CIFAR10.filename, CIFAR10.base_folder}
    assert (cache / CIFAR10.filename).read_bytes() == archive.content


def test_two_at_once_fetch_once(served: Server, archive: Archive, load: Any) -> None:
    found: list[sources.SourceImages] = []
    threads = [threading.Thread(target=lambda: found.append(load(archive.at(served.url)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for source in found:
        assert_right(source, archive)
    assert served.ranges == [None]


# The fetch when something is amiss


def test_a_half_fetched_part_is_resumed(served: Server, archive: Archive, load: Any, cache: Path) -> None:
    cache.mkdir()
    half = len(archive.content) // 2
    (cache / f"{CIFAR10.filename}.part").write_bytes(archive.content[:half])
    assert_right(load(archive.at(served.url)), archive)
    assert served.ranges == [f"bytes={half}-"]
    assert served.sent_bytes == len(archive.content) - half


def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(served: Server, archive: Archive, load: Any) -> None:
    served.cut_after_bytes = 100_000
    assert_right(load(archive.at(served.url)), archive)
    assert len(served.ranges) == 2
    assert re.fullmatch(r"bytes=[1-9]\d*-", served.ranges[1] or "")
    assert served.sent_bytes < 2 * len(archive.content)


def test_a_server_that_knows_no_ranges_is_read_from_the_start(
    served: Server, archive: Archive, load: Any, cache: Path
) -> None:
    served.knows_ranges = False
    cache.mkdir()
    (cache / f"{CIFAR10.filename}.part").write_bytes(archive.content[:1000])
    assert_right(load(archive.at(served.url)), archive)
    assert served.ranges == ["bytes=1000-"]


def test_a_part_that_is_complete_is_used_as_it_is(served: Server, archive: Archive, load: Any, cache: Path) -> None:
    cache.mkdir()
    (cache / f"{CIFAR10.filename}.part").write_bytes(archive.content)
    assert_right(load(archive.at(served.url)), archive)
    assert served.sent_bytes == 0


@pytest.mark.parametrize("extra", [-1000, 1000])
def test_a_part_of_something_else_is_given_up(
    extra: int, served: Server, archive: Archive, load: Any, cache: Path
) -> None:
    cache.mkdir()
    (cache / f"{CIFAR10.filename}.part").write_bytes(bytes(len(archive.content) + extra))
    assert_right(load(archive.at(served.url)), archive)
    assert len(served.ranges) == 2
    assert served.ranges[1] is None


def test_no_network_is_one_error_that_names_the_ways_on(
    closed_url: str, archive: Archive, load: Any, cache: Path
) -> None:
    with pytest.raises(DataError) as refused:
        load(archive.at(closed_url))
    message = str(refused.value)
    assert "\n" not in message
    for way in (closed_url, "no connection", str(cache / CIFAR10.filename), "data.source=folder", "PROFILE=demo"):
        assert way in message
    assert_nothing_final(cache)


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


def test_a_reset_connection_is_taken_up_where_it_broke(served: Server, archive: Archive, load: Any) -> None:
    served.cut_after_bytes, served.how_to_cut = 100_000, "reset"
    assert_right(load(archive.at(served.url)), archive)
    assert len(served.ranges) == 2
    # How much of what was sent the reset destroyed is the kernel's affair; what is there is not fetched again.
    assert served.sent_bytes <= 100_000 + len(archive.content)


def test_a_server_that_falls_silent_in_the_middle_is_asked_again_for_the_rest(
    served: Server, archive: Archive, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "READ_TIMEOUT_S", 0.2)
    served.cut_after_bytes, served.how_to_cut = 100_000, "hang"
    assert_right(load(archive.at(served.url)), archive)
    assert served.ranges == [None, "bytes=100000-"]


def test_a_server_that_falls_silent_for_good_is_given_up_and_what_came_is_kept(
    served: Server, archive: Archive, load: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    served.cut_after_bytes, served.how_to_cut = 100_000, "hang"
    with pytest.raises(DataError, match="the server does not answer; put the file at"):
        load(archive.at(served.url))
    assert_nothing_final(cache)
    assert_right(load(archive.at(served.url)), archive)
    assert served.ranges == [None, "bytes=100000-"]


def test_a_server_that_sends_a_byte_at_a_time_is_given_up_in_time_and_what_came_is_kept(
    served: Server, archive: Archive, load: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TOTAL_TIMEOUT_S", 0.5)
    served.cut_after_bytes, served.how_to_cut = 100_000, "trickle"
    started = time.monotonic()
    with pytest.raises(DataError, match=r"not done after 0\.5 s; run again to resume"):
        load(archive.at(served.url))
    assert time.monotonic() - started < 30  # all of it would take 5 minutes
    assert_nothing_final(cache)
    assert (cache / f"{CIFAR10.filename}.part").stat().st_size > 100_000
    monkeypatch.setattr(fetch, "TOTAL_TIMEOUT_S", 3600)
    assert_right(load(archive.at(served.url)), archive)


def test_the_wait_for_a_silent_server_is_bounded_as_documented() -> None:
    waits = fetch.ATTEMPTS * fetch.READ_TIMEOUT_S, sum(2**attempt for attempt in range(fetch.ATTEMPTS - 1))
    assert waits == (120, 7)  # the comment in fetch.py and docs/faults.md say so


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (429, 4), (500, 4), (503, 4)])
def test_what_the_server_refuses_is_in_the_error(
    status: int, requests: int, served: Server, archive: Archive, load: Any, cache: Path
) -> None:
    """What will be the same in a second is asked once."""
    served.status = status
    with pytest.raises(DataError, match=f"the server answered {status}") as refused:
        load(archive.at(served.url))
    assert "\n" not in str(refused.value)
    assert len(served.ranges) == requests
    assert_nothing_final(cache)
    served.status = 200
    assert_right(load(archive.at(served.url)), archive)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_refusal_is_got_over(status: int, served: Server, archive: Archive, load: Any) -> None:
    served.status, served.once = status, True
    assert_right(load(archive.at(served.url)), archive)
    assert served.ranges == [None, None]


def test_an_archive_that_ends_early_without_a_word_is_fetched_again(
    served: Server, archive: Archive, load: Any, cache: Path
) -> None:
    """A server that tells no length may close at any byte: the checksum tells, and it starts anew."""
    served.tells_length = False
    served.cut_after_bytes = 100_000
    assert_right(load(archive.at(served.url)), archive)
    assert served.ranges == [None, None]


@pytest.mark.parametrize("keep", [0, 1, 1000, -1])
def test_a_truncated_archive_is_refused_by_its_checksum(
    keep: int, served: Server, archive: Archive, load: Any, cache: Path
) -> None:
    """Also 0 bytes; the next run, with the whole archive there, succeeds."""
    served.content = archive.content[:keep]
    with pytest.raises(DataError, match=r"its checksum is|answered 416"):
        load(archive.at(served.url))
    assert_nothing_final(cache)
    served.content = archive.content
    assert_right(load(archive.at(served.url)), archive)


def test_a_wrong_checksum_leaves_nothing(served: Server, archive: Archive, load: Any, cache: Path) -> None:
    with pytest.raises(DataError, match=f"its checksum is {md5(archive.content)}, not {'0' * 32}"):
        load(archive.at(served.url, tgz_md5="0" * 32))
    assert_nothing_final(cache)
    assert not (cache / f"{CIFAR10.filename}.part").exists()


def test_a_wrong_archive_put_there_by_hand_is_named_and_left_alone(
    served: Server, archive: Archive, load: Any, cache: Path
) -> None:
    cache.mkdir()
    (cache / CIFAR10.filename).write_bytes(b"something else")
    with pytest.raises(DataError, match=rf"{CIFAR10.filename} does not match its checksum .*remove it"):
        load(archive.at(served.url))
    assert (cache / CIFAR10.filename).read_bytes() == b"something else"
    assert not (cache / CIFAR10.base_folder).exists()
    assert served.ranges == []


def in_small_files(limit_bytes: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of which no file grows past the limit: what a full disk does, for one file."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes},) * 2)\n"
        "import sys\nfrom pathlib import Path\nfrom flywheel.data import DataError, fetch\n"
        "fetch.BACKOFF_S = 0.001\n"
        "try:\n    fetch.archive(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])\n"
        "except DataError as error:\n    print(error); sys.exit(1)\n"
    )
    return subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60)


def test_a_disk_that_fills_up_while_fetching_is_one_sentence_and_the_next_run_goes_on(
    served: Server, archive: Archive, load: Any, cache: Path
) -> None:
    path = cache / CIFAR10.filename
    refused = in_small_files(100_000, served.url, str(path), md5(archive.content), CIFAR10.base_folder)
    assert (refused.returncode, refused.stderr) == (1, "")
    assert refused.stdout.splitlines()[-1] == (
        f"cannot write {path}.part (File too large); free space or set paths.cache, and run again"
    )
    assert_nothing_final(cache)
    assert_right(load(archive.at(served.url)), archive)
    assert served.ranges == [None, "bytes=100000-"]


def test_a_disk_that_fills_up_while_extracting_is_one_sentence_and_the_next_run_does_it_again(
    closed_url: str, archive: Archive, load: Any, cache: Path
) -> None:
    path = cache / CIFAR10.filename
    cache.mkdir()
    path.write_bytes(archive.content)
    refused = in_small_files(20_000, closed_url, str(path), md5(archive.content), CIFAR10.base_folder)
    assert (refused.returncode, refused.stderr) == (1, "")
    assert refused.stdout == f"{path} cannot be extracted (File too large); free space or remove it, and run again\n"
    assert {left.name for left in cache.iterdir() if left.suffix not in (".lock", ".pid")} == {CIFAR10.filename}
    assert_right(load(archive.at(closed_url)), archive)


def test_a_killed_fetch_is_taken_up_by_the_next(served: Server, archive: Archive, load: Any, cache: Path) -> None:
    """kill -9 in the middle of the body: the lock is free, and the part is resumed."""
    served.cut_after_bytes, served.how_to_cut = 100_000, "hang"
    part = cache / f"{CIFAR10.filename}.part"
    code = "import sys; from pathlib import Path; from flywheel.data import fetch; fetch.archive(*sys.argv[1:2], "
    code += "Path(sys.argv[2]), *sys.argv[3:])"
    arguments = [served.url, str(cache / CIFAR10.filename), md5(archive.content), CIFAR10.base_folder]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL) as fetching:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size):
            assert time.monotonic() < deadline
            assert fetching.poll() is None
            time.sleep(0.01)
        fetching.kill()
    assert_nothing_final(cache)
    assert_right(load(archive.at(served.url)), archive)
    assert re.fullmatch(r"bytes=[1-9]\d*-", served.ranges[1] or "")


def test_a_cache_that_is_a_file_is_named(closed_url: str, archive: Archive, load: Any, cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(DataError, match=r"cannot make .*cache \(File exists\); set paths\.cache to a directory"):
        load(archive.at(closed_url))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_an_error_not_a_traceback(served: Server, archive: Archive, load: Any, cache: Path) -> None:
    cache.mkdir()
    (cache / f"{CIFAR10.filename}.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left"):
        load(archive.at(served.url))
    assert_nothing_final(cache)


# Unpacking


def put(content: bytes, cache: Path) -> Path:
    cache.mkdir()
    (cache / "file.tar.gz").write_bytes(content)
    return cache / "file.tar.gz"


def test_an_extraction_that_was_killed_is_done_again(closed_url: str, archive: Archive, load: Any, cache: Path) -> None:
    path = put(archive.content, cache).rename(cache / CIFAR10.filename)
    half = cache / f"{path.name}.extracting" / CIFAR10.base_folder
    half.mkdir(parents=True)
    (half / "data_batch_1").write_bytes(b"half of it")
    (half / "of an older archive").write_bytes(b"")
    assert_right(load(archive.at(closed_url)), archive)
    assert not half.parent.exists()
    assert not (cache / CIFAR10.base_folder / "of an older archive").exists()


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


@pytest.mark.parametrize(
    "content", [b"no archive", tar_gz({"folder": b"1"})[:40], tar_gz({"other/file": b"1"}), tar_gz({"folder": b"1"})]
)
def test_an_archive_without_the_folder_leaves_nothing(content: bytes, cache: Path) -> None:
    path = put(content, cache)
    with pytest.raises(DataError, match=r"file\.tar\.gz cannot be extracted"):
        fetch.extract(path, "folder")
    assert [left.name for left in cache.iterdir()] == ["file.tar.gz"]


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc"),
        (tarfile.SYMTYPE, "../../outside"),
        (tarfile.LNKTYPE, "/etc/hostname"),
        (tarfile.LNKTYPE, "../outside"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
    ids=["symlink", "relative symlink", "hard link", "relative hard link", "character device", "block device", "pipe"],
)
def test_links_that_leave_and_devices_refuse_the_whole_archive(
    kind: bytes, target: str, tmp_path: Path, cache: Path
) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name in ("folder/first", "folder/hostile", "folder/last"):
            member = tarfile.TarInfo(name)
            if name == "folder/hostile":
                member.type, member.linkname = kind, target
            archive.addfile(member)
    path = put(made.getvalue(), cache)
    (tmp_path / "outside").write_text("mine")
    all_before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"file\.tar\.gz cannot be extracted") as refused:
        fetch.extract(path, "folder")
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == all_before
    assert (tmp_path / "outside").read_text() == "mine"


def test_a_folder_that_is_a_link_is_refused(cache: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        folder, link = tarfile.TarInfo("other"), tarfile.TarInfo("folder")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "other"
        archive.addfile(folder)
        archive.addfile(link)
    with pytest.raises(DataError, match="it holds no directory folder"):
        fetch.extract(put(made.getvalue(), cache), "folder")
    assert [left.name for left in cache.iterdir()] == ["file.tar.gz"]
