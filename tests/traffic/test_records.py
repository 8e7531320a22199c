"""Ids of predictions and the files of records."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from made_traffic import id_of_age

from flywheel import files
from flywheel.params import StorePaths
from flywheel.traffic import records


def test_ids_are_unique_uuids_of_version_7_that_carry_their_time() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    ids = [records.new_id() for _ in range(5_000)]
    assert len(set(ids)) == 5_000
    assert all(uuid.UUID(one).version == 7 and uuid.UUID(one).variant == uuid.RFC_4122 for one in ids)
    times = [records.time_of(one) for one in ids]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= datetime.now(UTC)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        7,
        "",
        "cat",
        "0b7e6f0e-6c1e-4e2b-9d0b-0a4b6c2f9d11",  # version 4
        "01990C3E-7F6B-7CC4-A1D2-5F0E8C9B7A11",
        "01990c3e7f6b7cc4a1d25f0e8c9b7a11",
        "01990c3e-7f6b-7cc4-c1d2-5f0e8c9b7a11",  # another variant
        "ffffffff-7f6b-7cc4-a1d2-5f0e8c9b7a11",  # the year 10895
    ],
)
def test_other_values_are_no_id(wrong: object) -> None:
    with pytest.raises(ValueError, match="not a prediction_id"):
        records.time_of(wrong)


def test_records_are_read_hour_by_hour_without_torn_and_foreign_lines(paths: StorePaths) -> None:
    old, new = id_of_age(7300), records.new_id()
    for name, one in (("b", new), ("a", old), ("b", old)):
        path = paths.traffic_records / f"{name}-{records.hour_of(one)}.jsonl"
        files.append_json_lines(path, {"prediction_id": one, "hash": name})
        with path.open("a") as file:
            file.write('[1]\nnot json\n{"prediction_id": 5}\n{"prediction_id": "cut o')
    (paths.traffic_records / "notes.jsonl").write_text('{"prediction_id": "x"}\n')
    found = [(row["prediction_id"], row["hash"]) for row in records.read(paths)]
    assert found == [(old, "a"), (old, "b"), (new, "b")]
    assert records.cut_off(paths) == 3
