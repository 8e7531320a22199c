"""What is kept stays within the bounds; images with a label go last."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

from made_traffic import CLASSES, OPTIONS, id_of_age

from flywheel import files
from flywheel.params import StorePaths
from flywheel.traffic import records, retention
from flywheel.traffic.labels import LabelLog

DAY_S = 86400


def keep(paths: StorePaths, number: int, age_s: float, size: int = 400_000) -> str:
    """Write the record and an image of `size` bytes as old as `age_s`; return the id."""
    made, content = id_of_age(age_s), f"{number:064x}"
    path = paths.traffic_records / f"r-{records.hour_of(made)}.jsonl"
    files.append_json_lines(path, {"prediction_id": made, "hash": content})
    image = records.image_path(paths, content)
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(bytes(size))
    os.utime(image, (time.time() - age_s,) * 2)
    return made


def images(paths: StorePaths) -> set[int]:
    return {int(path.stem, 16) for path in paths.traffic_images.rglob("*.png")}


def test_above_the_limit_the_oldest_images_without_a_label_go_first(paths: StorePaths) -> None:
    ids = [keep(paths, number, (6 - number) * 3600) for number in range(6)]
    LabelLog(paths, "w", lambda: CLASSES, 30.0).add([{"prediction_id": ids[0], "label": "cat"}])
    options = OPTIONS.model_copy(update={"max_bytes": 1_700_000})
    assert retention.tidy(paths, options).images == 3
    assert images(paths) == {0, 4, 5}  # 1.2 MB; 1 to 3 were the oldest without a label
    assert retention.measure(paths).size_bytes < 0.9 * 1_700_000
    assert retention.tidy(paths, options)
    assert images(paths) == {0, 4, 5}
    keep(paths, 6, 0, 900_000)
    retention.tidy(paths, options)
    assert images(paths) == {0, 6}  # its record is still there, too, and tells that it has a label
    assert ids[0] in {row["prediction_id"] for row in records.read(paths)}


def test_what_is_too_old_goes_with_its_records_and_labels(paths: StorePaths) -> None:
    old, new = keep(paths, 1, 31 * DAY_S), keep(paths, 2, 29 * DAY_S)
    LabelLog(paths, "w", lambda: CLASSES, 99.0).add([{"prediction_id": made, "label": "cat"} for made in (old, new)])
    assert retention.tidy(paths, OPTIONS).has_room
    assert [row["prediction_id"] for row in records.read(paths)] == [new]
    assert images(paths) == {2}
    assert len(list(paths.traffic_labels.iterdir())) == 1
    kept = retention.measure(paths)
    assert kept.images == 1
    assert kept.oldest == datetime.fromtimestamp(records.time_of(new).timestamp() // 3600 * 3600, UTC)


def test_a_full_disk_frees_space_from_images_without_a_label(paths: StorePaths) -> None:
    labelled = keep(paths, 1, 60)
    keep(paths, 2, 60)
    LabelLog(paths, "w", lambda: CLASSES, 30.0).add([{"prediction_id": labelled, "label": "cat"}])
    kept = retention.tidy(paths, OPTIONS.model_copy(update={"min_free_fraction": 0.9999}))
    assert not kept.has_room
    assert images(paths) == {1}
    assert len(list(records.read(paths))) == 2


def test_leftovers_of_a_killed_writer_are_removed_when_they_are_old(paths: StorePaths) -> None:
    folder = paths.traffic_images / "00"
    folder.mkdir(parents=True)
    for name, age_s in ((".new", 10), (".old", 4000)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    retention.tidy(paths, OPTIONS)
    assert {path.name for path in folder.iterdir()} == {".new"}


def test_forgotten_hashes_are_read_again_when_the_list_grows(paths: StorePaths) -> None:
    assert retention.forgotten(paths) == frozenset()
    for number in range(2):
        files.append_json_lines(paths.forgotten, {"hash": str(number)})
        assert retention.forgotten(paths) == {str(n) for n in range(number + 1)}
