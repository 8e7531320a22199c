"""How do time and memory of the stages grow with the images? Run data, sweep and evaluate on folders of JPEG files.

    python benchmarks/memory.py [--images 2000 8000 32000] [--size 64]     (make bench-long BENCH_LONG=memory)

Takes 10 minutes. Draws the images. The sweep is one trial of one epoch of `compact`. Memory is the highest sum of the
private memory of all processes of a stage, ten times a second; the page cache, which the system takes back when it
needs it, is left out.

Reads   params.yaml
Writes  reports/bench.json; with --publish benchmarks/results/memory.json and its table in docs/scaling.md
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil
from PIL import Image

from flywheel import cli
from flywheel.files import human_size

STAGES = ("data", "sweep", "evaluate")
CLASSES, TESTED = 10, 6  # one image in six is in the test folder


def main() -> None:
    """Measure every number of images and write the table."""
    options = harness.options(
        __doc__,
        images=([2000, 8000, 32_000], "how many images"),
        size=(64, "their height and width in pixels"),
        publish=harness.PUBLISH,
    )
    rows = []
    for count in options.images:
        with tempfile.TemporaryDirectory(prefix="fw-memory-") as name:
            folder = Path(name)
            draw(folder / "images", count, options.size)
            row = {"images": count, "pixel_bytes": count * options.size**2 * 3}
            rows.append(row | {stage: measured(stage, folder, options.size) for stage in STAGES})
        print(rows[-1], flush=True)
    result = {**harness.stamp("torch", "ray"), "size": options.size, "rows": rows}
    harness.publish("memory", "scaling.md", result, table, commit=options.publish)


def draw(folder: Path, count: int, size: int) -> None:
    """Write JPEG files of 1.5 times the size in the layout train/<class>/, test/<class>/."""
    random = np.random.default_rng(0)
    for number in range(count):
        label = f"class{number % CLASSES}"
        path = folder / ("train" if number // CLASSES % TESTED else "test") / label / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rough = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        rough.resize((size * 3 // 2,) * 2, Image.Resampling.BICUBIC).save(path, quality=90)


def measured(stage: str, folder: Path, size: int) -> dict[str, float]:
    """Return seconds and peak memory of a stage. Raises SystemExit if it fails."""
    overrides = (
        f"{harness.scratch(str(folder))} data.source=folder data.name=drawn data.path={folder}/images "
        f"data.image_size={size} sweep.trials=1 sweep.epochs=1 sweep.space.architecture=compact "
        "sweep.space.batch_size=128 gate.floor_accuracy=0 gate.allow_unlearned_classes=true"
    )
    words = [sys.executable, f"scripts/{stage}.py", "--profile", "laptop", "--set", overrides]
    started, peak = time.monotonic(), 0
    with subprocess.Popen(words, cwd=harness.ROOT) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, private_bytes(watched))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(1)
    return {"seconds": round(time.monotonic() - started, 1), "peak_bytes": peak}


def private_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and all that it started, without files and shared memory."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found = one.memory_info()
                total += found.rss - found.shared
    return total


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    rows = [
        (
            f"{row['images']:,}", human_size(row["pixel_bytes"]),
            *(f"{row[stage]['seconds']:.0f} s, {human_size(row[stage]['peak_bytes'])}" for stage in STAGES),
        )
        for row in result["rows"]
    ]  # fmt: skip
    text = f"Images of {result['size']} pixels; the sweep is one trial of one epoch of `compact`. One run each."
    heads = ("images", "pixels", *(f"`make {stage}`: time, memory" for stage in STAGES))
    return harness.markdown(heads, rows) + harness.note(result, text)


if __name__ == "__main__":
    cli.main(main)
