"""Simulated traffic against a real HTTP server: what is counted, what becomes feedback, and what a server may do."""

from __future__ import annotations

import shutil
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_models
import numpy as np
import pytest

from flywheel import files
from flywheel.data.dataset import Dataset
from flywheel.files import Locked
from flywheel.metrics.classification import wilson_interval
from flywheel.params import Params
from flywheel.pipeline import server_record
from flywheel.pipeline.server_record import Served
from flywheel.pipeline.stage import StageError
from flywheel.registry import Registry, Version
from flywheel.simulation import SimulationError
from flywheel.simulation import stage as simulation_stage
from flywheel.simulation.report import SimulationReport
from flywheel.traffic import feedback

Make = Callable[[str], Params]
Server = Any


def busy(after_s: float | None = 0.0) -> Callable[[Any], None]:
    headers = {} if after_s is None else {"Retry-After": str(after_s)}
    return lambda handler: handler.reply(503, {"error": "the model is loading", "request_id": "x"}, headers)


def reset(handler: Any) -> None:
    """Close the connection without an answer, with a TCP reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


@pytest.fixture
def run(registry: Registry, said: list[str]) -> Callable[..., Any]:
    def play(params: Params) -> Any:
        said.clear()
        return simulation_stage.run(params, registry)

    play.said = said  # type: ignore[attr-defined]
    return play


def sides(opened: Dataset, side: str, count: int) -> list[int]:
    """Return the first simulation images of a side."""
    return [int(i) for i in np.flatnonzero(opened.holdout == (side == "holdout"))[:count]]


def nothing_published(params: Params, registry: Registry) -> bool:
    paths = (params.reports / "simulation.json", params.store_paths.feedback_log)
    return feedback.latest(params, registry) is None and not any(path.exists() for path in paths)


# -- what is counted -----------------------------------------------------------------------------------


def test_the_report_tells_the_truth(
    params: Params, registry: Registry, opened: Dataset, server: Server, run: Any
) -> None:
    server.fail(opened, range(30))
    report = run(params)
    n = len(opened.indices["simulation"])
    assert (report.n, report.failures, report.errors) == (n, 30, {})
    assert report.accuracy == (n - 30) / n == report.accuracy_unseen
    held, failed = int(opened.holdout.sum()), int(opened.holdout[:30].sum())
    assert (report.n_holdout, report.accuracy_holdout) == (held, (held - failed) / held)
    assert report.interval == wilson_interval(n - 30, n)
    assert report.models == {"model-1:v0": n}
    assert set(report.per_class) == set(opened.class_names)
    assert 0 < report.latency_ms.p50 <= report.latency_ms.p95 <= report.latency_ms.p99
    shown = report.confidence_histogram
    assert (sum(shown.right), sum(shown.wrong)) == (report.n - report.failures, report.failures)
    assert sum(report.latency_histogram_ms.count) == report.n
    assert len(report.worst) == min(report.failures, 40)
    assert all(one.label != one.prediction for one in report.worst)
    assert report.requests_per_s == pytest.approx(n / report.wall_s, rel=0.05)
    assert SimulationReport.model_validate(files.read_json(params.reports / "simulation.json")) == report
    for name in ("failures", "confidence", "latency"):
        assert (params.reports / f"simulation_{name}.png").stat().st_size > 1000
    assert server.requests == n == len(server.sent)


def test_part_of_the_images_is_a_seeded_draw(make: Make, server: Server, run: Any) -> None:
    drawn = []
    for overrides in ("simulate.requests=40", "simulate.requests=40", "simulate.requests=40 simulate.seed=1"):
        server.sent.clear()
        assert run(make(overrides)).n == 40
        drawn.append(set(server.sent))
    assert drawn[0] == drawn[1] != drawn[2]


def test_as_many_requests_as_asked_for_are_in_flight(make: Make, server: Server, run: Any) -> None:
    flying: list[int] = []
    now = 0

    def count(number: int, tries: int) -> None:
        nonlocal now
        with server.lock:
            now += 1
            flying.append(now)
        time.sleep(0.02)
        with server.lock:
            now -= 1

    server.fault = count
    run(make("simulate.requests=60 simulate.concurrency=7"))
    assert max(flying) == 7


def test_each_version_that_answered_is_counted(make: Make, server: Server, run: Any) -> None:
    server.model = lambda number: "model-2:v0" if number > 15 else "model-1:v0"
    report = run(make("simulate.requests=40 simulate.concurrency=1"))
    assert report.models == {"model-1:v0": 15, "model-2:v0": 25}


# -- feedback ------------------------------------------------------------------------------------------


def test_labels_become_feedback_with_their_lineage(
    params: Params, registry: Registry, opened: Dataset, dataset_version: Version, server: Server, run: Any
) -> None:
    server.fail(opened, range(12))
    report = run(params)
    version = registry.resolve("digits-feedback")
    n = len(opened.indices["simulation"])
    assert (version.ref, report.feedback_new) == (report.feedback, n)
    assert version.inputs == {"dataset": (dataset_version.ref,), "model": (registry.resolve("model-1").ref,)}
    listed = feedback.read(registry, version)
    simulation = opened.indices["simulation"]
    failed = {int(opened.ids[simulation[i]]) for i in range(12)}
    assert sorted(e.id for e in listed) == sorted(opened.ids[simulation].tolist())
    assert {e.id for e in listed if not e.right} == failed
    assert set(files.read_json(registry.open(version) / feedback.FILE)["failures"]) == failed
    for example in listed:
        assert (example.source, example.chosen, example.confidence) == ("simulation", "all", pytest.approx(0.9))
        (i,) = np.flatnonzero(opened.ids[simulation] == example.id)
        assert example.hash == opened.hashes[simulation[i]].tobytes().hex()
        assert example.label == opened.class_names[opened.labels[simulation[i]]]
        assert example.side == ("holdout" if opened.holdout[i] else "train")
    log = files.read_json_lines(params.store_paths.feedback_log)
    assert [row["event"] for row in log] == ["answer"] * n + ["simulation"]
    assert {row["hash"] for row in log[:n]} == {e.hash for e in listed}
    assert {row["id"] for row in log[:n] if not row["right"]} == failed
    assert all((row["prediction"] == row["label"]) == row["right"] for row in log[:n])
    assert log[-1]["feedback"] == version.ref


def test_the_same_labels_are_the_same_version_whoever_answers_and_when(
    params: Params, registry: Registry, opened: Dataset, server: Server, run: Any
) -> None:
    server.fail(opened, range(12))
    first = run(params)
    server.model = lambda number: "model-2:v0"
    server.change = lambda answer: answer  # another model, other request ids, another time
    server.fail(opened, range(5, 20))
    second = run(params)
    assert second.feedback == first.feedback
    assert second.feedback_new == 0
    assert [v.number for v in registry.versions("digits-feedback")] == [0]
    assert len(files.read_json_lines(params.store_paths.feedback_log)) == 2 * (second.n + 1)


def test_feedback_accumulates_over_turns_each_image_once(
    make: Make, registry: Registry, server: Server, run: Any
) -> None:
    counts = []
    for requests, seed in ((40, 0), (40, 0), (40, 1), (20, 1)):
        run(make(f"simulate.requests={requests} simulate.seed={seed}"))
        counts.append(len(feedback.read(registry, registry.resolve("digits-feedback"))))
    assert 40 == counts[0] == counts[1] < counts[2] == counts[3] < 80
    versions = registry.versions("digits-feedback")
    assert len(versions) == 2
    assert versions[1].input("previous") == versions[0].ref
    assert registry.resolve("digits-feedback") == versions[1]


def test_without_failures_there_is_feedback_of_right_answers(
    params: Params, registry: Registry, server: Server, run: Any
) -> None:
    report = run(params)
    assert (report.failures, report.feedback_new, report.accuracy) == (0, report.n, 1.0)
    assert registry.resolve("digits-feedback").metadata["failures"] == 0
    assert (params.reports / "simulation_failures.png").exists()


def test_wrong_labels_are_published_and_not_reported(
    make: Make, registry: Registry, opened: Dataset, server: Server, run: Any
) -> None:
    report = run(make("simulate.label_noise=0.2"))
    assert (report.accuracy, report.failures) == (1.0, 0)
    listed = feedback.read(registry, registry.resolve("digits-feedback"))
    truth = {int(opened.ids[i]): opened.class_names[opened.labels[i]] for i in opened.indices["simulation"]}
    wrong = [example for example in listed if example.label != truth[example.id or 0]]
    assert 0.1 * len(listed) < len(wrong) < 0.3 * len(listed)
    assert [example for example in listed if not example.right] == wrong


def test_traffic_without_drift_sends_the_same_images_without_it(
    make: Make, registry: Registry, server: Server, run: Any
) -> None:
    params = make("data.drift.noise=3 simulate.drift=none")
    built = made_models.dataset(params, drift=params.data.drift)
    made_models.publish_dataset(registry, params, built)
    clean = built.indices["clean"]
    server.truth = {built.hashes[i].tobytes(): int(built.labels[i]) for i in clean}  # it knows no other
    report = run(params)
    assert (report.accuracy, report.drift, report.n) == (1.0, "none", len(clean))
    listed = feedback.read(registry, registry.resolve("digits-feedback"))
    assert {example.hash for example in listed} == {built.hashes[i].tobytes().hex() for i in clean}


def test_images_that_an_ancestor_was_trained_on_are_seen(
    params: Params, registry: Registry, opened: Dataset, dataset_version: Version, server: Server, run: Any, root: Path
) -> None:
    """A retrained model's grandparent was trained on the first feedback: its train side is seen, its holdout not."""
    train, holdout = sides(opened, "train", 20), sides(opened, "holdout", 9)
    server.fail(opened, train + holdout)
    first = registry.resolve(run(params).feedback.partition("@")[0])
    parent = {"dataset": dataset_version.ref, "feedback": first.ref}
    for text in ("child", "grandchild"):
        (root / text).write_text(text)
        metadata = {"params": {"retrain": {"examples": "failures"}}}
        made = registry.publish("retrained-model", "model", {"a": root / text}, inputs=parent, metadata=metadata)
        parent = {"dataset": dataset_version.ref, "parent": made.ref}
    server.model = lambda number: "retrained-model:v1"
    server.fail(opened, holdout)
    report = run(params)
    n = len(opened.indices["simulation"])
    assert report.n_unseen == n - 20
    assert report.accuracy_unseen == (n - 20 - 9) / (n - 20)
    assert report.accuracy == (n - 9) / n


def test_of_an_unknown_model_nothing_is_said_of_unseen_images(params: Params, server: Server, run: Any) -> None:
    server.model = lambda number: "model-elsewhere:v7"
    report = run(params)
    assert report.accuracy_unseen is None
    assert report.accuracy == 1.0
    assert "simulate: accuracy on unseen images cannot be told: model-elsewhere:v7 is not in the store" in run.said


# -- what a server may do ------------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [None, 0, 0.3])
def test_a_busy_server_is_asked_again_after_the_time_it_names(
    make: Make, server: Server, run: Any, after_s: float | None
) -> None:
    server.fault = lambda number, tries: busy(after_s) if tries < 3 and number < 30 else None
    started = time.monotonic()
    report = run(make("simulate.requests=20 simulate.concurrency=2"))
    assert (report.n, report.accuracy, report.errors) == (20, 1.0, {})
    assert report.retries == server.requests - 20 > 0
    if after_s:
        assert time.monotonic() - started > 2 * after_s


def test_connections_that_break_are_made_again(make: Make, server: Server, run: Any) -> None:
    server.fault = lambda number, tries: reset if tries == 1 and number % 3 == 0 else None
    report = run(make("simulate.requests=30"))
    assert (report.n, report.errors) == (30, {})
    assert report.retries > 0


def test_a_server_that_stalls_is_left_after_the_timeout(make: Make, server: Server, run: Any) -> None:
    server.fault = lambda number, tries: (lambda handler: time.sleep(1.5)) if tries == 1 and number == 5 else None
    report = run(make("simulate.requests=10 simulate.timeout_s=0.4"))
    assert (report.n, report.retries, report.errors) == (10, 1, {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": "ten"}, "unknown label 'ten'"),
        ({"label": None}, "unknown label 'None'"),
        ({"class_id": 99}, "class_id 99 is not"),
        ({"probabilities": {}}, "probabilities of other classes"),
        ({"probabilities": 3}, "not a prediction"),
        ({"confidence": 0.2}, "is not the most probable class, or its confidence is another"),
        ({"confidence": "high"}, "not a prediction"),
        ({"model": None}, "the model has no name"),
        ({"request_id": "another"}, "it answers another request"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_answer_that_is_no_prediction_is_an_error_and_no_failure(
    make: Make, registry: Registry, server: Server, run: Any, change: dict[str, Any], reason: str
) -> None:
    done: list[int] = []

    def once(answer: dict[str, Any]) -> dict[str, Any]:
        done.append(1)
        return {**answer, **change} if len(done) == 5 else answer

    server.change = once
    report = run(make("simulate.requests=20 simulate.max_error_fraction=0.1 simulate.concurrency=1"))
    assert (report.n, report.errors, report.failures) == (19, {"bad_answer": 1}, 0)
    assert server.requests == 20  # it is not asked again
    assert len(feedback.read(registry, registry.resolve("digits-feedback"))) == 19
    assert any(reason in line for line in run.said)


def test_garbage_and_refusals_are_counted_by_kind(make: Make, server: Server, run: Any) -> None:
    faults: dict[int, Callable[[Any], None]] = {
        2: lambda handler: handler.reply(200, b"\xff\xfenot json"),
        3: lambda handler: handler.reply(200, b"[1, 2]"),
        4: lambda handler: handler.reply(413, {"error": "too large", "request_id": "x"}),
        5: lambda handler: handler.reply(404, b"<html>"),
        6: lambda handler: handler.reply(301, b"", {"Location": "http://127.0.0.1:9/"}),
    }
    server.fault = lambda number, tries: faults.get(number)
    report = run(make("simulate.requests=20 simulate.max_error_fraction=0.5 simulate.concurrency=1"))
    assert report.errors == {"bad_answer": 2, "status_301": 1, "status_404": 1, "status_413": 1}
    assert (report.n, report.accuracy, server.requests) == (15, 1.0, 20)
    assert any("413 too large" in line for line in run.said)


def test_a_server_that_keeps_refusing_is_asked_a_bounded_number_of_times(make: Make, server: Server, run: Any) -> None:
    server.fault = lambda number, tries: busy() if number <= 4 else None
    overrides = "simulate.requests=10 simulate.max_attempts=3 simulate.max_error_fraction=0.2 simulate.concurrency=1"
    report = run(make(overrides))
    assert (report.errors, report.retries, server.requests) == ({"status_503": 1}, 3, 13)


def test_a_server_that_says_when_to_come_back_is_waited_for(make: Make, server: Server, run: Any) -> None:
    server.fault = lambda number, tries: busy(1.0) if number == 1 and tries < 3 else None
    report = run(make("simulate.requests=2 simulate.max_attempts=1 simulate.concurrency=1"))
    assert (report.errors, report.n) == ({}, 2)


def test_a_second_simulation_at_once_is_refused(params: Params, server: Server, run: Any) -> None:
    with files.lock(params.store_paths.lock("simulate")), pytest.raises(Locked, match="another run holds simulate"):
        run(params)
    assert server.requests == 0


def test_too_many_errors_end_it_early_and_publish_nothing(
    make: Make, registry: Registry, opened: Dataset, server: Server, run: Any
) -> None:
    server.fail(opened, range(100))
    server.fault = lambda number, tries: busy() if number > 40 else None
    params = make("simulate.max_error_fraction=0.07 simulate.max_attempts=2")
    with pytest.raises(SimulationError, match=r"got no answer .status_503 11., more than") as caught:
        run(params)
    assert "nothing was published; the last reason: 503 the model is loading" in str(caught.value)
    sent = server.requests
    assert sent < 120
    time.sleep(0.5)
    assert server.requests <= sent + 4  # what was in flight
    assert nothing_published(params, registry)


def test_a_server_of_other_classes_is_refused_before_anything_is_sent(params: Params, server: Server, run: Any) -> None:
    server.names = ("cat", "dog")
    with pytest.raises(SimulationError, match=r"model-1:v0 at http.* knows other classes than digits_dataset"):
        run(params)
    assert server.requests == 0


def test_no_server_is_one_sentence(make: Make, params: Params, run: Any) -> None:
    with pytest.raises(StageError, match=r"^nothing serves profile demo; run make serve PROFILE=demo$"):
        run(params)
    server_record.write(params, Served("http://127.0.0.1:9", 1, "", "", ""))
    with pytest.raises(SimulationError, match=r"9 .Connection refused.; run make serve PROFILE=demo$"):
        run(params)
    with pytest.raises(SimulationError, match=r"8 .Connection refused.; is simulate.url right.$"):
        run(make("simulate.url=http://127.0.0.1:8"))
    params.store_paths.server.write_text("{")
    with pytest.raises(StageError, match=r"^nothing serves profile demo; run make serve PROFILE=demo$"):
        run(params)


@pytest.mark.parametrize(
    "described", [b"<html>", [1], {"model": "m:v0"}, {"model": "m:v0", "classes": 7}, {"classes": []}]
)
def test_another_server_than_the_flywheels_is_one_sentence(
    params: Params, server: Server, run: Any, described: Any
) -> None:
    server.described = described
    with pytest.raises(
        SimulationError, match=r"/model does not describe a model; is that the flywheel's server\?; run make"
    ):
        run(params)


def test_a_url_given_is_the_one_asked(make: Make, server: Server, params: Params, run: Any) -> None:
    params.store_paths.server.unlink()
    assert run(make(f"simulate.url={server.url}/ simulate.requests=5")).n == 5


def test_no_data_set_is_one_sentence(params: Params, registry: Registry, server: Server, run: Any) -> None:
    shutil.rmtree(params.store / "registry" / "versions")
    with pytest.raises(StageError, match=r"^there is no digits_dataset; run make data PROFILE=demo$"):
        run(params)


def test_proxies_of_the_environment_are_not_asked_for_this_machine(
    make: Make, server: Server, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert run(make("simulate.requests=5")).n == 5
