"""Splits: each content in one split only, the same fraction of every class held out, and sides that never change."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from flywheel.data import DataError, splits
from flywheel.data.splits import PRECEDENCE, SPLITS

steady = settings(derandomize=True, deadline=None, max_examples=200)


# Disjoint by content


def hashes_of(contents: list[int]) -> NDArray[np.uint8]:
    """A hash an item; equal contents have equal hashes."""
    digests = [hashlib.sha256(str(content).encode()).digest() for content in contents]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


@st.composite
def overlapping(draw: st.DrawFn) -> tuple[dict[str, NDArray[np.int64]], list[int]]:
    """Items with few contents, so that many are duplicates, dealt to the four splits in any order."""
    contents = draw(st.lists(st.integers(0, 25), min_size=4, max_size=40))
    owners = draw(st.lists(st.sampled_from(SPLITS), min_size=len(contents), max_size=len(contents)))
    order = draw(st.permutations(range(len(contents))))
    named = {name: np.array([i for i in order if owners[i] == name], np.int64) for name in SPLITS}
    return named, contents


def expected(named: dict[str, NDArray[np.int64]], contents: list[int]) -> dict[str, list[int]]:
    """What stays, the obvious way: an item stays unless an earlier split has its content."""
    stays = {}
    for position, name in enumerate(PRECEDENCE):
        earlier = {contents[i] for other in PRECEDENCE[:position] for i in named[other]}
        stays[name] = [int(i) for i in named[name] if contents[i] not in earlier]
    return stays


def test_the_test_images_come_first_and_the_training_images_last() -> None:
    assert PRECEDENCE == ("test", "validation", "simulation", "train")
    assert sorted(PRECEDENCE) == sorted(SPLITS)


@steady
@given(overlapping())
def test_each_content_stays_in_the_first_split_that_has_it_and_duplicates_are_counted(
    case: tuple[dict[str, NDArray[np.int64]], list[int]],
) -> None:
    named, contents = case
    stays = expected(named, contents)
    assume(all(stays.values()))
    kept, found_within, found_across = splits.disjoint(named, hashes_of(contents))
    assert tuple(kept) == SPLITS
    assert {name: index.tolist() for name, index in kept.items()} == {name: stays[name] for name in SPLITS}
    for index in kept.values():
        assert index.dtype == np.int64
    found = Counter(content for index in kept.values() for content in {contents[i] for i in index})
    assert set(found.values()) == {1}
    assert set(found) == {contents[i] for index in named.values() for i in index}  # no content is lost
    across: Counter[str] = Counter()
    for name in PRECEDENCE:
        for i in set(named[name].tolist()) - set(stays[name]):
            first = next(other for other in PRECEDENCE if contents[i] in {contents[j] for j in named[other]})
            across[f"{first}/{name}"] += 1
    assert found_across == dict(across)
    within = {name: len(stays[name]) - len({contents[i] for i in stays[name]}) for name in SPLITS}
    assert found_within == {name: count for name, count in within.items() if count}


@steady
@given(overlapping())
def test_a_split_that_is_left_empty_is_named(case: tuple[dict[str, NDArray[np.int64]], list[int]]) -> None:
    named, contents = case
    empty = [name for name in PRECEDENCE if not expected(named, contents)[name]]
    assume(empty)
    with pytest.raises(DataError, match=f"the split {empty[0]} is empty"):
        splits.disjoint(named, hashes_of(contents))


# Held out, every class alike


def names(labels: Any) -> list[str]:
    return [f"class {label}" for label in range(1 + max(labels))]


labelled = st.lists(st.integers(2, 40), min_size=2, max_size=8).flatmap(
    lambda counts: st.permutations([label for label, count in enumerate(counts) for _ in range(count)])
)


@steady
@given(labelled, st.floats(0.02, 0.5), st.integers(0, 2**31 - 1))
def test_exactly_the_fraction_is_held_out_of_every_class(labels: list[int], fraction: float, seed: int) -> None:
    array = np.array(labels, np.int64)
    count = max(round(len(array) * fraction), 1)
    assume(count >= len(set(labels)))
    rest, held_out = splits.stratified(array, fraction, seed, names(array))
    assert len(held_out) == count
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, held_out])), np.arange(len(array)))
    for index in (rest, held_out):
        np.testing.assert_array_equal(index, np.sort(index))
    for label, total in Counter(labels).items():
        assert abs((array[held_out] == label).sum() - total * count / len(array)) < 1


@steady
@given(labelled, st.floats(0.02, 0.5))
def test_too_few_images_for_every_class_are_one_clear_error(labels: list[int], fraction: float) -> None:
    count = max(round(len(labels) * fraction), 1)
    assume(count < len(set(labels)))
    with pytest.raises(DataError, match=f"cannot hold out {count} of {len(labels)} .*data.validation_fraction"):
        splits.stratified(np.array(labels, np.int64), fraction, 0, names(labels))


@pytest.mark.parametrize(
    ("labels", "who"),
    [
        ([0] * 20 + [1] * 20 + [2], "cherry has only 1 image; add images"),
        ([0] * 20 + [1] + [2], "banana, cherry have only 1 image; add images"),
        ([0] * 20 + [*range(1, 9)], "banana, cherry, c3, c4, c5 and others have only 1 image; add images"),
    ],
)
def test_a_class_of_one_image_is_named(labels: list[int], who: str) -> None:
    named = ["apple", "banana", "cherry", *(f"c{number}" for number in range(3, 1 + max(labels)))]
    with pytest.raises(DataError) as refused:
        splits.stratified(np.array(labels), 0.5, 0, named)
    held_out, count = round(len(labels) * 0.5), len(labels)
    assert str(refused.value) == (
        f"cannot hold out {held_out} of {count} training images for validation, every class alike: {who}"
    )


def test_the_seed_decides_what_is_held_out() -> None:
    labels = np.arange(200) % 10
    first, again, other = (splits.stratified(labels, 0.2, seed, names(labels))[1].tolist() for seed in (7, 7, 8))
    assert first == again
    assert first != other


# Content hashes


@steady
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 6), st.just(3), st.just(3), st.just(3))))
def test_a_hash_is_sha256_of_the_pixels(images: NDArray[np.uint8]) -> None:
    hashes = splits.content_hashes(images)
    assert hashes.dtype == np.uint8
    assert hashes.shape == (len(images), 32)
    assert [row.tobytes() for row in hashes] == [hashlib.sha256(image.tobytes()).digest() for image in images]
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(splits.content_hashes(channels_first), hashes)  # in any memory layout


# Sides


@steady
@given(arrays.arrays(np.uint8, st.tuples(st.integers(2, 12), st.just(32))), st.randoms(use_true_random=False))
def test_a_side_depends_on_the_images_own_hash_only(hashes: NDArray[np.uint8], random: object) -> None:
    together = splits.is_holdout(hashes)
    assert together.dtype == np.bool_
    order = np.arange(len(hashes))
    random.shuffle(order)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(splits.is_holdout(hashes[order]), together[order])
    np.testing.assert_array_equal([splits.is_holdout(hashes[i : i + 1])[0] for i in range(len(hashes))], together)


@pytest.mark.parametrize(
    ("start", "holdout"),
    [
        ("00000000", True),
        ("0000001d", True),
        ("0000001e", False),
        ("00000063", False),
        ("00000064", True),
        ("01000000", True),  # 16 of a hundred
        ("80000000", False),  # 48
        ("ffffffff", False),  # 95
    ],
)
def test_the_rule_of_the_sides_never_changes(start: str, holdout: bool) -> None:
    """Another rule would move images that a model was trained on to the side by which models are judged."""
    for filler in (0, 255):
        row = np.frombuffer(bytes.fromhex(start) + bytes([filler]) * 28, np.uint8)[None]
        assert splits.is_holdout(row).tolist() == [holdout]
