"""The servers that `benchmarks/serving.py` compares with; each answers POST /predict with an image as the body.

    python benchmarks/fastapi_servers.py textbook MODEL_DIRECTORY PORT
    python benchmarks/fastapi_servers.py batched MODEL_DIRECTORY PORT

textbook  the original design: decode with PIL, torchvision's transforms, one image at a time, float32, one process
batched   the same with a queue: batches of up to 64 requests that arrive within 2 ms; the network runs in a thread
"""

from __future__ import annotations

import asyncio
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from torchvision import transforms

from flywheel.models import classifier

BATCH, WAIT_S = 64, 0.002


def build(kind: str, directory: Path) -> FastAPI:
    """Return the app `textbook` or `batched` for a saved model."""
    model = classifier.load(directory, torch.device("cpu"), "float32")
    network = model.network.eval()
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(model.mean, model.std)])
    app, executor = FastAPI(), ThreadPoolExecutor(1)
    queue: asyncio.Queue[tuple[torch.Tensor, asyncio.Future[torch.Tensor]]] = asyncio.Queue()
    workers: list[asyncio.Task[None]] = []

    def compute(images: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = network(torch.stack(images))
            return logits

    async def work() -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await queue.get()]
            until = loop.time() + WAIT_S
            while len(batch) < BATCH and (left := until - loop.time()) > 0:
                try:
                    batch.append(await asyncio.wait_for(queue.get(), left))
                except TimeoutError:
                    break
            logits = await loop.run_in_executor(executor, compute, [image for image, _ in batch])
            for (_, future), row in zip(batch, logits, strict=True):
                future.set_result(row)

    async def enqueue(image: torch.Tensor) -> torch.Tensor:
        if not workers:
            workers.append(asyncio.create_task(work()))
        future: asyncio.Future[torch.Tensor] = asyncio.get_running_loop().create_future()
        await queue.put((image, future))
        return await future

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        image = prepare(Image.open(io.BytesIO(await request.body())).convert("RGB"))
        probabilities = torch.softmax(compute([image])[0] if kind == "textbook" else await enqueue(image), dim=0)
        best = int(probabilities.argmax())
        return {"label": model.class_names[best], "class_id": best, "confidence": float(probabilities[best])}

    return app


if __name__ == "__main__":
    uvicorn.run(build(sys.argv[1], Path(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[3]), log_level="error")
