"""Write and read folders and archives of people's own images."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flywheel.data import folder
from flywheel.data.dataset import SourceImages
from flywheel.params import Data
from flywheel.params import file as params_file

FORMS = ("directory", "tar", "tar.gz", "zip")
PARAMS = Path(__file__).parents[2] / "params.yaml"
DATA = params_file.load(PARAMS, "laptop", "data.source=folder data.path=/mine data.image_size=8").data


def encode(picture: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return pixels (or a Pillow image) as the bytes of a file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(form: str, files: Mapping[str, bytes], path: Path) -> Path:
    """Write files as a directory or an archive of exactly these names, in this order; return its path.

    A name that ends in / is an empty folder.
    """
    if form == "directory":
        for name, data in files.items():
            below = path / name
            (below if name.endswith("/") else below.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                below.write_bytes(data)
        return path
    path = path.with_name(f"{path.name}.{form}")
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if form == "tar.gz" else "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.type, member.size = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE, len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def data_of(**changes: Any) -> Data:
    """Return the section `data` of a folder's params, with 8 pixels."""
    return DATA.model_copy(update=changes)


def read(path: Path, **changes: Any) -> SourceImages:
    """Read a folder with 8 pixels, and with changes of the section `data`; test images in the order of their names."""
    found = folder.read(data_of(path=str(path), **changes))
    return replace(found, test=found.test.take(np.argsort(found.test.ids)))


def assert_same(one: SourceImages, other: SourceImages) -> None:
    """Assert that two folders were read alike."""
    assert one.class_names == other.class_names
    assert one.skipped == other.skipped
    for split, expected in ((one.train, other.train), (one.test, other.test)):
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_array_equal(split.labels, expected.labels)
        np.testing.assert_array_equal(split.ids, expected.ids)
