"""A network with its preprocessing and class names: uint8 images in, probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from flywheel import files
from flywheel.data.dataset import Images
from flywheel.models import ModelError, transfer
from flywheel.models import device as devices
from flywheel.models.architectures import architecture

FORMAT = 1
PREDICT_BATCH = 256  # images, and fewer large ones: activations of 256 images of 224 pixels need more than 3 GB
PREDICT_PIXELS = 256 * 64**2


class Classifier(nn.Module):
    """A network with its preprocessing. It trains and predicts in `precision` (float32 or bfloat16)."""

    def __init__(
        self,
        architecture_name: str,
        class_names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        precision: str = "auto",
        seed: int = 0,
    ):
        super().__init__()
        form = architecture(architecture_name)
        self.architecture = architecture_name
        self.class_names = tuple(class_names)
        self.image_size = image_size
        self.input_size = form.input_size
        self.precision = precision
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = form.build(len(self.class_names))
        self.network.to(memory_format=torch.channels_last)
        self.mean, self.std = tuple(mean), tuple(std)
        scale = 1 / (255 * torch.tensor(self.std, dtype=torch.float64))
        shift = -torch.tensor(self.mean, dtype=torch.float64) / torch.tensor(self.std, dtype=torch.float64)
        self.register_buffer("scale", scale.float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1), persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.scale.device

    def move_to(self, device: torch.device) -> Classifier:
        """Move to a device and resolve the precision `auto` for it. Returns self."""
        self.precision = devices.resolve_precision(self.precision, device)
        return self.to(device)

    def prepare(self, images: Tensor) -> Tensor:
        """Return images (n, h, w, 3) uint8 as the network's input (n, 3, s, s) float32: normalised and resized."""
        x = images.permute(0, 3, 1, 2).float()  # already channels_last
        x = torch.addcmul(self.shift, x, self.scale)
        if self.input_size is not None and x.shape[-1] != self.input_size:
            side = (self.input_size, self.input_size)
            x = functional.interpolate(x, side, mode="bilinear", align_corners=False)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) float32 of images (n, h, w, 3) uint8 on the classifier's device."""
        x = self.prepare(images)
        with devices.autocast(self.device, self.precision):
            logits: Tensor = self.network(x)
        return logits.float()

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return probabilities (n, classes) float32 of images (n, h, w, 3) uint8 on the classifier's device."""
        return functional.softmax(self(images), dim=1)

    def predict(self, images: Images | Tensor) -> NDArray[np.float32]:
        """Return probabilities (n, classes) float32 of any number of images (n, h, w, 3) uint8, in evaluation mode."""
        was_training = self.training
        self.eval()
        size = max(1, min(PREDICT_BATCH, PREDICT_PIXELS // (images.shape[1] * images.shape[2])))
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        # Small tensors that are kept from batch to batch would keep the heap from reusing the memory of large ones.
        probabilities = torch.empty(len(images), len(self.class_names), device=self.device)
        for part, batch in zip(parts, transfer.batches(images, parts, self.device), strict=True):
            probabilities[part] = self.probabilities(batch)
        self.train(was_training)
        return probabilities.cpu().numpy()

    def contents(self, recipe: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the files of a saved classifier: the weights, and a JSON file with everything else and the recipe."""
        weights = {name: tensor.contiguous().cpu() for name, tensor in self.network.state_dict().items()}
        description = {
            "format": FORMAT,
            "architecture": self.architecture,
            "class_names": list(self.class_names),
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "recipe": dict(recipe),
        }
        return {"model.safetensors": save(weights), "model.json": files.json_text(description).encode()}

    def save(self, directory: Path, recipe: Mapping[str, Any]) -> None:
        """Write model.safetensors (weights) and model.json (everything else, and the recipe) into a directory."""
        for name, content in self.contents(recipe).items():
            with files.atomic(directory / name) as temporary:
                temporary.write_bytes(content)


def load(directory: Path, device: torch.device | None = None, precision: str | None = None) -> Classifier:
    """Return the classifier saved in a directory, on a device and in evaluation mode. Raises ModelError.

    The precision defaults to that of its recipe, in which it was trained and validated.
    """
    try:
        description = files.read_json(directory / "model.json")
        if description["format"] != FORMAT:
            raise ModelError(f"{directory} is a model of format {description['format']}; this code reads {FORMAT}")
        classifier = Classifier(
            description["architecture"],
            description["class_names"],
            description["mean"],
            description["std"],
            description["image_size"],
            precision or description["recipe"].get("precision", "auto"),
        )
        classifier.network.load_state_dict(load_file(directory / "model.safetensors"))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{directory} is not a model that this code loads ({reason}); if its architecture changed, run make sweep"
        ) from None
    return classifier.move_to(device or devices.pick()).eval()
