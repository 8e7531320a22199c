"""What recording traffic costs the server, and what a million records cost `make collect`.

    python benchmarks/traffic.py [--rounds 10] [--seconds 3] [--records 1000000]        (make bench BENCH=traffic)

Three servers of the same network run at the same time and are measured in turn: that of the commit before records, this
one, and this one keeping every image.

Reads   params.yaml; needs wrk (Debian: apt install wrk)
Writes  reports/bench.json; with --publish also benchmarks/results/traffic.json and its tables in docs/traffic.md
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import numpy as np
import serving
from PIL import Image

from flywheel import cli, files
from flywheel.params import StorePaths
from flywheel.traffic import records, retention

BASELINE = "5794a39"  # the last commit whose server recorded nothing
SERVERS = ("records nothing", "records", "records and keeps images")
KEEP = "traffic.keep_images={}"
LABELS = 1_000
COLLECT = """
import resource, sys, time
from pathlib import Path
from flywheel.params import StorePaths
from flywheel.traffic import labels
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
found, unknown = labels.join(StorePaths(Path(sys.argv[1])))
wall_s = time.perf_counter() - started
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(found), unknown, wall_s, (after - before) / 1024)
"""


def main() -> None:
    """Measure and write the tables."""
    options = harness.options(
        __doc__,
        baseline=(BASELINE, "commit whose server is the baseline"),
        rounds=(10, "measurements of each server"),
        seconds=(3, "seconds of one measurement"),
        records=(1_000_000, "records for make collect"),
        publish=harness.PUBLISH,
    )
    with tempfile.TemporaryDirectory(prefix="fw-traffic-") as folder:
        rows = measure(Path(folder), options.baseline, options.seconds, options.rounds)
    with tempfile.TemporaryDirectory(prefix="fw-traffic-") as folder:
        log = collect(StorePaths(Path(folder)), options.records)
    result = {"traffic": rows, "traffic_log": log, **harness.stamp("torch", "ray")}
    harness.publish("traffic", "traffic.md", result, table, commit=options.publish)


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    rows = [
        (row["connections"], f"{row['rate']:.0f}/s", *(f"{row[key]:.3f}" for key in RATIOS))
        for row in result["traffic"]
    ]
    log = result["traffic_log"]
    cells = (
        f"{log['records']:,}", files.human_size(log["size_bytes"]), f"{log['labels']:,}", f"{log['wall_s']:.1f} s",
        f"{log['memory_mb']:.0f} MB",
    )  # fmt: skip
    header = ("connections", "records nothing", "rate, records", "p99, records", "rate, all images", "p99, all images")
    return "\n\n".join(
        (
            harness.markdown(header, rows),
            harness.markdown(("records", "on disk", "labels", "time to join", "memory for it"), [cells]),
        )
    ) + harness.note(result, "Medians over the rounds of the ratio to the server that records nothing.")


RATIOS = ("rate_records", "p99_records", "rate_images", "p99_images")


def measure(folder: Path, baseline: str, seconds: int, rounds: int) -> list[dict[str, Any]]:
    """Return for each number of connections the median ratios to the server that records nothing."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    body = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(body, "PNG")
    (folder / "image.png").write_bytes(body.getvalue())
    (folder / "predict.lua").write_text(serving.POST.format(body=folder / "image.png") + serving.REPORT)
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(harness.checkout(baseline, folder / "code"))
        urls = {}
        variants = ((old, ""), (harness.ROOT, KEEP.format(0.0)), (harness.ROOT, KEEP.format(1.0)))
        for name, (code, extra) in zip(SERVERS, variants, strict=True):
            own = folder / name.replace(" ", "-")
            own.mkdir()
            overrides = f"serve.port={harness.free_port()} {harness.scratch(str(own))}"
            serving._publish(harness.params("cifar10", overrides), own / "model")
            urls[name] = stack.enter_context(harness.serving("cifar10", f"{overrides} {extra}", code))
        for url in urls.values():
            serving._wrk(f"{url}/predict", 8, 2, folder)  # warm up
        for number in range(rounds):
            for connections in serving.CONNECTIONS:
                for name, url in urls.items():
                    result = serving._wrk(f"{url}/predict", connections, seconds, folder)
                    found.setdefault((name, connections), []).append(result)
                    print(f"round {number + 1}, {connections:>2} connections, {name:<25}{result}", flush=True)
    rows = []
    for connections in serving.CONNECTIONS:
        off, on, kept = (found[name, connections] for name in SERVERS)
        row: dict[str, Any] = {
            "connections": connections,
            "rate": statistics.median(one["requests_per_s"] for one in off),
        }
        for key, measured in (("records", on), ("images", kept)):
            for short, figure in (("rate", "requests_per_s"), ("p99", "p99_ms")):
                row[f"{short}_{key}"] = statistics.median(
                    one[figure] / base[figure] for one, base in zip(measured, off, strict=True)
                )
        rows.append(row)
    return rows


def collect(paths: StorePaths, count: int) -> dict[str, Any]:
    """Write records over 30 days with labels for some, and measure how they are joined, in a process of its own."""
    source, now = random.Random(0), time.time()
    lines: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    labelled = set(source.sample(range(count), LABELS))
    for number in range(count):
        made_ms = int((now - source.random() * 29 * 86400) * 1000)
        made = str(uuid.UUID(int=made_ms << 80 | 0x7 << 76 | source.getrandbits(12) << 64 | 0b10 << 62 | number))
        hour = records.hour_of(made)
        row = {
            "prediction_id": made, "at": files.timestamp(), "hash": source.randbytes(32).hex(), "group": None,
            "model": "model-bench@sha256:" + "0" * 64, "prediction": "cat",
            "probabilities": [round(source.random(), 6) for _ in range(10)], "latency_ms": 2.31,
        }  # fmt: skip
        lines.setdefault(hour, []).append(json.dumps(row))
        if number in labelled:
            label = {"prediction_id": made, "label": "cat", "labeller": "api", "sequence": 1, "at": files.timestamp()}
            labels.setdefault(hour, []).append(json.dumps(label))
    for folder, content in ((paths.traffic_records, lines), (paths.traffic_labels, labels)):
        folder.mkdir(parents=True)
        for hour, rows in content.items():
            (folder / f"replica-{hour}.jsonl").write_text("\n".join(rows) + "\n")
    size = retention.measure(paths).size_bytes
    words = [sys.executable, "-c", COLLECT, str(paths.root)]
    output = subprocess.run(words, cwd=harness.ROOT, capture_output=True, text=True, check=True).stdout
    found, unknown, wall_s, memory_mb = map(float, output.split())
    assert (found, unknown) == (LABELS, 0)
    return {"records": count, "labels": LABELS, "size_bytes": size, "wall_s": wall_s, "memory_mb": memory_mb}


if __name__ == "__main__":
    cli.main(main)
