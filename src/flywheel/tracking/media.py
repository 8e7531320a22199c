"""Pictures and tables of a W&B run: kept in files of our own first, then shown to W&B, now or by `make sync`.

<store>/wandb/runs/media/<sha256>.png and .json. A picture is linked where that goes (reports are replaced, never
changed), so it takes no room while its report stands.
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
from flywheel.tracking.run_files import Medium, plain

PICTURE, TABLE, CONFUSION_MATRIX = "picture", "table", "confusion_matrix"


def keep_picture(store: Path, picture: Path) -> Medium:
    """Keep a picture file under its own name. Raises OSError."""
    medium = Medium(PICTURE, picture.stem, f"{files.digest_file(picture).sha256}{picture.suffix}")
    place = path(store, medium)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(picture, place)
        except OSError:  # another disk, or one without links
            with files.atomic(place) as temporary:
                shutil.copyfile(picture, temporary)
    return medium


def keep_table(store: Path, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Medium:
    """Keep a table; a uint8 array (h, w, 3) in it is kept as PNG. Raises OSError."""
    plain_rows = [[{"png": _png(value)} if _is_image(value) else plain(value) for value in row] for row in rows]
    return _keep_json(store, TABLE, name, {"columns": list(columns), "rows": plain_rows})


def keep_confusion_matrix(
    store: Path, name: str, labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str]
) -> Medium:
    """Keep what W&B's interactive confusion matrix is drawn from. Raises OSError."""
    values = {"labels": list(labels), "predictions": list(predictions), "class_names": list(class_names)}
    return _keep_json(store, CONFUSION_MATRIX, name, values)


def shown(store: Path, medium: Medium) -> Any:
    """Return what wandb logs of it. Raises OSError when its file is gone."""
    import wandb

    place = path(store, medium)
    if medium.kind == PICTURE:
        return wandb.Image(str(place))
    values = files.read_json(place)
    if medium.kind == CONFUSION_MATRIX:
        return wandb.plot.confusion_matrix(
            y_true=values["labels"], preds=values["predictions"], class_names=values["class_names"]
        )
    table = wandb.Table(columns=values["columns"])
    for row in values["rows"]:
        table.add_data(*(_image(value["png"]) if isinstance(value, Mapping) else value for value in row))
    return table


def path(store: Path, medium: Medium) -> Path:
    """Return where its file lies."""
    return StorePaths(store).wandb_media / medium.file


def whole(medium: Medium, summary: Mapping[str, Any], sizes: Mapping[str, int], tables: Sequence[str]) -> bool:
    """Tell whether W&B has it: as the last of its name, with its file, and for a table the artifact of its images.

    `summary` are the run's final values there, `sizes` those of its files, `tables` the names of its table artifacts.
    """
    name = f"{medium.name}_table" if medium.kind == CONFUSION_MATRIX else medium.name
    there = summary.get(name)
    if not isinstance(there, Mapping) or sizes.get(str(there.get("path"))) != there.get("size"):
        return False
    if medium.kind == PICTURE:
        return bool(there.get("sha256") == Path(medium.file).stem)
    return any(table.endswith(f"-{name}") for table in tables)


def _keep_json(store: Path, kind: str, name: str, values: Any) -> Medium:
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    medium = Medium(kind, name, f"{hashlib.sha256(text.encode()).hexdigest()}.json")
    if not path(store, medium).exists():
        files.write_text(path(store, medium), text)
    return medium


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
