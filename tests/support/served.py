"""A real server for tests: a process of its own, Ray Serve, HAProxy, an untrained ResNet-18 in production."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import requests
from PIL import Image

from flywheel.models.classifier import Classifier
from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.registry import LocalRegistry, Registry, Version

ROOT = Path(__file__).parents[2]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SETTINGS = (
    "serve.max_batch_size=16 serve.max_queued_images=32 serve.max_body_bytes=200000 serve.max_parts=8 "
    "serve.poll_s=0.2 serve.access_log=true"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def png(seed: int = 0, size: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def publish(registry: Registry, place: Path, seed: int, image_size: int = 32) -> Version:
    """Publish an untrained model."""
    model = Classifier("standard", CLASSES, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), image_size, seed=seed)
    model.save(place / f"model-{seed}-{image_size}", {"precision": "auto", "seed": seed})
    return registry.publish(f"model-{seed}", "model", place / f"model-{seed}-{image_size}", metadata={}, inputs={})


@dataclass(frozen=True)
class Server:
    """A profile with a store of its own and the commands that serve it."""

    params: Params
    registry: Registry
    place: Path
    overrides: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.params.serve.port}"

    def run(self, script: str, *arguments: str, extra: str = "", env: dict[str, str] | None = None) -> str:
        """Run a script to its end; returns what it printed, errors included."""
        command = self.command(script, *arguments, extra=extra)
        done = subprocess.run(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        return f"{done.stdout}[exit {done.returncode}]"

    def command(self, script: str, *arguments: str, extra: str = "") -> list[str]:
        asked = ["--profile", "demo", "--set", f"{self.overrides} {extra}"]
        return [sys.executable, f"scripts/{script}.py", *asked, *arguments]

    def produce(self, version: Version) -> None:
        """Move production."""
        self.registry.link(version, self.params.registered_model, ("production",), reason="a test")

    def predict(self, body: bytes, **headers: str) -> requests.Response:
        return requests.post(f"{self.url}/predict", data=body, headers=headers, timeout=60)


def make_server(place: Path, extra: str = "") -> Server:
    """Return a profile that is ready to serve model-1; nothing is started."""
    overrides = (
        f"paths.store={place / 'store'} paths.reports={place / 'reports'} paths.cache={place / 'cache'} "
        f"serve.port={free_port()} {SETTINGS} {extra}"
    )
    params = params_file.load(ROOT / "params.yaml", "demo", overrides)
    registry = LocalRegistry(params.store)
    server = Server(params, registry, place, overrides)
    server.produce(publish(registry, place, 1))
    return server


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve, and stop at the end."""
    printed = server.run("serve")
    assert "answers at" in printed, printed
    try:
        yield server
    finally:
        server.run("stop")
