"""What a server costs that nobody asks: seconds and CPU seconds of its start, then the CPU share of each process.

    python benchmarks/idle.py [--rounds 3] [--seconds 60]                          (make bench BENCH=idle, 4 minutes)

Starts a server several times, each time until it answers, and watches the last one after it was idle for a minute.

Reads   params.yaml
Writes  reports/bench.json; with --publish also benchmarks/results/idle.json and its tables in docs/serving.md
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import psutil
import serving

from flywheel import cli
from flywheel.pipeline import server_record

SETTLED_S = 60
PARTS = {  # a part of the command line or title -> the process, and what it is for
    "scripts/serve.py": "host: owns the port, watches and repairs the others",
    "haproxy": "HAProxy: distributes the requests",
    "backend.main": "backend: starts Ray, tells the host which replicas answer",
    "gcs_server": "Ray, GCS: state of the cluster",
    "raylet/raylet": "Ray, raylet: starts and ends processes",
    "DashboardAgent": "Ray: dashboard agent, without which the raylet does not start",
    "RuntimeEnvAgent": "Ray: runtime environment agent, likewise",
    "ServeController": "Ray Serve, controller: starts, scales and replaces replicas",
    "ServeReplica": "replica: the model",
}


def main() -> None:
    """Measure and write the tables."""
    options = harness.options(
        __doc__, rounds=(3, "starts"), seconds=(60, "seconds of watching"), publish=harness.PUBLISH
    )
    with tempfile.TemporaryDirectory(prefix="fw-idle-") as folder:
        result = {**measure(Path(folder), options.rounds, options.seconds), **harness.stamp("torch", "ray")}
    harness.publish("idle", "serving.md", result, table, commit=options.publish)


def measure(folder: Path, rounds: int, seconds: int) -> dict[str, Any]:
    """Return the seconds and CPU seconds of each start, and the percentage of a core that each process uses."""
    overrides = f"serve.port={harness.free_port()} {harness.scratch(str(folder))}"
    params = harness.params("cifar10", overrides)
    serving._publish(params, folder / "model")
    starts: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    shares = []
    for number in range(rounds):
        began = time.monotonic()
        with harness.serving("cifar10", overrides):
            starts["seconds"].append(time.monotonic() - began)
            served = server_record.read(params)
            assert served is not None
            starts["cpu_seconds"].append(sum(cpu_seconds(served.pid).values()))
            print(f"start {number + 1}: {starts['seconds'][-1]:.1f} s", flush=True)
            if number == rounds - 1:
                time.sleep(SETTLED_S)
                before = cpu_seconds(served.pid)
                time.sleep(seconds)
                after = cpu_seconds(served.pid)
                shares = [
                    {"process": name, "percent": 100 * (after[name, pid] - before.get((name, pid), 0.0)) / seconds}
                    for name, pid in after
                ]
    return {"start": starts, "idle": shares, "n": rounds}


def cpu_seconds(host: int | None) -> dict[tuple[str, int], float]:
    """Return what each process of a server has used so far, by its name and pid."""
    root, found = psutil.Process(host), {}
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            line, times = " ".join(process.cmdline()), process.cpu_times()
            name = next((name for part, name in PARTS.items() if part in line), line[:40])
            found[name, process.pid] = times.user + times.system
    return found


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    rows = sorted(((row["process"], f"{row['percent']:.1f}") for row in result["idle"]), key=lambda row: -float(row[1]))
    rows.append((f"all {len(rows)}", f"{sum(row['percent'] for row in result['idle']):.1f}"))
    start = result["start"]
    seconds, cpu_seconds = (harness.spread(start[key], ".1f") for key in ("seconds", "cpu_seconds"))
    text = (
        f"`make serve` to the first answer: {seconds} s, {cpu_seconds} CPU seconds of the server's processes "
        f"({result['n']} starts, median, lowest to highest)."
    )
    return harness.markdown(("process of a server that nobody asks", "% of a core"), rows) + harness.note(result, text)


if __name__ == "__main__":
    cli.main(main)
