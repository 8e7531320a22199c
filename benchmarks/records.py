"""What a million records of traffic cost `make collect`, which joins them with labels, and `make monitor`.

    python benchmarks/records.py [--records 1000000]        (make bench BENCH=records, about 3 minutes)

Trains a model on the digits, writes records of a month, and runs both, each in a process of its own.

Writes  reports/bench.json; with --publish also benchmarks/results/records.json and its table in docs/traffic.md
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import loop

from flywheel import cli, files
from flywheel.params import StorePaths
from flywheel.traffic import records, retention

LABELS = 1_000
DAYS = 29
MEASURED = """
import resource, sys, time
from flywheel.params import file as params_file
from flywheel.registry import Registry
from flywheel.traffic import labels, monitor, records
params = params_file.load(profile="demo", overrides=sys.argv[1])
started = time.perf_counter()
{work}
wall_s = time.perf_counter() - started
# Not ru_maxrss: a process inherits the peak of its parent.
peak_kb = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
used = resource.getrusage(resource.RUSAGE_SELF)
print(wall_s, used.ru_utime + used.ru_stime, int(peak_kb) / 1024)
"""
JOIN = """
found, unknown = labels.join(params.store_paths)
assert found and not unknown and not records.groups(params.store_paths, found)
"""
MONITOR = "monitor.run(params, Registry(params.store))"
WORK = {"make collect, joining": JOIN, "make monitor, all are new": MONITOR, "make monitor, none is new": MONITOR}


def main() -> None:
    """Measure and write the table."""
    options = harness.options(__doc__, records=(1_000_000, "records"), publish=harness.PUBLISH)
    with tempfile.TemporaryDirectory(prefix="fw-records-") as folder:
        _, images, model, _ = loop.begin(("demo", ""), 0, Path(folder))
        overrides = f"{harness.scratch(f'{folder}/parent')} data.seed=0"
        paths = harness.params("demo", overrides).store_paths
        write(paths, "first", 1, model.ref, images.class_names)
        rows = [{"work": "make monitor, the first of a model", **measure(MONITOR, overrides)}]
        labels = min(LABELS, options.records)
        write(paths, "replica", options.records, model.ref, images.class_names, labels)
        rows += [{"work": name, **measure(work, overrides)} for name, work in WORK.items()]
        size = retention.measure(paths).size_bytes
    counts = {"count": options.records, "labels": labels, "size_bytes": size}
    harness.publish(
        "records", "traffic.md", {"records": rows, **counts, **harness.stamp("torch")}, table, commit=options.publish
    )


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    rows = [
        (row["work"], f"{row['wall_s']:.1f} s", f"{row['cpu_s']:.1f} s", f"{row['memory_mb']:.0f} MB")
        for row in result["records"]
    ]
    note = (
        f"{result['count']:,} records of {DAYS} days, {files.human_size(result['size_bytes'])}, with "
        f"{result['labels']:,} labels; memory is the peak of the whole process. The first run of a model loads torch "
        "to predict the test images."
    )
    return harness.markdown(("work", "time", "CPU time", "memory"), rows) + harness.note(result, note)


def measure(work: str, overrides: str) -> dict[str, float]:
    """Return the time and the memory of work in a process of its own."""
    words = [sys.executable, "-c", MEASURED.format(work=work), overrides]
    output = subprocess.run(words, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    wall_s, cpu_s, memory_mb = map(float, output.split()[-3:])
    return {"wall_s": wall_s, "cpu_s": cpu_s, "memory_mb": memory_mb}


def write(paths: StorePaths, replica: str, count: int, model: str, class_names: Sequence[str], labels: int = 0) -> None:
    """Write records of a month, sure answers and unsure ones, with labels for some."""
    source, now = random.Random(0), time.time()
    lines: dict[str, list[str]] = {}
    given: dict[str, list[str]] = {}
    labelled = set(source.sample(range(count), labels))
    for number in range(count):
        made_ms = int((now - source.random() * DAYS * 86400) * 1000)
        made = str(uuid.UUID(int=made_ms << 80 | 0x7 << 76 | source.getrandbits(12) << 64 | 0b10 << 62 | number))
        hour = records.hour_of(made)
        unsure = source.random() ** 20 / len(class_names)
        probabilities = [round(unsure, 6)] * len(class_names)
        answer = source.randrange(len(class_names))
        probabilities[answer] = round(1 - unsure * (len(class_names) - 1), 6)
        row = {
            "prediction_id": made, "at": files.timestamp(), "hash": source.randbytes(32).hex(), "group": None,
            "model": model, "prediction": class_names[answer], "probabilities": probabilities, "latency_ms": 2.31,
        }  # fmt: skip
        lines.setdefault(hour, []).append(json.dumps(row))
        if number in labelled:
            label = {"prediction_id": made, "label": class_names[0], "labeller": "api", "sequence": 1, "at": row["at"]}
            given.setdefault(hour, []).append(json.dumps(label))
    for folder, content in ((paths.traffic_records, lines), (paths.traffic_labels, given)):
        folder.mkdir(parents=True, exist_ok=True)
        for hour, rows in content.items():
            (folder / f"{replica}-{hour}.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    cli.main(main)
