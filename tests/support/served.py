"""A real server for tests: its own process, Ray Serve, HAProxy, an untrained ResNet-18 in production."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import requests
import scripts
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from scripts import ROOT

from flywheel.models.classifier import Classifier
from flywheel.params import Params
from flywheel.registry import Registry, Version

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SETTINGS = (
    "serve.max_batch_size=16 serve.max_queued_images=32 serve.max_body_bytes=200000 serve.max_parts=8 "
    "serve.poll_s=0.2 serve.access_log=true serve.header_timeout_s=2 serve.request_timeout_s=5 "
    "serve.cors_origins=[https://example.org]"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def png(seed: int = 0, size: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def publish(registry: Registry, folder: Path, seed: int, image_size: int = 32) -> Version:
    """Publish an untrained model."""
    model = Classifier("standard", CLASSES, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), image_size, seed=seed)
    model.save(folder / f"model-{seed}-{image_size}", {"precision": "auto", "seed": seed})
    return registry.publish(f"model-{seed}", "model", folder / f"model-{seed}-{image_size}", metadata={}, inputs={})


@dataclass(frozen=True)
class Server:
    """A profile with its own store, and the commands that serve it."""

    params: Params
    registry: Registry
    folder: Path
    overrides: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.params.serve.port}"

    def run(self, script: str, *arguments: str, extra: str = "", env: dict[str, str] | None = None) -> str:
        """Run a script to its end; return what it printed on stdout and stderr, and its exit code."""
        command = self.command(script, *arguments, extra=extra)
        done = subprocess.run(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        return f"{done.stdout}[exit {done.returncode}]"

    def done(self, script: str, *arguments: str, extra: str = "", env: dict[str, str] | None = None) -> str:
        """Run a script that must succeed; return what it printed."""
        printed = self.run(script, *arguments, extra=extra, env=env)
        assert printed.endswith("[exit 0]"), printed
        return printed

    def command(self, script: str, *arguments: str, extra: str = "") -> list[str]:
        return scripts.command(self.folder, script, f"{self.overrides} {extra}", *arguments)

    def produce(self, version: Version) -> None:
        """Put a version into production."""
        self.registry.link(version, self.params.registered_model, ("production",), reason="a test")

    def predict(self, body: bytes, **headers: str) -> requests.Response:
        return requests.post(f"{self.url}/predict", data=body, headers=headers, timeout=60)

    def prediction_id(self, pixels: np.ndarray) -> str:
        """Send an image (s, s, 3); return the id of its prediction."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return str(self.predict(buffer.getvalue()).json()["prediction_id"])

    def samples(self, name: str, **labels: str) -> list[Sample]:
        """Return the samples in /metrics with a name and these labels."""
        families = text_string_to_metric_families(requests.get(f"{self.url}/metrics", timeout=60).text)
        samples = [sample for family in families for sample in family.samples]
        return [one for one in samples if one.name == name and labels.items() <= one.labels.items()]

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of those samples."""
        return sum(sample.value for sample in self.samples(name, **labels))

    def wait_until_served(self, label: str) -> None:
        """Wait for the server to answer with a model; every request on the way must be answered."""
        for _ in range(600):
            answer = requests.get(f"{self.url}/model", timeout=60)
            assert answer.status_code == 200
            if answer.json()["model"] == label:
                return
        raise AssertionError(f"{label} is not served")

    def label_on_the_page(self, truth: Mapping[str, str]) -> tuple[str, int]:
        """Run make label, give each image of its sample its label, and press Finish; return what it printed."""
        with subprocess.Popen(self.command("label"), cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            url = next(line.split()[-1] for line in process.stdout if "http://" in line)
            page, client = url.partition("/?")[0], requests.Session()
            client.get(url, timeout=30).raise_for_status()
            client.headers["Origin"] = page
            state = client.get(f"{page}/state", timeout=30).json()
            while state["image"]:
                row = {"prediction_id": state["image"], "label": truth[state["image"]]}
                state = client.post(f"{page}/label", json=row, timeout=30).json()
            client.post(f"{page}/finish", json={}, timeout=30).raise_for_status()
            printed = process.stdout.read()
        return printed, process.returncode


def make_server(folder: Path, extra: str = "") -> Server:
    """Return a profile with model-1 in production, not served yet."""
    server = of_store(folder, f"{SETTINGS} {extra}")
    server.produce(publish(server.registry, folder, 1))
    return server


def of_store(folder: Path, more: str) -> Server:
    """Return the profile demo with what is in a folder."""
    more = f"serve.port={free_port()} {more}"
    params = scripts.load(folder, more)
    return Server(params, Registry(params.store), folder, more)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve for the duration of the block."""
    try:
        printed = server.run("serve")
        assert "answers at" in printed, printed
        assert "waiting for the replicas to load the model" in printed or "nothing changed" in printed
        yield server
    finally:
        server.run("stop")
