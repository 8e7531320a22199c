"""W&B's values are compared with recorded ones as W&B writes numbers, and no looser."""

from __future__ import annotations

from typing import Any

import pytest

from flywheel.tracking.verify import _equal, rows_after


@pytest.mark.parametrize(
    ("uploaded", "expected"),
    [
        (2, 2.0), (None, None), (float("nan"), "NaN"), (float("-inf"), "-Infinity"), ([1, {"a": 1}], [1.0, {"a": 1.0}]),
        ({"a": 1, "more": 2}, {"a": 1}), ({"a": {}}, {"a": {"b": None}}), (True, True), ("x", "x"), ((1, 2), [1, 2]),
    ],
)  # fmt: skip
def test_equal(uploaded: Any, expected: Any) -> None:
    assert _equal(uploaded, expected)


@pytest.mark.parametrize(
    ("uploaded", "expected"),
    [
        (2, 2.5), (None, 0), (1, True), (0.1, 0.1 + 1e-15), ([1], [1, 2]), ([1, {"a": 1}], [1, {"a": 2}]),
        ({}, {"a": 1}), ("2", 2), ({"a": {"b": 1}}, {"a": {"b": 2}}), ([2, 1], [1, 2]), (float("nan"), 1.0),
    ],
)  # fmt: skip
def test_not_equal(uploaded: Any, expected: Any) -> None:
    assert not _equal(uploaded, expected)


def test_missing_rows_are_those_after_the_last_uploaded_one() -> None:
    rows = [{"epoch": epoch, "x": epoch / 2} for epoch in range(4)]
    uploaded = [{**row, "_step": number} for number, row in enumerate(rows)]
    assert rows_after(rows, uploaded) == []
    assert rows_after(rows, [uploaded[0], {"picture": 1}, *uploaded[1:]]) == []
    assert rows_after(rows, uploaded[:2]) == rows[2:]
    assert rows_after(rows, []) == rows
    assert rows_after(rows, uploaded[::-1])
