"""Requests per second and latency: this server against others with the same network, and while models are swapped.

    python benchmarks/serving.py [--seconds 5] [--rounds 3] [--before ec2013f]        (make bench BENCH=serving)

The servers run at the same time and are measured in turn, so that other load on the machine affects all of them.
LitServe is installed into an environment of its own that is removed at the end. `--before` adds this server as it was
at a commit.

Reads   params.yaml; needs wrk (Debian: apt install wrk)
Writes  reports/bench.json; with --publish also benchmarks/results/serving.json and its tables in docs/serving.md
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import numpy as np
import requests
import torch
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from flywheel import cli, files
from flywheel.data.images import decode
from flywheel.models import classifier
from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.serving import replica

SERVERS = {
    "textbook": "textbook FastAPI",
    "batched": "FastAPI with a batching queue",
    "litserve": "LitServe",
    "before": "this server before",
    "ours": "this server",
}
LITSERVE = "litserve==0.2.19"
PUBLISH_BEFORE = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import serving
file = getattr(serving, "params_file", None) or serving.harness.params_file
serving._publish(file.load(Path("params.yaml"), "cifar10", sys.argv[1]), Path(sys.argv[2]))
"""
CONNECTIONS = (1, 16, 64)
SWAPS, SWAP_RUN_S = 10, 22
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
Measurement = dict[str, float]  # requests_per_s, p50_ms, p99_ms, failed
POST = 'wrk.method = "POST"; local f = io.open("{body}", "rb"); wrk.body = f:read("*a"); f:close()\n'
PARTS, BOUNDARY = 64, "parts"
MULTIPART = f'wrk.headers["Content-Type"] = "multipart/form-data; boundary={BOUNDARY}"\n'
JSON = 'wrk.headers["Content-Type"] = "application/json"\n'  # LitServe takes no image as the body, but one in base64
REPORT = """
function done(summary, latency)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format(
    '{"requests_per_s": %.2f, "p50_ms": %.2f, "p99_ms": %.2f, "failed": %d}',
    1e6 * summary.requests / summary.duration, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, failed))
end
"""  # durations in wrk are microseconds


def main() -> None:
    """Measure and write the tables."""
    options = harness.options(
        __doc__,
        seconds=(5, "seconds of one measurement"),
        rounds=(3, "measurements of each server"),
        before=("", "commit whose server is measured, too"),
        publish=harness.PUBLISH,
    )
    harness.require("wrk", shutil.which("wrk"))
    with tempfile.TemporaryDirectory(prefix="fw-bench-") as folder:
        figures = measure(Path(folder), options.seconds, options.rounds, options.before)
    result = {**figures, **harness.stamp("torch", "ray")}
    harness.publish("serving", "serving.md", result, table, commit=options.publish)


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    rates = []
    for row in result["serving"]:
        names = [name for name in SERVERS if name in row["requests_per_s"]]
        cells = [
            f"{rate['median']:.0f}/s ({rate['least']:.0f} to {rate['most']:.0f}), "
            f"p50 {row['p50_ms'][name]:.1f}, p99 {row['p99_ms'][name]:.1f} ms"
            for name in names
            for rate in (row["requests_per_s"][name],)
        ]
        ratios = [row["ours"] / row["requests_per_s"][name]["median"] for name in names[:-1]]
        rates.append((row["connections"], *cells, ", ".join(f"{ratio:.2f}" for ratio in ratios)))
    swaps = [
        (name, f"{row['requests_per_s']:.0f}", row["p50_ms"], row["p99_ms"], row["failed"])
        for name, row in zip(("no swap", f"{SWAPS} swaps"), result["serving_swaps"].values(), strict=True)
    ]
    parts = [(name, f"{value:.3f}") for name, value in result["serving_parts"].items()]
    servers = [SERVERS[name] for name in names]
    latency = ("requests/s", "p50, ms", "p99, ms", "failed requests")
    tables = (
        harness.markdown(("connections", *servers, "speedups"), rates),
        harness.markdown((f"16 connections for {SWAP_RUN_S} s", *latency), swaps),
        harness.markdown(("time per image at 64 connections", "ms"), parts),
    )
    return "\n\n".join(tables) + harness.note(result, "Medians (lowest to highest).")


def measure(folder: Path, seconds: int, rounds: int, before: str = "") -> dict[str, Any]:
    """Return a row for each number of connections, latencies with and without swaps, and the parts of a request."""
    overrides = f"serve.port={harness.free_port()} {harness.scratch(str(folder))}"
    params = harness.params("cifar10", overrides)
    model = _publish(params, folder / "model")
    body = image()
    post(folder, "predict", body)
    post(folder, "litserve", json.dumps({"image": base64.b64encode(body).decode()}).encode(), JSON)
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'.encode()
    post(folder, "parts", (part + body + b"\r\n") * PARTS + f"--{BOUNDARY}--\r\n".encode(), MULTIPART)
    (folder / "get.lua").write_text(REPORT)
    with contextlib.ExitStack() as stack:
        urls = {
            "textbook": stack.enter_context(_fastapi("textbook", model)),
            "batched": stack.enter_context(_fastapi("batched", model)),
            "litserve": stack.enter_context(_fastapi("litserve", model, _litserve_python(folder / "environment"))),
            **({"before": stack.enter_context(_before(before, folder / "before"))} if before else {}),
            "ours": stack.enter_context(harness.serving("cifar10", overrides)),
        }
        found = in_turn(urls, folder, seconds, rounds)
    rows = [_row(found, connections) for connections in CONNECTIONS]
    with harness.serving("cifar10", overrides) as url:  # without the other servers
        swaps = {"steady": _wrk(f"{url}/predict", 16, SWAP_RUN_S, folder)}
        with ThreadPoolExecutor(1) as pool:
            swapping = pool.submit(_swap, params, model, folder)
            swaps["swapping"] = _wrk(f"{url}/predict", 16, SWAP_RUN_S, folder)
            swapping.result()
        http = _wrk(f"{url}/model", 64, seconds, folder, "get")
        many = _wrk(f"{url}/predict", 2, seconds, folder, "parts")
    parts = _parts(model, body, http, rows[-1]["ours"])
    parts[f"total, in requests with {PARTS} images, 2 connections"] = 1000 / (PARTS * many["requests_per_s"])
    return {"serving": rows, "serving_swaps": swaps, "serving_parts": parts}


def image() -> bytes:
    """Return a PNG file of 32 x 32 random pixels."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def post(folder: Path, script: str, body: bytes, headers: str = "") -> None:
    """Write a script for wrk, which posts a body."""
    (folder / script).write_bytes(body)
    (folder / f"{script}.lua").write_text(headers + POST.format(body=folder / script) + REPORT)


def in_turn(
    urls: Mapping[str, str], folder: Path, seconds: int, rounds: int
) -> dict[tuple[str, int], list[Measurement]]:
    """Measure servers in turn; return the measurements by name and number of connections."""
    found: dict[tuple[str, int], list[Measurement]] = {}
    for name, url in urls.items():
        _wrk(f"{url}/predict", 8, 2, folder, name)  # warm up
    for number in range(rounds):
        for connections in CONNECTIONS:
            for name, url in urls.items():
                result = _wrk(f"{url}/predict", connections, seconds, folder, name)
                found.setdefault((name, connections), []).append(result)
                print(f"round {number + 1}, {connections:>2} connections, {name:<10} {result}", flush=True)
    return found


def _swap(params: Params, model: Path, folder: Path) -> None:
    """Promote ten times, evenly over the run."""
    registry = Registry(params.store)
    other = shutil.copytree(model, folder / "other")
    description = files.read_json(other / "model.json")
    files.write_json(other / "model.json", {**description, "recipe": {**description["recipe"], "seed": 1}})
    new = registry.publish("model-other", "model", other, metadata={}, inputs={})
    for number in range(SWAPS):
        version = registry.resolve("model-bench") if number % 2 else new
        registry.link(version, params.registered_model, ("production",), reason="benchmark")
        time.sleep(SWAP_RUN_S / (SWAPS + 1))


def _parts(model: Path, body: bytes, http: Measurement, ours: float) -> dict[str, float]:
    """Return the milliseconds per image of each part, measured alone; the model in one thread, batches of 64."""
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
        "HTTP (GET /model)": 1000 / http["requests_per_s"],
        "total, as served": 1000 / ours,
    }


def _row(found: dict[tuple[str, int], list[Measurement]], connections: int) -> dict[str, Any]:
    measured = {name: found[name, connections] for name in SERVERS if (name, connections) in found}
    rates = {name: harness.extent([m["requests_per_s"] for m in own]) for name, own in measured.items()}
    latencies = {
        key: {name: statistics.median(m[key] for m in own) for name, own in measured.items()}
        for key in ("p50_ms", "p99_ms")
    }
    return {
        "connections": connections,
        "ours": rates["ours"]["median"],
        "ratio": round(rates["ours"]["median"] / rates["textbook"]["median"], 3),
        "requests_per_s": rates,
        **latencies,
        "failed": {name: sum(m["failed"] for m in own) for name, own in measured.items()},
    }


def _publish(params: Params, directory: Path) -> Path:
    """Put an untrained ResNet-18 into production, which is as fast as a trained one. Returns its directory."""
    classifier.Classifier("standard", CLASSES, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), 32).save(
        directory, {"precision": "auto"}
    )
    registry = Registry(params.store)
    version = registry.publish("model-bench", "model", directory, metadata={}, inputs={})
    registry.link(version, params.registered_model, ("production",), reason="benchmark")
    return directory


@contextlib.contextmanager
def _before(commit: str, folder: Path) -> Iterator[str]:
    """Run the server of a commit, with a model that its own code publishes."""
    folder.mkdir()
    overrides = f"serve.port={harness.free_port()} {harness.scratch(str(folder))}"
    with harness.checkout(commit, folder / "code") as code:
        words = [sys.executable, "-c", PUBLISH_BEFORE, overrides, str(folder / "model")]
        subprocess.run(words, cwd=code, env={**os.environ, "PYTHONPATH": str(code / "src")}, check=True)
        with harness.serving("cifar10", overrides, code) as url:
            yield url


def _litserve_python(folder: Path) -> str:
    """Make an environment with LitServe and all packages of this one; return its Python."""
    venv.create(folder, with_pip=True)
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", LITSERVE], check=True)
    return str(folder / "bin" / "python")


@contextlib.contextmanager
def _fastapi(kind: str, model: Path, python: str = sys.executable) -> Iterator[str]:
    port = harness.free_port()
    script = str(Path(__file__).with_name("litserve_server.py" if kind == "litserve" else "fastapi_servers.py"))
    process = subprocess.Popen([python, script, kind, str(model), str(port)], start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        with requests.Session() as session:
            retry = Retry(60, backoff_factor=0.2, backoff_max=1, status_forcelist=[503])
            session.mount(url, HTTPAdapter(max_retries=retry))
            path = "health" if kind == "litserve" else "openapi.json"
            session.get(f"{url}/{path}", timeout=3).raise_for_status()
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # LitServe's workers, too
        process.wait()


def _wrk(url: str, connections: int, seconds: int, folder: Path, script: str = "predict") -> Measurement:
    """Run wrk with a script of the folder, or with `predict`, which most servers share."""
    path = folder / f"{script}.lua"
    chosen = str(path if path.exists() else folder / "predict.lua")
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", chosen, url]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


if __name__ == "__main__":
    cli.main(main)
