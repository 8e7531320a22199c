"""The feedback artifact: each content once, the first answers, the pixels that no data set holds, and wrong labels."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import made_models
import numpy as np
import pytest
from made_traffic import content

from flywheel import files
from flywheel.commands import status
from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.traffic import feedback
from flywheel.traffic.feedback import Example, FeedbackError, merge


def example(first: str, label: str = "cat", **fields: object) -> Example:
    return Example.model_validate({"hash": first * 32, "label": label, "side": "train", **fields})


def test_a_content_that_comes_again_keeps_the_lowest_id_the_newest_label_and_the_first_answer() -> None:
    other = example("cd", "dog", id=9)
    for known, now in ((5, 3), (3, 5)):
        first = example("ab", id=known, prediction="cat", confidence=0.9)
        again = example("ab", "dog", id=now, prediction="dog", confidence=0.5)
        (merged, rest) = merge([other, first], [again])
        assert (merged.id, merged.label, merged.prediction, merged.confidence) == (3, "dog", "cat", 0.9)
        assert (first.right, merged.right, rest) == (True, False, other)


def test_an_image_that_was_on_another_side_before_is_on_both_for_good() -> None:
    sides = [Example(hash="ab" * 32, label="cat", side=side) for side in ("train", "holdout", "both")]
    for before, now in itertools.permutations(sides, 2):
        assert merge([before], [now])[0].side == "both"


def test_a_volunteered_label_counts_as_drawn_once_it_is_drawn() -> None:
    volunteered, drawn = example("ab", chosen="volunteered"), example("ab", chosen="sample", probability=0.2)
    for pair in ((volunteered, drawn), (drawn, volunteered)):
        assert merge(pair[:1], pair[1:]) == (drawn,)


def test_the_artifact_lists_the_failures_apart_and_says_what_was_answered(params: Params, registry: Registry) -> None:
    listed = [
        example("cd", id=3, prediction="dog", confidence=0.6), example("ab", id=12),
        example("ef", id=1, prediction="cat", confidence=1.0, chosen="sample", probability=0.5),
        example("99", source="traffic", disputed=True, prediction="cow"),
    ]  # fmt: skip
    version, new = feedback.publish(params, registry, listed, {}, {})
    assert version is not None
    assert (new, version.metadata["failures"], version.metadata["disputed"]) == (4, 3, 1)
    content = files.read_json(registry.open(version) / "feedback.json")
    assert (content["format"], content["failures"]) == (2, [3, 12, "99" * 32])
    assert feedback.read(registry, version) == tuple(sorted(listed, key=lambda one: one.hash))
    assert [e.hash[:2] for e in feedback.trainable(listed, "all")] == ["cd", "ab", "ef"]
    assert [e.hash[:2] for e in feedback.trainable(listed, "failures")] == ["cd", "ab"]
    later = [one.model_copy(update={"prediction": "cat"}) for one in listed]
    assert feedback.publish(params, registry, later, {}, {}) == (version, 0)


def test_pixels_that_no_data_set_holds_are_appended(
    params: Params, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full file never changes again, so that a registry uploads each image once."""
    monkeypatch.setattr(feedback, "SHARD_IMAGES", 4)
    shown = np.concatenate([made_models.images(np.arange(7)), made_models.images(np.arange(4), seed=1)])
    keys = [content(image) for image in shown]
    versions = []
    for part in (slice(0, 3), slice(1, 7), slice(5, 11)):
        listed = [Example(hash=key, label="1", side="train", source="traffic") for key in keys[part]]
        version, _ = feedback.publish(params, registry, listed, {}, {}, dict(zip(keys[part], shown[part], strict=True)))
        assert version is not None
        versions.append(version)
    larger = made_models.images([1], size=12)
    key = content(larger[0])
    last, _ = feedback.publish(params, registry, [Example(hash=key, label="1", side="train")], {}, {}, {key: larger[0]})
    assert last is not None
    stored = [registry.resolve(version.inputs["pixels"][0]) for version in (*versions, last)]
    sizes = [[len(np.load(file)) for file in sorted(registry.open(v).glob("pixels-*.npy"))] for v in stored]
    assert sizes == [[3], [4, 3], [4, 4, 3], [4, 4, 3, 1]]  # the last one has another size
    assert stored[-1].files["pixels-0000.npy"] == stored[1].files["pixels-0000.npy"]
    found = feedback.pixels(registry, last, feedback.read(registry, last))
    assert found.keys() == {*keys, key}
    assert all((found[key] == image).all() for key, image in zip(keys, shown, strict=True))
    assert (found[key] == larger[0]).all()


def test_two_that_publish_at_the_same_time_are_both_listed(
    params: Params, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = feedback._store
    monkeypatch.setattr(feedback, "_store", lambda *given: (time.sleep(0.2), store(*given))[1])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: feedback.publish(params, registry, [one], {}, {}), [example("ab"), example("cd")]))
    newest = feedback.latest(params, registry)
    assert newest is not None
    assert feedback.read(registry, newest) == (example("ab"), example("cd"))


def test_format_1_lists_failures(params: Params, registry: Registry, tmp_path: Path) -> None:
    row = {"id": 4, "hash": "ab" * 32, "label": "cat", "side": "holdout"}
    files.write_json(tmp_path / "feedback.json", {"format": 1, "images": [row]})
    old = registry.publish(params.feedback_name, "feedback", {"feedback.json": tmp_path / "feedback.json"})
    (listed,) = feedback.read(registry, old)
    assert (listed.id, listed.side, listed.right, listed.chosen) == (4, "holdout", False, "all")
    version, new = feedback.publish(params, registry, [example("cd", id=1, prediction="cat")], {}, {})
    assert version is not None
    assert (new, version.input("previous"), version.metadata["failures"]) == (1, old.ref, 1)


@pytest.mark.parametrize(
    "content", [{"format": 3, "images": []}, {"format": 2, "images": [{"hash": "ab"}]}, {"format": 2}, []]
)
def test_what_is_no_feedback_is_one_sentence(
    params: Params, registry: Registry, tmp_path: Path, content: object
) -> None:
    files.write_json(tmp_path / "feedback.json", content)
    version = registry.publish(params.feedback_name, "feedback", {"feedback.json": tmp_path / "feedback.json"})
    with pytest.raises(FeedbackError, match=r"^digits-feedback:v0: .* cannot be read \(.*\); run make simulate$"):
        feedback.read(registry, version)


def test_status_says_that_feedback_known_from_w_and_b_is_not_downloaded_yet(params: Params, registry: Registry) -> None:
    version, _ = feedback.publish(params, registry, [example("cd", id=1, prediction="cat")], {}, {})
    assert version is not None
    (registry.open(version) / feedback.FILE).unlink()
    told = "the files of digits-feedback:v0 are not in the store; make retrain downloads what W&B has"
    assert ("retrain", "waiting", told) in list(status.states(params, registry))


def test_wrong_labels_are_drawn_by_seed_and_content(params: Params) -> None:
    opened = made_models.dataset(params, simulation=1500)
    index = opened.indices["simulation"]
    truth = [opened.class_names[label] for label in opened.labels[index]]

    def labels(chosen: slice = slice(None), **options: float) -> list[str]:
        return [e.label for e in feedback.examples(opened, index[chosen], **options)]  # type: ignore[arg-type]

    assert labels() == truth
    noisy = labels(label_noise=0.1)
    flipped = [now for now, true in zip(noisy, truth, strict=True) if now != true]
    assert 0.07 < len(flipped) / len(truth) < 0.13
    assert set(flipped) == set(opened.class_names)
    assert labels(slice(3, 9), label_noise=0.1) == noisy[3:9]
    assert labels(label_noise=0.1, seed=1) != noisy
    assert not [now for now, true in zip(labels(label_noise=1), truth, strict=True) if now == true]
