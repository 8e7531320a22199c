"""The model in a replica: loaded, warmed, computing in one thread, and swapped when production moves."""

from __future__ import annotations

import logging
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
from torch import nn

from flywheel import FlywheelError
from flywheel.data.images import from_array
from flywheel.models import classifier
from flywheel.models import device as devices
from flywheel.registry import LocalRegistry, Version
from flywheel.serving import ServingError, packing

if TYPE_CHECKING:
    from flywheel.models.classifier import Classifier

log = logging.getLogger("flywheel.serving")

SWITCH_S = 0.0002  # a batch asks for Python's lock some 50 times; with the default of 5 ms a busy loop keeps it waiting
RETRY_S = 30  # a model that failed to load is tried again, in case the trouble was passing


@dataclass(frozen=True)
class Answer:
    """What the model says of an image: probabilities (classes,) float32, and which model it was."""

    probabilities: NDArray[np.float32]
    model: ServedModel


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A production model ready to answer. `infer` takes (n, s, s, 3) uint8 and returns (n, classes) float32."""

    version: Version
    class_names: tuple[str, ...]
    image_size: int
    infer: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = field(repr=False)

    def describe(self) -> dict[str, Any]:
        """Return what GET /model tells of it."""
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
    """Holds the model that answers. `compute` runs in the thread of `executor`, and only there."""

    def __init__(self, store: Path, registered_model: str, threads: int, cuda: bool, max_batch_size: int):
        self._registry, self._registered_model = LocalRegistry(store), registered_model
        self._max_batch_size = max_batch_size
        self._device = devices.pick(cuda)
        sys.setswitchinterval(SWITCH_S)
        # The number of threads is a property of the thread that asks for it: torch's own, not the process's.
        self.executor = ThreadPoolExecutor(1, "model", initializer=torch.set_num_threads, initargs=(threads,))
        self.model = self._load(self._wanted())
        self.swaps = 0
        self.failed_swaps = 0
        self.swap_error: str | None = None
        self._failed: tuple[str, float] | None = None

    def compute(self, images: Sequence[NDArray[np.uint8]]) -> list[Answer]:
        """Return an answer for each image (side, side, 3) uint8. Raises ServingError when the model gives no number."""
        model = self.model
        side = model.image_size
        # Decoded for the model before, if a swap to one of another size came in between.
        fitting = [image if len(image) == side else from_array(image, side) for image in images]
        probabilities = model.infer(np.stack(fitting))
        if not np.isfinite(probabilities).all():
            raise ServingError(f"{model.version.label} gave no number")
        return [Answer(row, model) for row in probabilities]

    def follow(self, poll_s: float) -> None:
        """Watch `production` from a thread of its own, for as long as the process lives."""
        threading.Thread(target=self._watch, args=(poll_s,), name="follow-production", daemon=True).start()

    def _watch(self, poll_s: float) -> None:
        while True:
            time.sleep(poll_s)
            try:
                self.check()
            except Exception:
                log.exception("following production failed; the model that serves goes on")

    def check(self) -> None:
        """Swap to the production model if it is another; one that cannot be loaded leaves the old one serving."""
        ref = self._registry.aliases(self._registered_model).get("production")
        if ref is None or ref == self.model.version.ref:
            self.swap_error = None
            return
        if self._failed is not None and self._failed[0] == ref and time.monotonic() - self._failed[1] < RETRY_S:
            return
        started = time.monotonic()
        try:
            loaded = self._load(ref)
        except (FlywheelError, OSError, RuntimeError, MemoryError) as error:
            self.failed_swaps += 1
            self._failed = (ref, time.monotonic())
            self.swap_error = f"{ref} is in production but cannot be served: {error}"
            log.error("%s; %s goes on serving", self.swap_error, self.model.version.label)
            return
        before, self.model = self.model, loaded
        self.swaps += 1
        self._failed, self.swap_error = None, None
        seconds = time.monotonic() - started
        log.info("%s replaced %s, loaded in %.1f s", loaded.version.label, before.version.label, seconds)

    def _wanted(self) -> str:
        ref = self._registry.aliases(self._registered_model).get("production")
        if ref is None:
            raise ServingError(f"{self._registered_model} has no production model; run make data sweep evaluate")
        return ref

    def _load(self, ref: str) -> ServedModel:
        """Return a model, verified, made fast and warmed for every power of two up to the largest batch."""
        version = self._registry.resolve(ref)
        loaded = classifier.load(self._registry.open(version), self._device)
        infer, size = fast(loaded), 1
        while True:
            # One job each, in the thread that computes: requests to the model that still serves go in between.
            images = np.zeros((size, loaded.image_size, loaded.image_size, 3), dtype=np.uint8)
            answers = self.executor.submit(infer, images).result()
            if not np.isfinite(answers).all():
                raise ServingError(f"{version.label} gives no number for a black image")
            if size == self._max_batch_size:
                break
            size = min(2 * size, self._max_batch_size)
        return ServedModel(version, loaded.class_names, loaded.image_size, infer)


def fast(loaded: Classifier) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return the classifier, which is changed, as a function of arrays: the same numbers, sooner.

    Autocast casts the weights of convolutions and linear layers at every call, and oneDNN reorders them; here both are
    done once (figures: docs/log.md, where also stands why models are neither traced nor folded).
    """
    dtype = torch.bfloat16 if loaded.precision == "bfloat16" else torch.float32
    for module in loaded.network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):  # what autocast casts; norms stay as they are
            module.to(dtype)
    if packing.can_pack(loaded.device, dtype):
        image = torch.zeros((1, loaded.image_size, loaded.image_size, 3), dtype=torch.uint8)
        packing.pack(loaded.network, loaded.prepare(image).to(dtype))

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(loaded.device, non_blocking=True)
            logits = loaded.network(loaded.prepare(batch).to(dtype)).float()
            probabilities: NDArray[np.float32] = torch.softmax(logits, dim=1).cpu().numpy()
            return probabilities

    return infer
