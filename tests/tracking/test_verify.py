"""What W&B has is compared with what it should have: as W&B writes numbers, and no looser."""

from __future__ import annotations

from typing import Any

import pytest

from flywheel.tracking.verify import _equal, rows_after


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (2, 2.0), (None, None), (float("nan"), "NaN"), (float("-inf"), "-Infinity"), ([1, {"a": 1}], [1.0, {"a": 1.0}]),
        ({"a": 1, "more": 2}, {"a": 1}), ({"a": {}}, {"a": {"b": None}}), (True, True), ("x", "x"), ((1, 2), [1, 2]),
    ],
)  # fmt: skip
def test_the_equal(there: Any, wanted: Any) -> None:
    assert _equal(there, wanted)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (2, 2.5), (None, 0), (1, True), (0.1, 0.1 + 1e-15), ([1], [1, 2]), ([1, {"a": 1}], [1, {"a": 2}]),
        ({}, {"a": 1}), ("2", 2), ({"a": {"b": 1}}, {"a": {"b": 2}}), ([2, 1], [1, 2]), (float("nan"), 1.0),
    ],
)  # fmt: skip
def test_not_the_equal(there: Any, wanted: Any) -> None:
    assert not _equal(there, wanted)


def test_rows_that_are_not_there_are_those_after_the_last_that_is() -> None:
    rows = [{"epoch": epoch, "x": epoch / 2} for epoch in range(4)]
    there = [{**row, "_step": number} for number, row in enumerate(rows)]
    assert rows_after(rows, there) == []
    assert rows_after(rows, [there[0], {"picture": 1}, *there[1:]]) == []
    assert rows_after(rows, there[:2]) == rows[2:]
    assert rows_after(rows, []) == rows
    assert rows_after(rows, there[::-1])
