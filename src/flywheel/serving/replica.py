"""The model of a replica: load it, warm it up, run it in one thread, replace it when production moves."""

from __future__ import annotations

import ctypes
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flywheel.data.images import from_array
from flywheel.models import classifier, packing
from flywheel.models import device as devices
from flywheel.models.tracing import traced
from flywheel.registry import Registry, Version
from flywheel.serving import ServingError

if TYPE_CHECKING:
    from flywheel.models.classifier import Classifier

log = logging.getLogger("flywheel.serving")

# After this time a busy event loop must give the GIL to the model's thread. The time starts anew when the loop releases
# the GIL for a system call, which is over before the thread wakes up, so it is shorter than the time between two calls.
# Python's default is 5 ms, and Linux adds 0.05 ms to each wait (timer slack).
SWITCH_S = 0.00002
PR_SET_TIMERSLACK = 29  # prctl(2), in nanoseconds
RETRY_S = 30  # until a model that failed to load is tried again


@dataclass(frozen=True)
class Prediction:
    """The probabilities of an image, (classes,) float32, and the model that computed them."""

    probabilities: NDArray[np.float32]
    model: ServedModel


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded production model. `infer` takes (n, side, side, 3) uint8 and returns (n, classes) float32."""

    version: Version
    class_names: tuple[str, ...]
    image_size: int
    infer: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = field(repr=False)

    def describe(self) -> dict[str, Any]:
        """Return the body of GET /model."""
        metadata = self.version.metadata
        return {
            "model": self.version.label,
            "ref": self.version.ref,
            "classes": list(self.class_names),
            "image_size": self.image_size,
            "created": self.version.created,
            "inputs": {role: list(refs) for role, refs in self.version.inputs.items()},
            "recipe": metadata.get("recipe"),
            "metrics": metadata.get("metrics"),
        }


class Replica:
    """Hold the model that answers. `compute` must run in the single thread of `executor`."""

    def __init__(self, store: Path, registered_model: str, threads: int, cuda: bool, max_batch_size: int):
        self._registry, self._registered_model, self._store = Registry(store), registered_model, store
        self._max_batch_size = max_batch_size
        self._device = devices.pick(cuda)
        sys.setswitchinterval(SWITCH_S)
        self.executor = ThreadPoolExecutor(1, "model", initializer=_set_up_thread, initargs=(threads,))
        self.model = self._load(self._production())
        self.swaps = 0
        self.failed_swaps = 0
        self.swap_error: str | None = None
        self._failed: tuple[str, float] | None = None

    def compute(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Return the prediction of each image (side, side, 3) uint8. Raises ServingError for NaN or infinite output."""
        model = self.model
        side = model.image_size
        # A swap to a model of another image size may have happened since the image was decoded.
        fitting = [image if len(image) == side else from_array(image, side) for image in images]
        probabilities = model.infer(np.stack(fitting))
        if not np.isfinite(probabilities).all():
            raise ServingError(f"{model.version.label} gave no number")
        return [Prediction(row, model) for row in probabilities]

    def follow(self, poll_s: float) -> None:
        """Check the alias `production` every `poll_s` in a background thread."""
        threading.Thread(target=self._watch, args=(poll_s,), name="follow-production", daemon=True).start()

    def _watch(self, poll_s: float) -> None:
        while True:
            time.sleep(poll_s)
            try:
                self.check()
            except Exception:
                log.exception("cannot check which model is in production; %s keeps serving", self.model.version.label)

    def check(self) -> None:
        """Load the production model if it changed. If it cannot be loaded, the old one keeps serving."""
        ref = self._registry.aliases(self._registered_model).get("production")
        if ref is None or ref == self.model.version.ref:
            self.swap_error = None
            return
        if self._failed is not None and self._failed[0] == ref and time.monotonic() - self._failed[1] < RETRY_S:
            return
        started = time.monotonic()
        try:
            loaded = self._load(ref)
        except Exception as error:
            self.failed_swaps += 1
            self._failed = (ref, time.monotonic())
            self.swap_error = f"{ref} is in production but cannot be served: {error}"
            log.error("%s; %s keeps serving", self.swap_error, self.model.version.label)
            return
        before, self.model = self.model, loaded
        self.swaps += 1
        self._failed, self.swap_error = None, None
        seconds = time.monotonic() - started
        log.info("%s replaced %s, loaded in %.1f s", loaded.version.label, before.version.label, seconds)

    def _production(self) -> str:
        ref = self._registry.aliases(self._registered_model).get("production")
        if ref is None:
            where = f"{self._store} on {socket.gethostname()}"
            raise ServingError(
                f"{where} has no {self._registered_model}:production; the nodes of a cluster must share paths.store"
            )
        return ref

    def _load(self, ref: str) -> ServedModel:
        """Return a verified model, warmed up for every power of two up to the largest batch size."""
        version = self._registry.resolve(ref)
        loaded = classifier.load(self._registry.open(version), self._device)
        infer, size = fast(loaded), 1
        while True:
            # One job for each size in the thread of the model, so that the old model can answer requests in between.
            images = np.zeros((size, loaded.image_size, loaded.image_size, 3), dtype=np.uint8)
            probabilities = self.executor.submit(infer, images).result()
            if not np.isfinite(probabilities).all():
                raise ServingError(f"{version.label} gives no number for a black image")
            if size == self._max_batch_size:
                break
            size = min(2 * size, self._max_batch_size)
        return ServedModel(version, loaded.class_names, loaded.image_size, infer)


def _set_up_thread(threads: int) -> None:
    """Set what holds for the thread that calls it: the number of threads of torch, and precise waits."""
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


def fast(loaded: Classifier) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return a fast function that gives the same probabilities as the classifier, which it changes.

    Autocast casts the weights of convolutions and linear layers at every call, and oneDNN reorders them. This does
    both once, and on the CPU runs the network without Python (docs/log.md has the figures).
    """
    dtype = torch.bfloat16 if loaded.precision == "bfloat16" else torch.float32
    for module in loaded.network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):  # those that autocast casts; norms stay in float32
            module.to(dtype)
    network: Callable[[Tensor], Tensor] = loaded.network
    if packing.can_pack(loaded.device, dtype):
        image = torch.zeros((1, loaded.image_size, loaded.image_size, 3), dtype=torch.uint8)
        example = loaded.prepare(image).to(dtype)
        packing.pack(loaded.network, example)
        network = traced(loaded.network, example, (loaded.architecture, len(loaded.class_names), example.shape, dtype))

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(loaded.device, non_blocking=True)
            logits = network(loaded.prepare(batch).to(dtype)).float()
            probabilities: NDArray[np.float32] = torch.softmax(logits, dim=1).cpu().numpy()
            return probabilities

    return infer
