"""Atomic writes, appends and locks, against real processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from flywheel import files


def test_failing_write_leaves_the_old_file_and_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"kept": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"bad": float("nan")})
    assert files.read_json(path) == {"kept": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_digests_equal_those_of_the_standard_tools(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    digests = files.digest_file(path)
    assert digests.size == 3_000_000
    assert digests.sha256 == subprocess.check_output(["sha256sum", path], text=True).split()[0]


def test_cut_line_is_skipped_and_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    files.append_json_lines(path, {"n": 1})
    with path.open("a") as log:
        log.write('{"n": 2, "cut')
    files.append_json_lines(path, {"n": 3}, {"n": 4})
    assert [row["n"] for row in files.read_json_lines(path)] == [1, 3, 4]


def _append(path: Path, process: int) -> None:
    for index in range(50):
        files.append_json_lines(path, {"process": process, "index": index, "padding": "x" * 500})


def test_concurrent_appends_keep_every_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(_append, [(path, process) for process in range(4)])
    rows = files.read_json_lines(path)
    assert sorted((row["process"], row["index"]) for row in rows) == [(p, i) for p in range(4) for i in range(50)]


def _append_after(start: Event, path: Path) -> None:
    start.wait(60)
    _append(path, 1)


def test_a_write_that_fails_cuts_off_nothing_that_another_process_appends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, and the other appends between the look at the end of the file and the failing write."""
    path, fork = tmp_path / "log.jsonl", multiprocessing.get_context("fork")
    files.append_json_lines(path, {"process": 0})
    start = fork.Event()
    other = fork.Process(target=_append_after, args=(start, path))
    other.start()

    def look(*_: int) -> bytes:
        start.set()
        other.join(0.5)
        return b"\n"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", look)
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*log\.jsonl'"):
            files.append_json_lines(path, {"process": 2})
    other.join()
    assert [row["process"] for row in files.read_json_lines(path)] == [0, *[1] * 50]


def test_lines_are_appended_where_files_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    files.append_json_lines(tmp_path / "log", {"n": 1})
    assert files.read_json_lines(tmp_path / "log") == [{"n": 1}]


HOLD = """
import sys, time
from pathlib import Path
from flywheel import files
with files.lock(Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


def test_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "data.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(files.Locked, match=rf"another run holds data \(pid {holder.pid}\)"), files.lock(path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    deadline = time.monotonic() + 5
    while True:
        try:
            with files.lock(path):
                break
        except files.Locked:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_process_that_lives_holds_a_lock_that_cannot_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that was remounted read-only."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (tmp_path / "data.pid").write_text(str(os.getpid()))
    monkeypatch.setattr(files.FileLock, "acquire", read_only)
    assert files.holder(tmp_path / "data.lock") == os.getpid()


def test_a_reused_pid_does_not_count_as_a_holder(tmp_path: Path) -> None:
    for text in ("", "nothing", "99999999999999999999", str(os.getpid())):
        (tmp_path / "data.pid").write_text(text)
        assert files.holder(tmp_path / "data.lock") is None


def test_any_text_is_read_back_from_one_line(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0cd\ne"
    files.append_json_lines(tmp_path / "log", {"text": text})
    assert files.read_json_lines(tmp_path / "log") == [{"text": text}]


def test_sizes_are_readable() -> None:
    sizes = {0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 1_500_000: "1.5 MB", 2e12: "2.0 TB"}
    assert {size: files.human_size(size) for size in sizes} == sizes


TOO_LONG = """
import resource, signal, sys
from pathlib import Path
from flywheel import files
path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10,) * 2)
try:
    files.append_json_lines(path, {"n": 2}, {"text": "x" * 100})
except OSError as error:
    print(error.strerror)
try:
    files.write_text(path, "x" * 1000)
except OSError as error:
    print(f"{error.filename}: {error.strerror}{files.advice(error)}")
"""


def test_what_does_not_fit_leaves_the_file_as_it_was_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    files.append_json_lines(path, {"n": 1})
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", TOO_LONG, str(path)], capture_output=True, text=True, check=True)
    appended, written = done.stdout.splitlines()
    assert appended == "No space left on device"
    assert written.startswith(f"{path}: File too large; raise the limit of a file's size (ulimit -f)")
    assert path.read_bytes() == before
