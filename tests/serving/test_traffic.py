"""A real server records what it answers and takes labels for it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import processes
import psutil
import pytest
import requests
from made_traffic import id_of_age, record, write_records
from served import CLASSES, ROOT, Server, png
from waiting import wait_until

from flywheel.data import images
from flywheel.traffic import keys, labels, records


def recorded(server: Server, prediction_id: str) -> dict[str, Any] | None:
    return next((row for row in records.read(server.params.store_paths) if row["prediction_id"] == prediction_id), None)


def send(server: Server, rows: object, token: str | None = None) -> requests.Response:
    bearer = {"Authorization": f"Bearer {keys.token(server.params.store_paths) if token is None else token}"}
    body = rows if isinstance(rows, bytes) else json.dumps(rows)
    return requests.post(f"{server.url}/feedback", data=body, headers=bearer, timeout=30)


def test_every_answer_has_an_id_and_a_record(server: Server) -> None:
    one = requests.post(f"{server.url}/predict?group=camera-7", data=png(1), timeout=30).json()
    parts = [("file", png(2)), ("file", b"no image"), ("file", png(3))]
    many = requests.post(f"{server.url}/predict", files=parts, timeout=30).json()["predictions"]
    assert "prediction_id" not in many[1]
    answers = [one, many[0], many[2]]
    assert len({answer["prediction_id"] for answer in answers}) == 3
    paths = server.params.store_paths
    for answer in answers:
        wait_until(lambda made=answer["prediction_id"]: recorded(server, made) is not None, "the record")
        row = recorded(server, answer["prediction_id"])
        assert row is not None
        assert row["probabilities"] == list(answer["probabilities"].values())
        assert row["prediction"] == answer["label"]
        assert row["model"].startswith(answer["model"].partition(":")[0])
        assert row["group"] == (keys.hash_group("camera-7", keys.salt(paths)) if answer is one else None)
    assert stat.S_IMODE(paths.traffic.stat().st_mode) == 0o700
    assert "camera-7" not in "".join(path.read_text() for path in paths.traffic_records.iterdir())


def test_the_metrics_have_the_last_result_of_make_monitor(server: Server) -> None:
    requests.post(f"{server.url}/predict", data=png(1), timeout=30).raise_for_status()
    wait_until(lambda: any(records.read(server.params.store_paths)), "a record")
    assert "there is no digits_dataset" in server.run("monitor")
    assert [sample.value for sample in server.samples("flywheel_monitor_alarm", model="model-1:v0")] == [0]
    assert server.samples("flywheel_monitor_run_seconds")


def test_labels_are_answered_row_by_row_and_stored(server: Server) -> None:
    made = requests.post(f"{server.url}/predict", data=png(4), timeout=30).json()["prediction_id"]
    rows = [{"prediction_id": made, "label": CLASSES[0]}, {"prediction_id": made, "label": "unicorn"}, 5]
    answer = send(server, [*rows, {"prediction_id": id_of_age(3600), "label": CLASSES[0]}])
    assert answer.status_code == 200
    first, *others = [result["status"] for result in answer.json()["results"]]
    assert first in ("accepted", "pending")
    assert others == ["invalid", "invalid", "unknown"]
    wait_until(lambda: recorded(server, made) is not None, "the record")
    assert send(server, rows[:1]).json()["counts"] == {"duplicate": 1}
    stored = {key: given for _, known in labels.read(server.params.store_paths) for key, given in known.items()}
    assert labels.current(stored[made]) == (CLASSES[0],)
    assert len(stored) == 1


@pytest.mark.parametrize("token", ["", "wrong", "wrong\u00e9".encode().decode("latin-1")])
def test_labels_without_the_token_are_refused(server: Server, token: str) -> None:
    answer = send(server, [], token)
    assert answer.status_code == 401
    assert "store/<profile>/token" in answer.json()["error"]
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_of_a_thousand_rows_three_bad_ones_are_named_and_the_rest_is_on_disk(server: Server) -> None:
    at, paths = datetime.now(UTC) - timedelta(hours=1), server.params.store_paths
    known = [record("m", [1.0], at, f"{number:064x}", number) for number in range(997)]
    write_records(paths, known)
    rows: list[object] = [{"prediction_id": row["prediction_id"], "label": CLASSES[0]} for row in known]
    for place, bad in ((0, 5), (500, {"label": CLASSES[0]}), (999, {**known[0], "label": "unicorn"})):
        rows.insert(place, bad)
    answer = send(server, rows)
    assert (answer.status_code, answer.json()["counts"]) == (200, {"invalid": 3, "accepted": 997})
    invalid = [number for number, row in enumerate(answer.json()["results"]) if row["status"] == "invalid"]
    assert invalid == [0, 500, 999]
    assert {row["prediction_id"] for row in known} <= {made for _, by_id in labels.read(paths) for made in by_id}


def test_the_token_is_only_in_its_file(server: Server) -> None:
    paths = server.params.store_paths
    assert stat.S_IMODE(paths.token.stat().st_mode) == 0o600
    token = keys.token(paths).encode()
    found = [path for path in paths.root.rglob("*") if path.is_file() and token in path.read_bytes()]
    assert found == [paths.token]
    lines = [line for process in psutil.process_iter(["cmdline"]) for line in process.info["cmdline"] or ()]
    assert not [line for line in lines if token.decode() in line]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"prediction_id": "x"}, 400, "not an array"),
        ([{}] * 1001, 413, "1,001 rows; at most 1,000"),
        (["x" * 200_000], 413, "serve.max_body_bytes"),
        (b"[" * 100_000, 400, "not JSON"),
    ],
)
def test_a_wrong_body_is_refused(server: Server, body: object, status: int, reason: str) -> None:
    answer = send(server, body)
    assert answer.status_code == status
    assert reason in answer.json()["error"]


def test_the_metrics_count_records_and_labels(server: Server) -> None:
    requests.post(f"{server.url}/predict", data=png(5), timeout=30).raise_for_status()
    send(server, [5])
    wait_until(lambda: server.metric("flywheel_traffic", what="recorded") >= 1, "a recorded prediction")
    assert server.metric("flywheel_labels_total", status="invalid") >= 1


def test_a_store_that_hangs_delays_no_prediction_and_loses_none(server: Server) -> None:
    paths, sent = server.params.store_paths, []

    def median_s(seeds: range) -> float:
        answers = [server.predict(png(seed)) for seed in seeds]
        assert {answer.status_code for answer in answers} == {200}
        sent[:] = [answer.json()["prediction_id"] for answer in answers]
        return statistics.median(answer.elapsed.total_seconds() for answer in answers)

    before = median_s(range(7000, 7050))
    wait_until(lambda: recorded(server, sent[-1]) is not None, "the record")
    written = next(path for path in paths.traffic_records.iterdir() if sent[-1] in path.read_text())
    content = hashlib.sha256(images.decode(png(7999), 32).tobytes()).hexdigest()
    kept = records.image_path(paths, content)
    blocked = kept.with_name(f".{content[:16]}-{written.name.rpartition('-')[0]}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(blocked)  # writing to it blocks until someone reads
    try:
        server.predict(png(7999)).raise_for_status()
        during = median_s(range(7100, 7150))
        assert recorded(server, sent[-1]) is None
        assert during < 5 * before
    finally:
        with blocked.open("rb") as reader:
            reader.read()
    wait_until(lambda: {row["prediction_id"] for row in records.read(paths)} >= set(sent), "the records")
    kept.unlink()  # the pipe, by its new name


@pytest.fixture
def small_disk(fresh: Server) -> Iterator[Path]:
    """A disk of 300 kB where the server keeps its traffic."""
    folder = fresh.params.store_paths.traffic
    folder.mkdir(parents=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("this machine cannot mount a small disk (root is needed)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path) -> None:
    (disk / "other").write_bytes(bytes(250_000))


def mounted(options: str) -> Callable[[Path], object]:
    return lambda disk: subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@pytest.mark.long
@pytest.mark.parametrize(
    ("break_it", "mend"),
    [
        pytest.param(fill, lambda disk: (disk / "other").unlink(), id="full"),
        pytest.param(mounted("ro"), mounted("rw"), id="not permitted"),
    ],
)
def test_a_disk_that_refuses_fails_no_prediction_and_recording_resumes(
    fresh: Server, small_disk: Path, break_it: Callable[[Path], object], mend: Callable[[Path], object]
) -> None:
    assert "[exit 0]" in fresh.run("serve", extra="traffic.keep_images=1.0 traffic.min_free_fraction=0.0")
    break_it(small_disk)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: fresh.predict(png(seed)).status_code, range(400)))
    assert set(answers) == {200}
    wait_until(lambda: fresh.metric("flywheel_traffic", what="dropped") > 0, "the loss is counted")
    log = fresh.params.store_paths.log("serve")
    assert log.read_text().count("predictions are not recorded") == 1
    mend(small_disk)
    before = fresh.metric("flywheel_traffic", what="recorded")
    fresh.predict(png(1)).raise_for_status()
    wait_until(lambda: fresh.metric("flywheel_traffic", what="recorded") > before, "recording again")
    assert "recording again" in log.read_text()


@pytest.mark.long
@pytest.mark.parametrize("victim", ["replica", "host"])
def test_killed_processes_lose_only_the_queue_and_labels_stay(fresh: Server, victim: str) -> None:
    assert "[exit 0]" in fresh.run("serve", extra="traffic.keep_images=1.0")
    paths = fresh.params.store_paths
    made = [fresh.predict(png(seed)).json()["prediction_id"] for seed in range(20)]
    wait_until(lambda: recorded(fresh, made[-1]) is not None, "the records")
    rows = [{"prediction_id": one, "label": CLASSES[0]} for one in made]
    assert send(fresh, rows).json()["counts"] == {"accepted": 20}
    found = [process for process in processes.of(paths.root) if "ServeReplica" in " ".join(process.cmdline())]
    host = json.loads(paths.server.read_text())["pid"]
    with ThreadPoolExecutor(4) as pool:  # killed while it answers and writes
        load = [pool.submit(fresh.predict, png(seed)) for seed in range(100, 300)]
        wait_until(lambda: sum(one.done() for one in load) > 50, "answers")
        os.kill(found[0].pid if victim == "replica" else host, signal.SIGKILL)
    if victim == "host":
        wait_until(lambda: not psutil.pid_exists(host), "the host is gone")
        assert "[exit 0]" in fresh.run("serve", extra="traffic.keep_images=1.0")

    def again() -> bool:
        try:
            return fresh.predict(png(99)).status_code == 200
        except requests.RequestException:
            return False

    wait_until(again, "predictions again", 120)
    assert send(fresh, rows).json()["counts"] == {"duplicate": 20}
    assert {row["prediction_id"] for row in records.read(paths)} >= set(made)


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "traffic.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_the_client_of_the_docs_labels_an_image(server: Server, tmp_path: Path) -> None:
    (code,) = blocks("python")
    (tmp_path / "image.png").write_bytes(png(11))
    environment = {
        **os.environ, "FLYWHEEL_URL": server.url, "FLYWHEEL_TOKEN": keys.token(server.params.store_paths),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() in ("accepted", "pending"), done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing")
def test_the_curl_lines_of_the_docs_label_an_image(server: Server, tmp_path: Path) -> None:
    (code,) = [block for block in blocks("sh") if "curl" in block]
    ((row,),) = map(json.loads, blocks("json"))
    (tmp_path / "image.png").write_bytes(png(12))
    made = server.predict(png(12)).json()["prediction_id"]
    (tmp_path / "labels.json").write_text(json.dumps([{**row, "prediction_id": made}]))
    code = code.replace("store/cifar10/token", str(server.params.store_paths.token))
    code = code.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run(["sh", "-ec", code], cwd=tmp_path, capture_output=True, text=True)
    assert '"prediction_id"' in done.stdout
    assert '"accepted":1' in done.stdout or '"pending":1' in done.stdout, done.stdout + done.stderr
