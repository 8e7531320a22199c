"""Pictures and tables of a W&B run: saved in the store first, then uploaded, by the run or by `make sync`.

<store>/wandb/runs/media/<sha256>.png and .json. A picture is a hard link where possible (reports are replaced, never
changed), so it takes no disk space while its report exists.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel import files
from flywheel.params import StorePaths
from flywheel.tracking.run_files import MediaFile, plain

PICTURE, TABLE, CONFUSION_MATRIX = "picture", "table", "confusion_matrix"


def save_picture(store: Path, picture: Path) -> MediaFile:
    """Save a picture file under its own name. Raises OSError."""
    media = MediaFile(PICTURE, picture.stem, f"{files.digest_file(picture).sha256}{picture.suffix}")
    saved = path(store, media)
    if not saved.exists():
        saved.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(picture, saved)
        except OSError:  # another disk, or one without links
            with files.atomic(saved) as temporary:
                shutil.copyfile(picture, temporary)
    return media


def save_table(store: Path, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> MediaFile:
    """Save a table; uint8 arrays (h, w, 3) in it are saved as PNG. Raises OSError."""
    plain_rows = [[{"png": _png(value)} if _is_image(value) else plain(value) for value in row] for row in rows]
    return _save_json(store, TABLE, name, {"columns": list(columns), "rows": plain_rows})


def save_confusion_matrix(
    store: Path, name: str, labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str]
) -> MediaFile:
    """Save the data of W&B's interactive confusion matrix. Raises OSError."""
    values = {"labels": list(labels), "predictions": list(predictions), "class_names": list(class_names)}
    return _save_json(store, CONFUSION_MATRIX, name, values)


def wandb_object(store: Path, media: MediaFile) -> Any:
    """Return the object that wandb logs. Raises OSError when the file was removed."""
    import wandb

    saved = path(store, media)
    if media.kind == PICTURE:
        return wandb.Image(str(saved))
    values = files.read_json(saved)
    if media.kind == CONFUSION_MATRIX:
        return wandb.plot.confusion_matrix(
            y_true=values["labels"], preds=values["predictions"], class_names=values["class_names"]
        )
    table = wandb.Table(columns=values["columns"])
    for row in values["rows"]:
        table.add_data(*(_image(value["png"]) if isinstance(value, Mapping) else value for value in row))
    return table


def path(store: Path, media: MediaFile) -> Path:
    """Return the path of its file."""
    return StorePaths(store).wandb_media / media.file


def is_complete(media: MediaFile, summary: Mapping[str, Any], sizes: Mapping[str, int], tables: Sequence[str]) -> bool:
    """Tell whether W&B has it: the last of its name, its file, and for a table the artifact with its images.

    `summary` are the run's final values on W&B, `sizes` those of its files, `tables` the names of its table artifacts.
    """
    name = f"{media.name}_table" if media.kind == CONFUSION_MATRIX else media.name
    shown = summary.get(name)
    if not isinstance(shown, Mapping) or sizes.get(str(shown.get("path"))) != shown.get("size"):
        return False
    if media.kind == PICTURE:
        return bool(shown.get("sha256") == Path(media.file).stem)
    return any(table.endswith(f"-{name}") for table in tables)


def _save_json(store: Path, kind: str, name: str, values: Any) -> MediaFile:
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    media = MediaFile(kind, name, f"{hashlib.sha256(text.encode()).hexdigest()}.json")
    if not path(store, media).exists():
        files.write_text(path(store, media), text)
    return media


def _is_image(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 3


def _png(pixels: Any) -> str:
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def _image(png: str) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(base64.b64decode(png))))
