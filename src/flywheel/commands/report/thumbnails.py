"""Images of a data set as small data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

from flywheel import FlywheelError
from flywheel.registry import Registry

MAX_SIDE = 64  # pixels; 40 images of CIFAR-10 are 100 kB of PNG


def read(registry: Registry, dataset: str, split: str, ids: Iterable[int]) -> dict[int, str]:
    """Return id -> PNG as a data URI, for images of a split of the data set with the ref. Missing ones are left out."""
    wanted = set(ids)
    if not wanted:
        return {}

    import numpy as np
    from PIL import Image

    from flywheel.data import dataset as datasets

    try:
        opened = datasets.open_directory(registry.open(registry.resolve(dataset)))
    except FlywheelError:
        return {}  # removed or damaged: show the figures without images
    indices = opened.indices[split]
    found = {}
    for index in indices[np.isin(opened.ids[indices], list(wanted))]:
        image = Image.fromarray(np.asarray(opened.images[index]))
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        found[int(opened.ids[index])] = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return found
