"""LitServe as `benchmarks/serving.py` compares with it; it runs in an environment that has the package litserve.

    python benchmarks/litserve_server.py litserve MODEL_DIRECTORY PORT

The same network in float32 and the same batches as `fastapi_servers.py batched`: up to 64 requests that arrive within
2 ms. The image comes as base64 in JSON, because LitServe takes no image as the body.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any, cast

import litserve
import torch
from PIL import Image
from torchvision import transforms

from flywheel.models import classifier


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Decode, classify and answer in LitServe's worker process."""

    def __init__(self, directory: Path, **options: Any):
        super().__init__(**options)
        self.directory = directory

    def setup(self, device: str) -> None:
        """Load the model."""
        self.model = classifier.load(self.directory, torch.device("cpu"), "float32")
        self.network = self.model.network.eval()
        self.prepare = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(self.model.mean, self.model.std)]
        )

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        """Return an image as the network takes it."""
        image = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        return cast(torch.Tensor, self.prepare(image))

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Return the images as one batch."""
        return torch.stack(inputs)

    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the probabilities, (n, classes)."""
        with torch.no_grad():
            return torch.softmax(self.network(batch), dim=1)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        """Return the probabilities of each image."""
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        """Return the answer."""
        best = int(output.argmax())
        return {"label": self.model.class_names[best], "class_id": best, "confidence": float(output[best])}


if __name__ == "__main__":
    api = Api(Path(sys.argv[2]), max_batch_size=64, batch_timeout=0.002, api_path="/predict")
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[3]), log_level="error", generate_client_file=False
    )
