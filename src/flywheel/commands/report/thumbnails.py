"""Images of a data set as data URIs, small enough to stand in a page by the dozen."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

from flywheel import FlywheelError
from flywheel.registry import Registry

LARGEST = 64  # pixels; 40 of CIFAR-10's are 100 kB of PNG


def read(registry: Registry, dataset: str, split: str, ids: Iterable[int]) -> dict[int, str]:
    """Return id -> PNG as a data URI for images of a split of a data set (a ref); those not found are left out."""
    wanted = set(ids)
    if not wanted:
        return {}

    import numpy as np
    from PIL import Image

    from flywheel.data import dataset as datasets

    try:
        opened = datasets.open_directory(registry.open(registry.resolve(dataset)))
    except FlywheelError:
        return {}  # removed or damaged: the figures stand without their images
    index = opened.indices[split]
    found = {}
    for place in index[np.isin(opened.ids[index], list(wanted))]:
        image = Image.fromarray(np.asarray(opened.images[place]))
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        found[int(opened.ids[place])] = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return found
