"""The feedback artifact's list: each content once."""

from __future__ import annotations

from flywheel.traffic.feedback import Example, merge


def test_a_content_that_failed_twice_keeps_the_lowest_id_and_the_newest_label() -> None:
    before = (Example(5, "ab" * 32, "cat", "train"), Example(9, "cd" * 32, "dog", "holdout"))
    for known, now, label in ((5, 3, "dog"), (3, 5, "dog")):
        first, again = Example(known, "ab" * 32, "cat", "train"), Example(now, "ab" * 32, label, "train")
        assert merge([first, before[1]], [again]) == (Example(3, "ab" * 32, label, "train"), before[1])
    assert merge(before, before) == before
