"""Pictures and tables are saved in the store, and W&B's are compared by digest and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flywheel import files
from flywheel.tracking import media
from flywheel.tracking.run_files import MediaFile

PICTURE = MediaFile("picture", "gate", "ab12.png")
TABLE = MediaFile("table", "right", "cd34.json")
MATRIX = MediaFile("confusion_matrix", "confusion", "ef56.json")
SUMMARY = {
    "gate": {"path": "media/images/gate.png", "size": 5, "sha256": "ab12"},
    "right": {"path": "media/table/right.json", "size": 7, "sha256": "of W&B's own file"},
    "confusion_table": {"path": "media/table/confusion.json", "size": 9},
}
SIZES = {"media/images/gate.png": 5, "media/table/right.json": 7, "media/table/confusion.json": 9}
TABLES = ["run-1-right", "run-1-confusion_table"]


@pytest.mark.parametrize("one", [PICTURE, TABLE, MATRIX])
def test_uploaded_media_are_complete(one: MediaFile) -> None:
    assert media.is_complete(one, SUMMARY, SIZES, TABLES)


@pytest.mark.parametrize(
    ("one", "summary", "sizes", "tables"),
    [
        (PICTURE, {}, SIZES, TABLES),
        (PICTURE, SUMMARY, {}, TABLES),
        (PICTURE, SUMMARY, {**SIZES, "media/images/gate.png": 4}, TABLES),
        (PICTURE._replace(file="ab13.png"), SUMMARY, SIZES, TABLES),
        (TABLE, {"right": 3}, SIZES, TABLES),
        (TABLE, SUMMARY, {**SIZES, "media/table/right.json": 8}, TABLES),
        (TABLE, SUMMARY, SIZES, TABLES[1:]),
        (MATRIX, {"confusion": SUMMARY["confusion_table"]}, SIZES, TABLES),
        (MATRIX, SUMMARY, SIZES, TABLES[:1]),
    ],
)
def test_media_without_any_one_part_are_incomplete(
    one: MediaFile, summary: dict[str, Any], sizes: dict[str, int], tables: list[str]
) -> None:
    assert not media.is_complete(one, summary, sizes, tables)


def test_saved_picture_is_a_link_until_its_report_is_replaced(tmp_path: Path) -> None:
    report = tmp_path / "reports" / "gate.png"
    files.write_text(report, "first")
    kept = media.path(tmp_path, media.save_picture(tmp_path, report))
    assert kept.stat().st_ino == report.stat().st_ino
    files.write_text(report, "second")
    assert kept.read_text() == "first"
    assert media.path(tmp_path, media.save_picture(tmp_path, report)).read_text() == "second"
    with pytest.raises(OSError, match="No such file"):
        media.save_picture(tmp_path, tmp_path / "absent.png")


def test_table_is_uploaded_as_it_was(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    kept = media.save_table(tmp_path, "right", ["image", "class", "confidence"], [[pixels, "seven", np.float32(0.5)]])
    assert kept == media.save_table(tmp_path, "right", ["image", "class", "confidence"], [[pixels, "seven", 0.5]])
    shown = media.wandb_object(tmp_path, kept)
    ((image, name, confidence),) = shown.data
    assert (name, confidence) == ("seven", 0.5)
    assert np.array_equal(np.asarray(Image.open(image._path)), pixels)
