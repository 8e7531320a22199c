"""HTTP in front of a replica: requests are read, checked and decoded one by one, and answered in JSON.

POST /predict   an image as the body, or many as multipart/form-data parts called `file`
GET  /          a page to try it      /healthz   ready?      /model   what answers      /metrics   for Prometheus
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from flywheel.data import images
from flywheel.serving.batching import Batches, Overloaded
from flywheel.serving.prometheus import CONTENT_TYPE, Metrics
from flywheel.serving.replica import Answer, Replica

log = logging.getLogger("flywheel.serving")
access_log = logging.getLogger("flywheel.access")

PAGE = Path(__file__).with_name("page.html")
INLINE_BYTES = 16_384  # decoded at once (0.1 ms for 32 x 32); what is larger may take long and goes to a thread


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    body_bytes: int
    parts: int


class App:
    """The routes of a replica."""

    def __init__(self, replica: Replica, batches: Batches[NDArray[np.uint8], Answer], metrics: Metrics, limits: Limits):
        self._replica, self._batches, self._metrics, self._limits = replica, batches, metrics, limits
        self._decoders = ThreadPoolExecutor(2, "decode")
        self._page = PAGE.read_text(encoding="utf-8")

    def build(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/predict", self._answered(self._predict), methods=["POST"]),
            Route("/", self._answered(self._show_page), methods=["GET"]),
            Route("/healthz", self._answered(self._health), methods=["GET"]),
            Route("/model", self._answered(self._describe), methods=["GET"]),
            Route("/metrics", self._answered(self._measure), methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: self._refuse})

    def _answered(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Give a handler what all share: a request id, errors as JSON, counters and the access log."""

        async def answer(request: Request) -> Response:
            started = time.monotonic()
            try:
                response = await handler(request)
            except HTTPException as error:
                response = _error(request, error.status_code, error.detail, error.headers)
            except Overloaded as error:
                response = _error(request, 503, str(error), {"Retry-After": str(error.retry_after_s)})
            except ClientDisconnect:
                response = _error(request, 499, "the client hung up")  # nobody reads it; nginx counts it so
            except Exception:
                log.exception("request %s failed", _id(request))
                response = _error(request, 500, "the server failed; its log has the reason")
            self._count(request, response.status_code, time.monotonic() - started)
            return response

        return answer

    async def _refuse(self, request: Request, error: Exception) -> Response:
        """Answer a wrong path or method, which reach no handler."""
        assert isinstance(error, HTTPException)
        reason = {
            404: f"no such path: {request.url.path}; POST an image to /predict",
            405: f"{request.method} is not for {request.url.path}; POST an image to /predict",
        }.get(error.status_code, error.detail)
        self._metrics.count_request("other", error.status_code)
        return _error(request, error.status_code, reason, error.headers)

    async def _predict(self, request: Request) -> Response:
        self._check_length(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await self._predict_parts(request)
        image = await self._decode(await self._body(request))
        (future,) = self._batches.submit([image])
        return JSONResponse({**self._result(await future), "request_id": _id(request)})

    async def _predict_parts(self, request: Request) -> Response:
        """Answer many images, each with its result or its error, in the order of the parts."""
        decoded: list[NDArray[np.uint8] | str] = []
        for data in await self._parts(request):
            try:
                decoded.append(await self._decode(data))
            except HTTPException as error:
                decoded.append(error.detail)
        good = [image for image in decoded if not isinstance(image, str)]
        answers = iter(await asyncio.gather(*self._batches.submit(good), return_exceptions=True)) if good else iter(())
        results = [{"error": image} if isinstance(image, str) else self._either(next(answers)) for image in decoded]
        return JSONResponse({"predictions": results, "request_id": _id(request)})

    def _either(self, answer: Answer | BaseException) -> dict[str, Any]:
        if isinstance(answer, BaseException):
            log.error("an image of a request with many failed: %s", answer)
            return {"error": "the model failed on this image; the server's log has the reason"}
        return self._result(answer)

    def _result(self, answer: Answer) -> dict[str, Any]:
        self._metrics.count_prediction(answer)
        values = [round(value, 6) for value in answer.probabilities.tolist()]
        best = int(answer.probabilities.argmax())
        names = answer.model.class_names
        return {
            "label": names[best],
            "class_id": best,
            "confidence": values[best],
            "probabilities": dict(zip(names, values, strict=True)),
            "model": answer.model.version.label,
        }

    def _check_length(self, request: Request) -> None:
        """Refuse a body that says it is too long, before it is read. Raises HTTPException."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> HTTPException:
        reason = f"the body is larger than {self._limits.body_bytes:,} bytes (serve.max_body_bytes)"
        return HTTPException(413, reason, {"Connection": "close"})

    async def _stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self._limits.body_bytes:
                raise self._too_large()
            yield chunk

    async def _body(self, request: Request) -> bytes:
        return b"".join([chunk async for chunk in self._stream(request)])

    async def _parts(self, request: Request) -> list[bytes]:
        """Return the parts called `file`. Raises HTTPException."""
        most = self._limits.parts
        parser = MultiPartParser(request.headers, self._stream(request), max_files=most, max_fields=most)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if "Too many" in error.message:
                raise HTTPException(413, f"more than {most} parts (serve.max_parts)") from None
            raise HTTPException(400, f"not multipart/form-data: {error.message}") from None
        except KeyError:
            raise HTTPException(400, "not multipart/form-data: no boundary") from None
        try:
            uploads = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
            if not uploads:
                raise HTTPException(400, "no part is a file called 'file' (curl -F file=@image.png)")
            return [await upload.read() for upload in uploads]
        finally:
            await form.close()

    async def _decode(self, data: bytes) -> NDArray[np.uint8]:
        """Return an image at the model's size. Raises HTTPException 400."""
        side = self._replica.model.image_size
        try:
            if len(data) <= INLINE_BYTES:
                return images.decode(data, side)
            return await asyncio.get_running_loop().run_in_executor(self._decoders, images.decode, data, side)
        except images.ImageError as error:
            raise HTTPException(400, f"not an image that can be read: {error}") from None

    async def _show_page(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ready", "model": self._replica.model.version.label})

    async def _describe(self, request: Request) -> Response:
        replica = self._replica
        trouble = {"swap_error": replica.swap_error, "swaps": replica.swaps, "failed_swaps": replica.failed_swaps}
        return JSONResponse({**replica.model.describe(), **trouble})

    async def _measure(self, request: Request) -> Response:
        return Response(self._metrics.text(self._replica, self._batches.waiting), media_type=CONTENT_TYPE)

    def _count(self, request: Request, status: int, seconds: float) -> None:
        path = request.url.path
        self._metrics.count_request(path, status, seconds if path == "/predict" and status == 200 else None)
        if access_log.isEnabledFor(logging.INFO):
            access_log.info(
                json.dumps(
                    {
                        "at": time.time(),
                        "request_id": _id(request),
                        "method": request.method,
                        "path": path,
                        "status": status,
                        "ms": round(seconds * 1000, 3),
                        "model": self._replica.model.version.label,
                    }
                )
            )


def _id(request: Request) -> str:
    """Return the request's id: the client's, else the one that Ray Serve gave it. Serve also answers with it."""
    return request.headers.get("x-request-id", "")


def _error(request: Request, status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": reason, "request_id": _id(request)}, status, headers)
