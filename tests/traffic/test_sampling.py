"""Samples for labelling: whom they draw, and the accuracy that their labels prove."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import made_models
import numpy as np
import pytest
from made_traffic import CLASSES, answered, record_all

from flywheel.params import Params, StorePaths
from flywheel.registry import Registry
from flywheel.traffic import label, records, sampling
from flywheel.traffic.labels import LabelLog
from flywheel.traffic.monitor_report import Labelled
from flywheel.traffic.sampling import Drawn, Sample

MODEL = answered().model
Say = Callable[..., None]


@pytest.fixture
def rows(paths: StorePaths) -> list[dict[str, str]]:
    """Return the records of forty images, answered "cat" with growing confidence; the first was answered twice."""
    record_all(paths, (answered(seed, confidence=0.55 + seed / 100) for seed in (0, *range(40))))
    return list(records.read(paths))


def draw(paths: StorePaths, budget: int = 20, model: str = MODEL) -> Sample:
    sample = sampling.draw(paths, model, budget, frozenset())
    assert sample is not None
    return sample


def say(paths: StorePaths, *labels: tuple[Drawn, str | None], writer: str = "page1-a", who: str = "ann") -> None:
    """Store labels, or verdicts, which start with not_."""
    verdict = [name if name and name.startswith("not_") else "" for _, name in labels]
    LabelLog(paths, writer, lambda: CLASSES, 30.0).add(
        [
            {"prediction_id": one.prediction_id, "label": None if no else name, "verdict": no, "labeller": who}
            for (one, name), no in zip(labels, verdict, strict=True)
        ]
    )


def estimate(paths: StorePaths) -> Labelled:
    (found,) = sampling.estimates(paths)
    return found


def figures(one: Labelled) -> tuple[float, float, float]:
    return one.interval[0], one.accuracy, one.interval[1]


def test_every_image_is_drawn_once_with_its_probability(paths: StorePaths, rows: list[dict[str, str]]) -> None:
    sample = draw(paths)
    assert (sample.population, len(sample.images), sample.labeller) == (40, 20, None)
    assert sample.mean_confidence == pytest.approx(0.745)
    assert len({one.hash for one in sample.images}) == 20
    by_confidence = sorted(sample.images, key=lambda one: one.confidence)
    assert by_confidence[0].probability > 0.5 > by_confidence[-1].probability > 0.25
    assert list(sampling.read(paths)) == [sample]
    for one in sample.images:
        row = min((row for row in rows if row["hash"] == one.hash), key=lambda row: row["prediction_id"])
        assert (one.prediction_id, one.prediction, one.confidence) == (
            row["prediction_id"], "cat", max(row["probabilities"]),
        )  # fmt: skip


def test_labelled_images_and_those_of_earlier_samples_are_drawn_others_are_left_out(
    paths: StorePaths, rows: list[dict[str, str]]
) -> None:
    first = draw(paths)
    say(paths, (first.images[0], "dog"), (first.images[1], "cat"), writer="replica1", who="api")
    seen, lost, *_ = (one.hash for one in first.images[2:])
    records.image_path(paths, lost).unlink()
    sample = sampling.draw(paths, MODEL, 99, frozenset({seen}))
    assert sample is not None
    assert {one.hash for one in sample.images} == {row["hash"] for row in rows} - {seen, lost}
    assert {one.probability for one in sample.images} == {1.0}
    assert sampling.draw(paths, "another@sha256:00", 99, frozenset()) is None
    say(paths, *((one, "cat") for one in sample.images))
    assert sampling.draw(paths, MODEL, 99, frozenset({seen})) is None  # nothing to label


def test_people_who_start_at_the_same_time_label_one_sample(params: Params, registry: Registry) -> None:
    model = made_models.publish(registry, params, "model-a", made_models.model()).ref
    record_all(params.store_paths, (replace(answered(seed), model=model) for seed in range(20)))
    with ThreadPoolExecutor(4) as people:
        chosen = list(people.map(lambda _: label.choose_sample(params, registry, model), range(4)))
    assert list(sampling.read(params.store_paths)) == chosen[:1]
    assert chosen == chosen[:1] * 4
    assert label.choose_sample(params, registry, model, new=True).number == 2


def test_the_newest_sample_of_a_model_is_unfinished_while_a_kept_image_has_no_label_from_the_page(
    paths: StorePaths, rows: list[dict[str, str]]
) -> None:
    assert sampling.unfinished(paths, MODEL) is None
    old, new = draw(paths), draw(paths)
    sampling.write(paths, new.model_copy(update={"number": 3, "labeller": "simulate"}))
    sampling.write(paths, new.model_copy(update={"number": 4, "model": "another"}))
    (paths.traffic_samples / "9.json").write_text('{"version": 1, "made": "", "images": []}')
    assert sampling.unfinished(paths, MODEL) == new
    *others, last = new.images
    say(paths, *((one, "cat") for one in others))
    say(paths, (last, "cat"), writer="replica1", who="api")
    assert sampling.waiting(paths, new) == [last]
    records.image_path(paths, last.hash).unlink()
    assert sampling.unfinished(paths, MODEL) is None
    both = {one.hash for one in others} & {one.hash for one in old.images}
    assert {one.hash for one in old.images} - {one.hash for one in sampling.waiting(paths, old)} >= both != set()


def test_the_estimate_counts_decided_undecided_foreign_and_lost_images(
    paths: StorePaths, rows: list[dict[str, str]]
) -> None:
    sample = draw(paths)
    assert sampling.estimates(paths) == []
    first, second, third, fourth, lost, *rest = sample.images
    say(paths, (first, "not_sure"), (second, "not_ours"), (third, "dog"), (fourth, "cat"))
    records.image_path(paths, lost.hash).unlink()
    say(paths, *((one, "cat") for one in rest[:-5]), *((one, "dog") for one in rest[-4:]))  # rest[-5] waits
    found = estimate(paths)
    assert (found.n, found.undecided, found.foreign, found.lost) == (12, 1, 1, 1)
    assert (found.made, found.model, found.drawn) == (sample.made, MODEL, 20)
    say(paths, (fourth, "fox"), who="eve", writer="replica1")
    disputed = estimate(paths)
    assert (disputed.n, disputed.undecided) == (11, 2)
    assert np.ptp(disputed.interval) > np.ptp(found.interval)
    again = answered(int(np.flatnonzero([row["hash"] == third.hash for row in rows[1:]])[0]), confidence=0.9)
    record_all(paths, [again])
    say(paths, (third.model_copy(update={"prediction_id": again.prediction_id}), "fox"), who="eve", writer="replica1")
    assert estimate(paths).undecided == 3  # another answer to the same image is in dispute


def test_labels_that_were_volunteered_change_no_accuracy(paths: StorePaths, rows: list[dict[str, str]]) -> None:
    truth = {row["hash"]: CLASSES[i % 3 == 0] for i, row in enumerate(rows)}
    failures = [
        Drawn(prediction_id=row["prediction_id"], hash=row["hash"], probability=1, prediction="cat", confidence=1)
        for row in rows if truth[row["hash"]] != "cat"
    ]  # fmt: skip
    sample = draw(paths)
    say(paths, *((one, truth[one.hash]) for one in sample.images[:15]))
    before = estimate(paths)
    say(paths, *((one, truth[one.hash]) for one in failures), writer="replica1", who="app")
    assert estimate(paths) == before
    assert set(sampling.labelled(paths)) == {one.hash for one in sample.images[:15]}
    second = draw(paths)
    say(paths, *((one, truth[one.hash]) for one in second.images), writer="page2-a")
    assert sampling.estimates(paths)[0] == before  # nor does a second sample while the first is half labelled


def test_labels_of_an_earlier_sample_do_not_count_before_their_turn(
    paths: StorePaths, rows: list[dict[str, str]]
) -> None:
    first, second = draw(paths), draw(paths, 40)
    say(paths, *((one, "cat") for one in first.images))
    new = [one for one in second.images if one.hash not in {one.hash for one in first.images}]
    known = [one for one in second.images if one not in new]
    order = (known[0], new[0], known[1], new[1], *known[2:], *new[2:])
    sampling.write(paths, second.model_copy(update={"images": order}))  # instead of the second
    assert sampling.estimates(paths)[-1].n == 1
    say(paths, (new[0], "cat"), writer="page2-a")
    assert sampling.estimates(paths)[-1].n == 3


def test_a_page_label_stays_one_when_its_labeller_corrects_it_elsewhere(
    paths: StorePaths, rows: list[dict[str, str]]
) -> None:
    sample = draw(paths, 40)
    say(paths, *((one, "cat") for one in sample.images))
    exact = estimate(paths)
    assert figures(exact) == pytest.approx((1, 1, 1))
    say(paths, (sample.images[0], "dog"), writer="replica1")
    assert figures(estimate(paths)) == pytest.approx((39 / 40,) * 3)
    say(paths, (sample.images[0], None), writer="replica1")  # taken back: it waits again
    assert sampling.waiting(paths, sample) == [sample.images[0]]


def test_half_a_sample_stands_for_all_of_it(paths: StorePaths) -> None:
    """Without the weight n/m of the labelled part, the correction of an overconfident model would be too small."""
    record_all(paths, (answered(seed, confidence=0.9) for seed in range(60)))
    sample = draw(paths, 40)
    say(paths, *((one, "cat" if i % 2 else "dog") for i, one in enumerate(sample.images[:20])))
    found = estimate(paths)
    assert found.accuracy == pytest.approx(0.5)
    assert 0.25 < found.interval[0] < found.interval[1] < 0.75
