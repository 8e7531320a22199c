"""Recording what a replica answers: complete, bounded, and never in the way of a prediction."""

from __future__ import annotations

import logging
import os
import secrets
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made_traffic import OPTIONS, answered, content, record_all
from PIL import Image
from waiting import wait_until

from flywheel import files
from flywheel.data import splits
from flywheel.params import StorePaths
from flywheel.traffic import capture, keys, records
from flywheel.traffic.capture import Recorder


@pytest.fixture
def recorder(paths: StorePaths) -> Iterator[Recorder]:
    """The recorder of a replica that keeps every image."""
    made = Recorder(paths, OPTIONS, "replica1")
    yield made
    made.close()


def test_a_record_holds_the_answer_and_the_hash_of_the_pixels(paths: StorePaths, recorder: Recorder) -> None:
    one = answered(group="g")
    recorder.add(one)
    recorder.close()
    (row,) = records.read(paths)
    assert row == {
        "prediction_id": one.prediction_id,
        "at": records.time_of(one.prediction_id).isoformat(timespec="milliseconds"),
        "hash": splits.content_hashes(one.image[None])[0].tobytes().hex(),
        "group": "g",
        "model": "model-1@sha256:00",
        "prediction": "cat",
        "probabilities": [0.7, 0.2, 0.1],
        "latency_ms": 2.1,
    }
    kept = records.image_path(paths, row["hash"])
    assert np.array_equal(np.asarray(Image.open(kept)), one.image)
    assert stat.S_IMODE(paths.traffic.stat().st_mode) == 0o700


def test_the_same_image_is_kept_once_and_recorded_each_time(paths: StorePaths, recorder: Recorder) -> None:
    for _ in range(3):
        recorder.add(answered())
    recorder.close()
    assert len(list(records.read(paths))) == recorder.counts.recorded == 3
    assert len(list(paths.traffic_images.rglob("*.png"))) == recorder.counts.kept_images == 1


def test_the_fraction_of_kept_images_is_that_of_the_params() -> None:
    ids = [records.new_id() for _ in range(4_000)]
    assert not any(capture.is_kept(one, 0.0) for one in ids)
    assert all(capture.is_kept(one, 1.0) for one in ids)
    assert 800 < sum(capture.is_kept(one, 0.25) for one in ids) < 1200  # 7 standard deviations


def test_without_kept_images_only_records_are_written(paths: StorePaths) -> None:
    record_all(paths, [answered()], OPTIONS.model_copy(update={"keep_images": 0.0}))
    assert len(list(records.read(paths))) == 1
    assert not paths.traffic_images.exists()


def test_a_forgotten_image_is_not_recorded_again(paths: StorePaths) -> None:
    files.append_json_lines(paths.forgotten, {"hash": content(answered(1).image)})
    record_all(paths, [answered(1), answered(2)])
    assert [row["hash"] for row in records.read(paths)] == [content(answered(2).image)]
    assert len(list(paths.traffic_images.rglob("*.png"))) == 1


def test_a_hanging_disk_drops_predictions_without_delay_and_recording_resumes(
    paths: StorePaths, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flywheel.serving")
    first = answered(0, size=512)
    kept = records.image_path(paths, content(first.image))
    kept.parent.mkdir(parents=True)
    blocked = kept.with_name(f".{kept.stem[:16]}-replica1")
    os.mkfifo(blocked)  # writing to it blocks until someone reads
    recorder.add(first)
    wait_until(lambda: recorder.waiting == 0, "the writer has taken the first image")
    started = time.monotonic()
    for seed in range(200):
        recorder.add(answered(seed, size=512))
    assert recorder.counts.dropped > 50
    assert recorder.waiting * first.image.nbytes <= capture.QUEUE_BYTES
    assert time.monotonic() - started < 15  # 200 images were made; no call waited for the disk
    with blocked.open("rb") as reader:
        reader.read()
    wait_until(lambda: recorder.waiting == 0, "the queue is written")
    recorder.add(answered(500))
    recorder.close(timeout_s=60)
    assert recorder.counts.recorded + recorder.counts.dropped == 202
    assert caplog.text.count("predictions are not recorded: its disk is too slow") == 1
    assert "recording again" in caplog.text


def test_the_queue_of_small_images_is_bounded_by_the_memory_of_their_answers(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "WRITE_EVERY_S", 2.0)
    monkeypatch.setattr(capture, "QUEUE_BYTES", 1_000_000)
    for _ in range(2_000):
        recorder.add(answered())
    assert recorder.waiting + recorder.counts.dropped == 2_000
    assert 500 < recorder.waiting < 1_000  # not 5,208, by their pixels alone


def test_a_folder_that_cannot_be_written_counts_the_loss_says_it_once_and_resumes(
    paths: StorePaths, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flywheel.serving")
    paths.traffic.mkdir(parents=True)
    paths.traffic_records.write_text("in the way")
    for seed in range(3):
        recorder.add(answered(seed))
        wait_until(lambda seen=seed: recorder.counts.dropped > seen, "the loss is counted")
    paths.traffic_records.unlink()
    recorder.add(answered(4))
    recorder.close()
    assert (recorder.counts.dropped, recorder.counts.recorded) == (3, 1)
    assert caplog.text.count("predictions are not recorded") == 1
    assert caplog.text.count("recording again") == 1


def test_a_removed_folder_comes_back(paths: StorePaths, recorder: Recorder) -> None:
    recorder.add(answered(1))
    wait_until(lambda: recorder.counts.recorded == 1, "the first record")
    paths.traffic.rename(paths.traffic.with_name("moved"))
    recorder.add(answered(2))
    recorder.close()
    assert len(list(records.read(paths))) == 1
    assert recorder.counts.dropped == 0


WRITER = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from flywheel.params import StorePaths
from flywheel.traffic.capture import Recorder
from made_traffic import OPTIONS, answered
recorder, seed = Recorder(StorePaths(Path(sys.argv[1])), OPTIONS, "killed"), 0
while True:
    seed += 1
    if recorder.waiting < 500:
        recorder.add(answered(seed % 50))
"""


def test_a_killed_replica_leaves_records_that_can_be_read_and_the_next_one_goes_on(paths: StorePaths) -> None:
    command = [sys.executable, "-c", WRITER, str(paths.root), str(Path(__file__).parents[1] / "support")]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: len(list(records.read(paths))) > 100, "records of the process", 60)
        finally:
            process.kill()
    before = len(list(records.read(paths)))
    (path, *_) = paths.traffic_records.iterdir()
    with path.open("ab") as file:
        file.write(b'{"prediction_id": "0199')  # as a power failure cuts it
    recorder = Recorder(paths, OPTIONS, "killed")
    recorder.add(answered(1))
    recorder.close()
    assert len(list(records.read(paths))) == before + 1
    for kept in paths.traffic_images.rglob("*.png"):
        Image.open(kept).load()


@pytest.mark.parametrize("left_empty", [False, True], ids=["new", "a killed process left it empty"])
def test_replicas_that_start_at_once_have_one_secret_that_only_its_owner_reads(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch, left_empty: bool
) -> None:
    make = secrets.token_urlsafe
    monkeypatch.setattr("secrets.token_urlsafe", lambda size: (time.sleep(0.1), make(size))[1])
    if left_empty:
        files.write_text(paths.salt, "")
    with ThreadPoolExecutor(3) as replicas:
        (made,) = set(replicas.map(keys.salt, [paths] * 3))
    assert made.decode() == paths.salt.read_text().strip()
    assert len(made) >= 43
    assert stat.S_IMODE(paths.salt.stat().st_mode) == 0o600
    assert keys.hash_group("patient 1", made) != keys.hash_group("patient 1", b"other")


def test_a_secret_is_read_without_a_lock(paths: StorePaths) -> None:
    made = keys.salt(paths)
    with files.lock(paths.lock("secrets")):  # as on a disk on which none can be taken
        assert keys.salt(paths) == made
