"""Requests a second: ours against FastAPI, same network, same machine, same run, alternating; and ours while it swaps.

    python benchmarks/serving.py [--seconds 5] [--rounds 3]        (make bench BENCH=serving)

Reads   params.yaml; needs wrk (Debian: apt install wrk)
Writes  the entries `serving`, `serving_swaps` and `serving_parts` of reports/bench.json; with --publish also
        benchmarks/results/serving.json and its tables in docs/serving.md
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pages
import requests
import torch
from PIL import Image

from flywheel import cli, files
from flywheel.data.images import decode
from flywheel.models import classifier
from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.registry import LocalRegistry
from flywheel.serving import replica

ROOT = Path(__file__).parents[1]
CONNECTIONS = (1, 16, 64)
SWAPS, SWAP_RUN_S = 10, 22
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
POST = 'wrk.method = "POST"; local f = io.open("{body}", "rb"); wrk.body = f:read("*a"); f:close()\n'


@dataclass(frozen=True)
class Measurement:
    """One run of wrk: requests a second, latencies in ms, answers that were no 200."""

    rate: float
    p50: float
    p99: float
    failed: int


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="of one measurement (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="of all servers (default: 3)")
    parser.add_argument("--publish", action="store_true", help="write the figures into the docs")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("error: wrk is missing; apt install wrk")
    with tempfile.TemporaryDirectory(prefix="fw-bench-") as folder:
        rows, swaps, parts = measure(Path(folder), arguments.seconds, arguments.rounds)
    figures = {"serving": rows, "serving_swaps": swaps, "serving_parts": parts}
    report = pages.add_to_report(figures)
    result = {
        **figures,
        "command": pages.command(),
        "machine": f"{os.cpu_count()} CPUs, load {os.getloadavg()[2]:.1f} over the last 15 minutes, its own included",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "ray": metadata.version("ray")},
    }
    print(f"\n{table(result)}\n\nreports: {report}")
    if arguments.publish:
        files.write_json(Path(__file__).parent / "results" / "serving.json", result)
        pages.write(ROOT / "docs" / "serving.md", "serving", table(result))


def table(result: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = [
        "| connections | textbook FastAPI | FastAPI with a batching queue | this server | ratios |",
        "|---|---|---|---|---|",
    ]
    for row in result["serving"]:
        cells = []
        for name in ("textbook", "batched", "ours"):
            rate = row["requests_per_s"][name]
            cells.append(
                f"{rate['median']:.0f}/s ({rate['least']:.0f} to {rate['most']:.0f}), "
                f"p50 {row['p50_ms'][name]:.1f}, p99 {row['p99_ms'][name]:.1f} ms"
            )
        ratios = f"{row['ratio']:.2f} and {row['ratio_batched']:.2f}"
        lines.append(f"| {row['connections']} | {' | '.join(cells)} | {ratios} |")
    lines += [
        "",
        f"| 16 connections for {SWAP_RUN_S} s | requests/s | p50, ms | p99, ms | failed |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["serving_swaps"].items():
        shown = f"{SWAPS} swaps" if name == "swapping" else "no swap"
        lines.append(f"| {shown} | {row['requests_per_s']:.0f} | {row['p50_ms']} | {row['p99_ms']} | {row['failed']} |")
    lines += ["", "| where an image's time goes at 64 connections | ms |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in result["serving_parts"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([*lines, "", f"`{result['command']}`; {result['machine']}; {versions}."])


def measure(
    folder: Path, seconds: int, rounds: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]], dict[str, float]]:
    """Return a row for each number of connections, latencies with and without swaps, and the parts of a request."""
    port = _free_port()
    overrides = f"serve.port={port} paths.store={folder / 'store'} paths.reports={folder / 'reports'}"
    params = params_file.load(ROOT / "params.yaml", "cifar10", overrides)
    model = _publish(params, folder / "model")
    body = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(body, "PNG")
    (folder / "image.png").write_bytes(body.getvalue())
    (folder / "post.lua").write_text(POST.format(body=folder / "image.png"))
    found: dict[tuple[str, int], list[Measurement]] = {}
    with contextlib.ExitStack() as stack:
        urls = {
            "textbook": stack.enter_context(_fastapi("textbook", model)),
            "batched": stack.enter_context(_fastapi("batched", model)),
            "ours": stack.enter_context(_ours(overrides, port)),
        }
        for url in urls.values():
            _wrk(url, 8, 2, folder)  # warm
        for number in range(rounds):
            for connections in CONNECTIONS:
                for name, url in urls.items():
                    result = _wrk(url, connections, seconds, folder)
                    found.setdefault((name, connections), []).append(result)
                    print(f"round {number + 1}, {connections:>2} connections, {name:<9}{result}", flush=True)
        rows = [_row(found, list(urls), connections) for connections in CONNECTIONS]
    with _ours(overrides, port) as url:  # alone on the machine now
        swaps = {"steady": _latency(_wrk(url, 16, SWAP_RUN_S, folder))}
        with ThreadPoolExecutor(1) as pool:
            swapping = pool.submit(_swap, params, model, folder)
            swaps["swapping"] = _latency(_wrk(url, 16, SWAP_RUN_S, folder))
            swapping.result()
        http = _wrk(url, 64, seconds, folder, path="/healthz")
    return rows, swaps, _parts(model, body.getvalue(), http, rows[-1]["ours"])


def _swap(params: Params, model: Path, folder: Path) -> None:
    """Move production ten times, evenly over the run."""
    registry = LocalRegistry(params.store)
    other = shutil.copytree(model, folder / "other")
    description = files.read_json(other / "model.json")
    files.write_json(other / "model.json", {**description, "recipe": {**description["recipe"], "seed": 1}})
    versions = [
        registry.publish("model-other", "model", other, metadata={}, inputs={}), registry.resolve("model-bench")
    ]  # fmt: skip
    for number in range(SWAPS):
        registry.link(versions[number % 2], params.registered_model, ("production",), reason="benchmark")
        time.sleep(SWAP_RUN_S / (SWAPS + 1))


def _latency(measured: Measurement) -> dict[str, float]:
    return {
        "requests_per_s": measured.rate, "p50_ms": measured.p50, "p99_ms": measured.p99, "failed": measured.failed
    }  # fmt: skip


def _parts(model: Path, body: bytes, http: Measurement, ours: float) -> dict[str, float]:
    """Return the milliseconds an image costs in each part, measured alone; the model in one thread, batches of 64."""
    torch.set_num_threads(1)
    infer = replica.fast(classifier.load(model))
    images = np.stack([decode(body, 32)] * 64)

    def cost(work: Callable[[], object], images: int) -> float:
        times = []
        for _ in range(20):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return 1000 * statistics.median(times) / images

    return {
        "model, batches of 64, one thread": cost(lambda: infer(images), 64),
        "decoding": cost(lambda: decode(body, 32), 1),
        "HTTP (GET /healthz)": 1000 / http.rate,
        "all, as served": 1000 / ours,
    }


def _row(found: dict[tuple[str, int], list[Measurement]], names: list[str], connections: int) -> dict[str, Any]:
    rates = {name: [m.rate for m in found[name, connections]] for name in names}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "connections": connections,
        "ours": medians["ours"],
        "fastapi": medians["textbook"],
        "fastapi_batched": medians["batched"],
        "ratio": round(medians["ours"] / medians["textbook"], 3),
        "ratio_batched": round(medians["ours"] / medians["batched"], 3),
        "requests_per_s": {
            name: {"median": medians[name], "least": min(values), "most": max(values)} for name, values in rates.items()
        },
        "p50_ms": {name: statistics.median(m.p50 for m in found[name, connections]) for name in names},
        "p99_ms": {name: statistics.median(m.p99 for m in found[name, connections]) for name in names},
        "failed": {name: sum(m.failed for m in found[name, connections]) for name in names},
    }


def _publish(params: Params, directory: Path) -> Path:
    """Put an untrained ResNet-18 into production: its speed is that of a trained one. Returns its directory."""
    classifier.Classifier("standard", CLASSES, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), 32).save(
        directory, {"precision": "auto"}
    )
    registry = LocalRegistry(params.store)
    version = registry.publish("model-bench", "model", directory, metadata={}, inputs={})
    registry.link(version, params.registered_model, ("production",), reason="benchmark")
    return directory


@contextlib.contextmanager
def _fastapi(kind: str, model: Path) -> Iterator[str]:
    port = _free_port()
    script = str(Path(__file__).with_name("fastapi_servers.py"))
    process = subprocess.Popen([sys.executable, script, kind, str(model), str(port)])
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/openapi.json")
        yield url
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _ours(overrides: str, port: int) -> Iterator[str]:
    arguments = ["--profile", "cifar10", "--set", overrides]
    subprocess.run([sys.executable, "scripts/serve.py", *arguments], check=True, cwd=ROOT)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([sys.executable, "scripts/stop.py", *arguments], check=True, cwd=ROOT)


def _wrk(url: str, connections: int, seconds: int, folder: Path, path: str = "/predict") -> Measurement:
    asked = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    told = subprocess.run(
        [*asked, *(["-s", str(folder / "post.lua")] if path == "/predict" else []), f"{url}{path}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    def find(pattern: str) -> str:
        match = re.search(pattern, told, re.MULTILINE)
        return match.group(1) if match else "0"

    failed = int(find(r"Non-2xx or 3xx responses: (\d+)")) + sum(
        int(number) for number in re.findall(r"(?:connect|read|write|timeout) (\d+)", told)
    )
    return Measurement(
        float(find(r"Requests/sec:\s+([\d.]+)")), _ms(find(r"^\s+50%\s+(\S+)")), _ms(find(r"^\s+99%\s+(\S+)")), failed
    )


def _ms(text: str) -> float:
    for unit, factor in (("us", 1e-3), ("ms", 1.0), ("s", 1e3)):
        if text.endswith(unit):
            return round(float(text.removesuffix(unit)) * factor, 2)
    return 0.0


def _wait(url: str, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=3).ok:
                return
        time.sleep(0.2)
    raise TimeoutError(url)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    cli.main(main)
