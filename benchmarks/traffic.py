"""What recording traffic costs the server.

    python benchmarks/traffic.py [--rounds 10] [--seconds 3]        (make bench BENCH=traffic)

Three servers of the same network run at the same time and are measured in turn: one whose recorder drops everything,
this one, and this one keeping every image.

Reads   params.yaml; needs wrk (Debian: apt install wrk)
Writes  reports/bench.json; with --publish also benchmarks/results/traffic.json and its tables in docs/traffic.md
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import serving

from flywheel import cli

SERVERS = ("records nothing", "records", "records and keeps images")
RATIOS = ("rate_records", "p99_records", "rate_images", "p99_images")


def main() -> None:
    """Measure and write the tables."""
    options = harness.options(
        __doc__,
        rounds=(10, "measurements of each server"),
        seconds=(3, "seconds of one measurement"),
        publish=harness.PUBLISH,
    )
    harness.require("wrk", shutil.which("wrk"))
    with tempfile.TemporaryDirectory(prefix="fw-traffic-") as folder:
        rows = measure(Path(folder), options.seconds, options.rounds)
    result = {"traffic": rows, **harness.stamp("torch", "ray")}
    harness.publish("traffic", "traffic.md", result, table, commit=options.publish)


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    rows = [
        (row["connections"], f"{row['rate']:.0f}/s", *(f"{row[key]:.3f}" for key in RATIOS))
        for row in result["traffic"]
    ]
    header = ("connections", "records nothing", "rate, records", "p99, records", "rate, all images", "p99, all images")
    note = "Medians over the rounds of the ratio to the server that records nothing."
    return harness.markdown(header, rows) + harness.note(result, note)


def without_records(folder: Path) -> Path:
    """Return a copy of this code whose recorder drops everything."""
    for name in ("src", "scripts"):
        shutil.copytree(harness.ROOT / name, folder / name)
    shutil.copy(harness.ROOT / "params.yaml", folder)
    with (folder / "src/flywheel/traffic/capture.py").open("a") as code:
        code.write("\nRecorder.add = lambda self, answered: None\n")
    return folder


def measure(folder: Path, seconds: int, rounds: int) -> list[dict[str, Any]]:
    """Return for each number of connections the median ratios to the server that records nothing."""
    serving.post(folder, "predict", serving.image())
    with contextlib.ExitStack() as stack:
        urls = {}
        variants = ((without_records(folder / "code"), 0.0), (harness.ROOT, 0.0), (harness.ROOT, 1.0))
        for name, (code, share) in zip(SERVERS, variants, strict=True):
            own = folder / name.replace(" ", "-")
            own.mkdir()
            overrides = f"serve.port={harness.free_port()} {harness.scratch(str(own))} traffic.keep_images={share}"
            serving._publish(harness.params("cifar10", overrides), own / "model")
            urls[name] = stack.enter_context(harness.serving("cifar10", overrides, code))
        found = serving.in_turn(urls, folder, seconds, rounds)
    rows = []
    for connections in serving.CONNECTIONS:
        base, *others = (found[name, connections] for name in SERVERS)
        ratios = [
            statistics.median(one[figure] / first[figure] for one, first in zip(measured, base, strict=True))
            for measured in others
            for figure in ("requests_per_s", "p99_ms")
        ]
        rate = statistics.median(one["requests_per_s"] for one in base)
        rows.append({"connections": connections, "rate": rate, **dict(zip(RATIOS, ratios, strict=True))})
    return rows


if __name__ == "__main__":
    cli.main(main)
