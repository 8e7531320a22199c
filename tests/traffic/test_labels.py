"""Labels: every row is answered, what is stored can be read, and the order of arrival does not matter."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_traffic import CLASSES, answered, id_of_age, record_all

from flywheel import files
from flywheel.params import StorePaths
from flywheel.traffic import labels, records
from flywheel.traffic.labels import Label, LabelLog


def log_of(paths: StorePaths, writer: str = "replica1") -> LabelLog:
    return LabelLog(paths, writer, lambda: CLASSES, 30.0)


def predicted(paths: StorePaths, age_s: float = 3600) -> str:
    """Return the id of a recorded prediction."""
    made = id_of_age(age_s)
    path = paths.traffic_records / f"replica1-{records.hour_of(made)}.jsonl"
    files.append_json_lines(path, {"prediction_id": made, "hash": "00"})
    return made


def nested(depth: int) -> list[object]:
    made: list[object] = []
    for _ in range(depth):
        made = [made]
    return made


def statuses(log: LabelLog, *rows: object) -> list[str]:
    return [answer.status for answer in log.add(rows)]


def held(paths: StorePaths) -> dict[str, tuple[str, ...]]:
    """Return the labels that hold, by prediction."""
    return {made: labels.current(known) for _, of_hour in labels.read(paths) for made, known in of_hour.items()}


def row(made: str, label: str | None, labeller: str = "ann") -> dict[str, object]:
    return {"prediction_id": made, "label": label, "labeller": labeller}


def test_a_label_is_accepted_repeated_replaced_disputed_and_taken_back(paths: StorePaths) -> None:
    made, log = predicted(paths), log_of(paths)
    for label, labeller, status, holds in (
        ("cat", "ann", "accepted", ("cat",)),
        ("cat", "ann", "duplicate", ("cat",)),
        ("dog", "ann", "replaced", ("dog",)),
        ("dog", "bob", "accepted", ("dog",)),
        ("fox", "bob", "conflict", ("dog", "fox")),
        (None, "bob", "replaced", ("dog",)),
        (None, "bob", "duplicate", ("dog",)),
        (None, "eve", "duplicate", ("dog",)),
        (None, "ann", "replaced", ()),
    ):
        assert statuses(log, row(made, label, labeller)) == [status], (label, labeller)
        assert held(paths) == {made: holds}


def test_an_unconfirmed_label_counts_nowhere(paths: StorePaths) -> None:
    made, log = predicted(paths), log_of(paths, "page1-a")
    unconfirmed = row(made, "dog") | {"verdict": "unconfirmed"}
    assert statuses(log, unconfirmed, row(made, "cat", "bob")) == ["accepted", "accepted"]
    assert held(paths) == {made: ("cat",)}
    assert statuses(log, row(made, "dog")) == ["conflict"]
    assert held(paths) == {made: ("cat", "dog")}


def test_two_replicas_see_each_others_labels(paths: StorePaths) -> None:
    made, first, second = predicted(paths), log_of(paths), log_of(paths, "replica2")
    assert statuses(first, row(made, "cat")) == ["accepted"]
    assert statuses(second, row(made, "cat"), row(made, "dog")) == ["duplicate", "replaced"]
    assert statuses(first, row(made, "dog"), row(made, "fox", "bob")) == ["duplicate", "conflict"]
    assert held(paths) == {made: ("dog", "fox")}


def test_a_label_may_come_before_its_prediction_is_on_disk(paths: StorePaths) -> None:
    one, log = answered(), log_of(paths)
    assert statuses(log, row(one.prediction_id, "cat")) == ["pending"]
    record_all(paths, [one])
    assert statuses(log, row(one.prediction_id, "cat"), row(one.prediction_id, "dog")) == ["duplicate", "replaced"]
    assert held(paths) == {one.prediction_id: ("dog",)}


def test_only_so_many_labels_wait_for_their_predictions(paths: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_PENDING", 3)
    rows = [row(records.new_id(), "cat") for _ in range(4)]
    answers = log_of(paths).add(rows)
    assert [answer.status for answer in answers] == ["pending"] * 3 + ["unknown"]
    assert "send it again" in answers[3].reason
    assert len(held(paths)) == 3
    assert labels.join(paths) == ({}, 3)  # also if they never come, as those of another profile


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("cat", "not an object"),
        ({"label": "cat"}, "prediction_id is missing"),
        ({"prediction_id": "ID"}, "label is missing"),
        ({"prediction_id": "ID", "label": "cat", "when": 1}, "unknown key 'when'"),
        ({"prediction_id": "ID", "label": "cat", "when": "1", None: ["2"]}, "unknown key None"),  # of a CSV file
        ({"prediction_id": "abc", "label": "cat"}, "not a prediction_id: 'abc'"),
        ({"prediction_id": 5, "label": "cat"}, "not a prediction_id: 5"),
        ({"prediction_id": "\ud800", "label": "cat"}, r"not a prediction_id: '\ud800'"),
        ({"prediction_id": "ID", "label": "\ud800"}, r"'\ud800' is not a class of the model"),
        ({"prediction_id": "ID", "label": "cat", "\ud800": 1}, r"unknown key '\ud800'"),
        ({"prediction_id": "ID", "label": nested(10_000)}, "recursion"),
        ({"prediction_id": "ID", "label": "wolf"}, "'wolf' is not a class of the model"),
        ({"prediction_id": "ID", "label": 1}, "1 is not a class of the model"),
        ({"prediction_id": "ID", "label": ["cat"]}, "['cat'] is not a class"),
        ({"prediction_id": "ID", "label": "cat", "labeller": ""}, "labeller must be a name"),
        ({"prediction_id": "ID", "label": "cat", "labeller": "\ud800"}, "labeller must be a name"),
        ({"prediction_id": "ID", "label": "cat", "labeller": "x" * 101}, "labeller must be a name"),
        ({"prediction_id": "x" * 10_000, "label": "cat"}, "not a prediction_id: 'xxx"),
        ({"prediction_id": "ID", "label": "x" * 10_000}, "is not a class of the model"),
        ({"prediction_id": "ID", "label": "cat", "x" * 10_000: 1}, "unknown key 'xxx"),
        ({"prediction_id": "ID", "label": "cat", "verdict": "not_sure"}, "verdict must be"),
        ({"prediction_id": "ID", "label": None, "verdict": []}, "verdict must be"),
    ],
)
def test_a_wrong_row_is_answered_and_the_others_are_taken(paths: StorePaths, wrong: object, reason: str) -> None:
    made = predicted(paths)
    if isinstance(wrong, dict) and wrong.get("prediction_id") == "ID":
        wrong = {**wrong, "prediction_id": made}
    answers = log_of(paths).add([wrong, row(made, "cat")])
    assert [answer.status for answer in answers] == ["invalid", "accepted"]
    assert reason in answers[0].reason
    assert len(answers[0].reason) < 200
    assert json.dumps([asdict(one) for one in answers], ensure_ascii=False).encode()  # it can be sent
    assert held(paths) == {made: ("cat",)}


def test_unknown_and_expired_predictions_are_answered_and_not_stored(paths: StorePaths) -> None:
    log = log_of(paths)
    assert statuses(log, row(id_of_age(61), "cat"), row(id_of_age(31 * 86400), "cat")) == ["unknown", "expired"]
    assert held(paths) == {}


def test_a_clock_that_was_set_back_loses_no_label(paths: StorePaths) -> None:
    made = predicted(paths, age_s=-3600)  # the server answered an hour ahead of the present clock
    assert statuses(log_of(paths), row(made, "cat")) == ["accepted"]
    (written,) = paths.traffic_labels.iterdir()
    ahead = {"at": "2999-01-01T00:00:00Z"}  # so was the clock of who labelled first
    written.write_text(json.dumps({**json.loads(written.read_text()), **ahead}) + "\n")
    assert held(paths) == {made: ("cat",)}
    assert statuses(log_of(paths), row(made, "dog")) == ["replaced"]
    assert held(paths) == {made: ("dog",)}


def test_a_disk_that_refuses_raises_and_the_rows_can_be_sent_again(paths: StorePaths) -> None:
    made, log = predicted(paths), log_of(paths)
    paths.traffic_labels.write_text("in the way")
    with pytest.raises(FileExistsError):
        log.add([row(made, "cat")])
    paths.traffic_labels.unlink()
    assert statuses(log, row(made, "cat")) == ["accepted"]
    other = id_of_age(7200)
    unreadable = paths.traffic_records / f"replica1-{records.hour_of(other)}.jsonl"
    unreadable.mkdir()
    with pytest.raises(IsADirectoryError):
        log.add([row(made, "dog"), row(other, "cat")])
    unreadable.rmdir()
    assert statuses(log, row(made, "dog")) == ["replaced"]


def test_after_any_error_the_rows_can_be_sent_again(paths: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    made, log = predicted(paths), log_of(paths)
    with monkeypatch.context() as broken:
        broken.setattr(labels.files, "append_json_lines", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            log.add([row(made, "cat")])
    assert statuses(log, row(made, "cat")) == ["accepted"]


def test_few_hours_stay_in_memory(paths: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_CACHED_IDS", 3)
    ids, log = [predicted(paths, hours * 3600) for hours in range(1, 9)], log_of(paths)
    for _ in range(2):
        for made in ids:
            log.add([row(made, "cat")])
            assert sum(len(hour.ids) for hour in log._hours.values()) <= 3
    assert held(paths) == dict.fromkeys(ids, ("cat",))


@settings(max_examples=40, deadline=None)
@given(
    given_labels=st.lists(
        st.builds(
            Label,
            sequence=st.integers(1, 4),
            writer=st.sampled_from("xyz"),
            prediction_id=st.sampled_from("pq"),
            label=st.sampled_from([*CLASSES, None]),
            labeller=st.sampled_from("ab"),
            at=st.just(""),
        ),
        unique_by=lambda label: (label.sequence, label.writer, label.prediction_id, label.labeller),
    ),
    seed=st.integers(0, 9),
)
def test_order_and_repetition_change_nothing(given_labels: Sequence[Label], seed: int) -> None:
    def outcome(rows: Sequence[Label]) -> dict[str, tuple[str, ...]]:
        known: dict[str, dict[str, Label]] = {}
        for label in rows:
            labels.fold(known, label)
        return {made: labels.current(of_prediction) for made, of_prediction in sorted(known.items())}

    shuffled = [*given_labels, *given_labels]
    random.Random(seed).shuffle(shuffled)
    assert outcome(shuffled) == outcome(given_labels)
