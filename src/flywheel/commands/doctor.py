"""Check the environment in seconds and name a fix for each problem. Changes nothing."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from flywheel import FlywheelError
from flywheel.files import human_size
from flywheel.machine import limits, ray_address
from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.tracking import run_files
from flywheel.tracking.connection import choose_mode

PROBE_TIMEOUT_S = 1
LOW_DISK_BYTES = 5_000_000_000
DEPENDENCIES = ("numpy", "torch", "torchvision", "ray", "wandb", "optuna")
REINSTALL = ".venv/bin/python -m pip install --force-reinstall -c requirements.lock torch"


@dataclass(frozen=True)
class Finding:
    """The result of one check; `fix` is empty if there is no problem."""

    name: str
    text: str
    fix: str = ""


def examine(params: Params, registry: Registry) -> Iterator[Finding]:
    """Yield a finding for each thing that a run depends on."""
    with ThreadPoolExecutor() as pool:  # the network answers while torch is imported
        ray, wandb = pool.submit(_ray), pool.submit(_wandb, params)
        yield Finding("python", f"{platform.python_version()} at {sys.prefix}")
        before = [_packages(), *_machine()]
        yield from before
        yield _device("mend the problems above" if any(finding.fix for finding in before) else REINSTALL)
        yield from _disk(params)
        yield _store(params, registry)
        yield _port(params)
        yield _traffic(params)
        yield ray.result()
        yield wandb.result()


def _port(params: Params) -> Finding:
    from flywheel.pipeline import server_record
    from flywheel.serving import settings

    host, number, served = params.serve.host, params.serve.port, server_record.read(params)
    if served and urlsplit(served.url).port == number and (served.pid is None or psutil.pid_exists(served.pid)):
        where = f"on the cluster at {served.address}" if served.pid is None else f"pid {served.pid}"
        if served.answers():
            return Finding("port", f"{number}: this profile's server ({where})")
        return Finding("port", f"{number}: this profile's server ({where}) does not answer", "make serve replaces it")
    if problem := settings.port_problem(params):
        return Finding(
            "port", f"{host}:{number} cannot be used ({problem})",
            "set serve.port (or serve.host) to another, or end the process that uses it",
        )  # fmt: skip
    return Finding("port", f"{number} is free")


def _traffic(params: Params) -> Finding:
    from flywheel.commands import status

    kept, text = status.traffic(params)
    disk, least = shutil.disk_usage(_existing(params.store)), params.traffic.min_free_fraction
    fix = ""
    if params.traffic.keep_images and disk.free < least * disk.total:
        fix = f"free space: no image is kept while less than traffic.min_free_fraction={least:g} of the disk is free"
    elif "not recorded" in text:
        fix = "make logs shows why"
    return Finding("traffic", f"{kept}, {text}", fix)


def _packages() -> Finding:
    found, missing, foreign = [], [], []
    for name in DEPENDENCIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(f"no {name}")
        if (spec := util.find_spec(name)) and spec.origin and not Path(spec.origin).is_relative_to(sys.prefix):
            foreign.append(f"{name} is imported from {Path(spec.origin).parent}")
    fix = "rm .venv/ready-*; make setup" if missing else "unset PYTHONPATH" if foreign else ""
    return Finding("packages", ", ".join([*found, *missing, *foreign]), fix)


def _device(fix: str) -> Finding:
    try:
        import torch

        from flywheel.models import device as devices
    except Exception as error:  # whatever a broken package raises
        return Finding("device", f"torch cannot be imported ({error})", fix)
    device = devices.pick()
    precision = "bfloat16" if devices.has_bfloat16(device) else "float32"
    cpus = f"{os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads"
    if device.type != "cuda":
        return Finding("device", f"{device.type}, {cpus}, trains in {precision}")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = ", ".join(f"{gpu.name} ({human_size(gpu.total_memory)})" for gpu in gpus)
    return Finding("device", f"{names}, {cpus}, trains in {precision}")


def _machine() -> Iterator[Finding]:
    """Yield what a local Ray lacks here; sweep and serve say the same before they start it."""
    lacks = [Finding("machine", lack.text, lack.fix) for lack in limits.lacks()]
    memory = psutil.virtual_memory()
    text = f"{human_size(memory.available)} of {human_size(memory.total)} memory available, Ray can run"
    yield from lacks or [Finding("machine", text)]


def _disk(params: Params) -> Iterator[Finding]:
    for name, path in (("store", params.store), ("cache", params.cache)):
        existing = _existing(path)
        free = shutil.disk_usage(existing).free
        writable = os.access(existing, os.W_OK)
        fix = "" if writable else f"make {existing} writable or set paths.{name}"
        if writable and free < LOW_DISK_BYTES:
            fix = f"free space, or set paths.{name} to another disk"
        text = f"{path}: {human_size(free)} free{'' if writable else ', not writable'}"
        yield Finding(f"{name} disk", text, fix)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _store(params: Params, registry: Registry) -> Finding:
    damaged = registry.damaged()
    if damaged:
        return Finding("registry", "; ".join(damaged), "make artifacts ARGS=--verify checks the others")
    versions = sum(len(registry.versions(name)) for name in registry.collections())
    return Finding("registry", f"{versions} versions in {params.store_paths.registry}")


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        other = _running_ray()
        beside = f"; another runs at {other} (RAY_ADDRESS={other} would use it)" if other else "; none runs now"
        return Finding("ray", f"a sweep starts and stops its own{beside}")
    try:
        ray_address.check(address)
    except FlywheelError as error:
        text, _, fix = str(error).partition("; ")
        return Finding("ray", text, fix)
    return Finding("ray", f"a sweep runs on the cluster at {address}")


def _running_ray() -> str:
    """Return the address of the Ray that `ray start` runs on this machine, found as Ray finds it, or an empty text."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    with contextlib.suppress(OSError, ValueError):
        address = (folder / "ray" / "ray_current_cluster").read_text().strip()
        host, _, number = address.rpartition(":")
        with socket.create_connection((host, int(number)), timeout=PROBE_TIMEOUT_S):
            return address
    return ""


def _wandb(params: Params) -> Finding:
    mode = choose_mode(params.tracking.wandb)
    waiting = sum(not record.confirmed for record in run_files.records(params.store))
    text = f"{mode.name} ({mode.why}){f', {waiting} runs for make sync' if waiting else ''}"
    if params.tracking.wandb == "online" != mode.name:  # in a new CI runner nothing else would fail
        key = "check the key (.venv/bin/wandb login, or WANDB_API_KEY), the network and WANDB_BASE_URL"
        asked = mode.why.startswith(("WANDB_MODE", "WANDB_DISABLED", "mode in "))
        return Finding("wandb", text, f"{'undo that' if asked else key}, or set tracking.wandb=auto")
    return Finding("wandb", text)
