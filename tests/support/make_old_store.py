"""Make tests/fixtures/old_store.tar.xz: a store written by the code before inputs had roles (commit ec2013f).

    cd <checkout of ec2013f> && PYTHONPATH=src python <this checkout>/tests/support/make_old_store.py <archive>

Runs that checkout's own scripts, offline: data, sweep, evaluate, serve, simulate, retrain, and simulate again, so that
the second feedback version holds failures that no model was trained on. Packs the folders `store` and `reports`.
Three things keep the archive small: tiny images, tiny plots, and weights rounded to a few values when a model is
published. Logs, locks and the SDK's folders of offline runs stay out: they name paths of the machine, and no command
needs them.
"""

from __future__ import annotations

import importlib
import lzma
import os
import runpy
import socket
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import requests

# What the store was made with, besides the profile `demo`: what reads it needs the same.
OVERRIDES = (
    "data.image_size=8 recipe.translate=1 sweep.trials=2 sweep.epochs=2 sweep.space.architecture=compact "
    "sweep.space.optimizer=muon gate.floor_accuracy=0 simulate.table_rows=4 retrain.epochs=2 tracking.wandb=offline"
)
LEFT_OUT = ("logs", "locks", "scratch", "tmp", "writer.lock", "writer.pid")
START_TIMEOUT_S = 60  # until the server answers with the retrained model


def main() -> None:
    """Run the stages and pack what they wrote."""
    archive = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        os.environ.update(HOME=directory, LOGNAME="flywheel", OMP_NUM_THREADS="1")  # LOGNAME: who moved an alias
        importlib.import_module("flywheel.pictures").DPI = 30
        _round_published_weights()
        paths = " ".join(f"paths.{name}={folder / name}" for name in ("store", "reports", "cache"))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        overrides = f"{paths} serve.port={port} {OVERRIDES}"
        try:
            for script in ("data", "sweep", "evaluate", "serve", "simulate", "retrain"):
                _run(script, overrides)
            _wait_for_model(f"http://127.0.0.1:{port}/model", "retrained-model:v0")
            _run("simulate", overrides)
        finally:
            _run("stop", overrides)
        _pack(folder, archive)
    print(f"{archive}: {archive.stat().st_size:,} bytes; made with: {OVERRIDES}")


def _run(script: str, overrides: str) -> None:
    sys.argv = [f"scripts/{script}.py", "--profile", "demo", "--set", overrides]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _wait_for_model(url: str, label: str) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while requests.get(url, timeout=10).json()["model"] != label:
        if time.monotonic() > until:
            raise TimeoutError(f"{url} does not name {label}; was it promoted?")
        time.sleep(0.5)


def _round_published_weights() -> None:
    """Have the registry round a model's weights to multiples of about their standard deviation, a power of two."""
    import torch
    from safetensors.torch import load_file, save_file

    from flywheel.registry import Registry

    publish = Registry.publish

    def rounded(self: Registry, name: str, type: str, contents: Any, **kwargs: Any) -> Any:
        if type == "model":
            path = contents / "model.safetensors"
            weights = load_file(path)
            for key, weight in weights.items():
                if weight.ndim > 1:
                    step = 2.0 ** torch.log2(weight.std()).round()
                    weights[key] = ((weight / step).round() * step).contiguous()
            save_file(weights, path)
        return publish(self, name, type, contents, **kwargs)

    Registry.publish = rounded


def _pack(folder: Path, archive: Path) -> None:
    """Write store and reports; a blob and its names in versions are one file with hard links."""

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(entry.name).parts
        if parts[-1] in LEFT_OUT or (parts[:3] == ("store", "demo", "wandb") and parts[3:4] not in ((), ("runs",))):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    # Weights are words of four bytes: lp and pb 2 have LZMA look at the position in the word.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2}]
    with lzma.open(archive, "w", filters=filters) as out, tarfile.open(fileobj=out, mode="w") as packed:
        for name in ("store", "reports"):
            packed.add(folder / name, name, filter=kept)


if __name__ == "__main__":
    main()
