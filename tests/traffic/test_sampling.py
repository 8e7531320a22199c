"""Samples for labelling: different kept images of one model, none labelled, seen or drawn before."""

from __future__ import annotations

import pytest
from made_traffic import CLASSES, OPTIONS, answered

from flywheel.params import StorePaths
from flywheel.traffic import records, samples, sampling
from flywheel.traffic.capture import Recorder
from flywheel.traffic.labels import LabelLog

MODEL = answered().model


@pytest.fixture
def rows(paths: StorePaths) -> list[dict[str, str]]:
    """Return the records of ten images; the first was answered twice."""
    recorder = Recorder(paths, OPTIONS, "r")
    for seed in (0, 0, *range(1, 10)):
        recorder.add(answered(seed))
    recorder.close()
    return list(records.read(paths))


def drawn(paths: StorePaths, budget: int, seen: frozenset[str] = frozenset(), model: str = MODEL) -> set[str]:
    sample = sampling.draw(paths, model, budget, seen)
    return {image.hash for image in sample.images} if sample else set()


def test_every_image_is_drawn_once_with_its_probability(paths: StorePaths, rows: list[dict[str, str]]) -> None:
    sample = sampling.draw(paths, MODEL, 4, frozenset())
    assert sample is not None
    assert (sample.population, len(sample.images)) == (10, 4)
    assert {image.probability for image in sample.images} == {0.4}
    assert len({image.hash for image in sample.images}) == 4
    assert list(samples.read(paths)) == [sample]
    for image in sample.images:
        assert image.prediction_id == min(row["prediction_id"] for row in rows if row["hash"] == image.hash)


def test_a_budget_above_the_population_takes_all(paths: StorePaths, rows: list[dict[str, str]]) -> None:
    assert drawn(paths, 99) == {row["hash"] for row in rows}
    assert set(samples.probabilities(samples.read(paths)).values()) == {1.0}


def test_what_is_labelled_seen_drawn_before_or_not_kept_is_left_out(
    paths: StorePaths, rows: list[dict[str, str]]
) -> None:
    first = drawn(paths, 3)
    rest = [row for row in rows[2:] if row["hash"] not in first]
    labelled, seen, lost, *free = rest
    LabelLog(paths, "w", lambda: CLASSES, 30.0).add([{"prediction_id": labelled["prediction_id"], "label": "cat"}])
    records.image_path(paths, lost["hash"]).unlink()
    expected = {row["hash"] for row in (*rows[:1], *free)} - first
    assert drawn(paths, 99, frozenset({seen["hash"]})) == expected
    assert drawn(paths, 99, model="another@sha256:00") == set()


def test_a_sample_is_unfinished_while_a_kept_image_of_it_has_no_label(
    paths: StorePaths, rows: list[dict[str, str]]
) -> None:
    assert sampling.unfinished(paths) is None
    sample = sampling.draw(paths, MODEL, 2, frozenset())
    assert sample is not None
    assert sampling.unfinished(paths) == sample
    first, second = sample.images
    LabelLog(paths, "w", lambda: CLASSES, 30.0).add([{"prediction_id": first.prediction_id, "label": "cat"}])
    assert sampling.unfinished(paths) == sample
    records.image_path(paths, second.hash).unlink()
    assert sampling.unfinished(paths) is None
