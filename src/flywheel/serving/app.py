"""The HTTP interface of a replica: read, check and decode requests, answer in JSON.

POST /predict   an image as the body, or many as multipart/form-data parts called `file`
     /feedback  labels for answered images: a JSON array of up to 1,000 rows {"prediction_id": …, "label": …, …}
GET  /          a page to try it
     /healthz   200 when ready
     /model     the model that answers
     /metrics   for Prometheus
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from flywheel.data import images
from flywheel.params import Params
from flywheel.serving.batching import Overloaded, RequestBatcher
from flywheel.serving.prometheus import CONTENT_TYPE, Metrics
from flywheel.serving.replica import Prediction, Replica
from flywheel.traffic import keys, records
from flywheel.traffic.capture import Answered, Recorder
from flywheel.traffic.labels import LabelLog

log = logging.getLogger("flywheel.serving")
access_log = logging.getLogger("flywheel.access")

PAGE = Path(__file__).with_name("page.html")
TEXTS = (b"{", b"[", b'"', b"data:image", b"iVBORw0KGg", b"/9j/")  # JSON; base64 of a PNG and of a JPEG
MAX_ROWS = 1_000  # of a request with labels
# Images up to here are decoded on the event loop (0.02 to 0.1 ms for 32 x 32, at worst 13 ms), others in a thread: a
# few kilobytes can hold 64 million pixels, which take a second.
INLINE_BYTES, INLINE_PIXELS = 16_384, 250_000


class _Cors(CORSMiddleware):
    """CORS for everything but labels: no page of another origin may send those."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.app if scope.get("path") == "/feedback" else super().__call__)(scope, receive, send)


class App:
    """The routes of a replica, an ASGI application. `token` is asked of those who send labels."""

    def __init__(self, params: Params, name: str, replica: Replica, token: str):
        settings, paths, kept = params.serve, params.store_paths, params.traffic
        self._settings, self._replica, self._token = settings, replica, token.encode()
        self._metrics = Metrics(name, paths.monitor_metrics)
        self._batcher = RequestBatcher(
            replica.compute,
            replica.executor,
            settings.max_batch_size,
            settings.max_queued_images,
            self._metrics.count_batch,
        )
        self._salt = keys.salt(paths)  # hides the names of groups
        self._recorder = Recorder(paths, kept, name)
        self._labels = LabelLog(paths, name, lambda: replica.model.class_names, kept.max_age_days)
        self._decoders = ThreadPoolExecutor(2, "decode")
        self._labels_writer = ThreadPoolExecutor(1, "labels")
        self._page = PAGE.read_text(encoding="utf-8")
        self.in_flight = 0  # requests
        self._routes: dict[str, tuple[str, Callable[[Request], Awaitable[Response]]]] = {
            "/predict": ("POST", self._predict),
            "/feedback": ("POST", self._take_labels),
            "/": ("GET", self._show_page),
            "/healthz": ("GET", self._health),
            "/model": ("GET", self._describe),
            "/metrics": ("GET", self._measure),
        }
        self._app: ASGIApp = self._respond
        if settings.cors_origins:
            self._app = _Cors(
                self._respond, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"],
                expose_headers=["X-Request-Id", "Retry-After"],
            )  # fmt: skip

    def close(self) -> None:
        """Write what is queued."""
        self._recorder.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Other messages of ASGI, such as Serve's announcement of its start, need no answer."""
        if scope["type"] == "http":
            self.in_flight += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self.in_flight -= 1

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, turn errors into JSON, count the request and write the access log."""
        started, request = time.monotonic(), Request(scope, receive)
        path, method = scope["path"], scope["method"]
        wanted, handler = self._routes.get(path, ("", None))
        if handler is None:
            response = _error(request, 404, f"no such path: {path}; POST an image to /predict")
        elif method != wanted and (method, wanted) != ("HEAD", "GET"):
            reason = f"{method} is not for {path}; POST an image to /predict"
            response = _error(request, 405, reason, {"Allow": wanted})
        else:
            response = await self._answer(request, handler)
        counted = path if handler is not None and response.status_code != 405 else "other"
        self._count(request, counted, response.status_code, time.monotonic() - started)
        await response(scope, receive, send)

    async def _answer(self, request: Request, handler: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            return await handler(request)
        except HTTPException as error:
            return _error(request, error.status_code, error.detail, error.headers)
        except Overloaded as error:
            return _error(request, 503, str(error), {"Retry-After": str(error.retry_after_s)})
        except ClientDisconnect:
            return _error(request, 499, "the client hung up")  # nginx's code; only metrics and log show it
        except Exception:
            log.exception("request %s failed", _id(request))
            return _error(request, 500, "the server failed; its log has the reason")

    async def _predict(self, request: Request) -> Response:
        self._check_encoding(request)
        self._check_length(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await self._predict_parts(request)
        image = await self._decode(await self._body(request))
        started = time.monotonic()
        (future,) = self._batcher.submit([image])
        return JSONResponse({**self._result(await future, image, request, started), "request_id": _id(request)})

    async def _predict_parts(self, request: Request) -> Response:
        """Answer with a result or an error for each part, in their order."""
        decoded: list[NDArray[np.uint8] | str] = []
        for data in await self._parts(request):
            try:
                decoded.append(await self._decode(data))
            except HTTPException as error:
                decoded.append(error.detail)
        good = [image for image in decoded if not isinstance(image, str)]
        started = time.monotonic()
        predictions = iter(await asyncio.gather(*self._batcher.submit(good), return_exceptions=True))
        results: list[dict[str, Any]] = []
        for image in decoded:
            if isinstance(image, str):
                results.append({"error": image})
            elif isinstance(prediction := next(predictions), BaseException):
                log.error("an image of a request with many failed: %s", prediction)
                results.append({"error": "the model failed on this image; the server's log has the reason"})
            else:
                results.append(self._result(prediction, image, request, started))
        return JSONResponse({"predictions": results, "request_id": _id(request)})

    def _result(
        self, prediction: Prediction, image: NDArray[np.uint8], request: Request, started: float
    ) -> dict[str, Any]:
        """Return the answer for an image, and record it."""
        exact = prediction.probabilities.tolist()
        values, best = [round(value, 6) for value in exact], exact.index(max(exact))
        names = prediction.model.class_names
        self._metrics.count_prediction(names[best], values[best])
        prediction_id = records.new_id()
        group = request.query_params.get("group") if request.scope["query_string"] else None
        self._recorder.add(
            Answered(
                prediction_id,
                image,
                keys.hash_group(group, self._salt) if group else None,
                prediction.model.version.ref,
                names[best],
                values,
                time.monotonic() - started,
            )
        )
        return {
            "prediction_id": prediction_id,
            "label": names[best],
            "class_id": best,
            "confidence": values[best],
            "probabilities": dict(zip(names, values, strict=True)),
            "model": prediction.model.version.label,
        }

    async def _take_labels(self, request: Request) -> Response:
        """Answer with a status for each row; a label is on disk when its row is answered.

        The token is always asked for, also on this machine: behind a proxy every client looks local.
        """
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            reason = "labels need the header 'Authorization: Bearer <token>'; the token is in store/<profile>/token"
            raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})
        try:
            rows = json.loads(await self._body(request))
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"not JSON: {error}") from None
        if not isinstance(rows, list):
            raise HTTPException(400, 'not an array of rows such as [{"prediction_id": "…", "label": "cat"}]')
        if len(rows) > MAX_ROWS:
            raise HTTPException(413, f"{len(rows):,} rows; at most {MAX_ROWS:,} are taken in a request")
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._labels_writer, self._labels.add, rows)
        except OSError as error:
            log.error("labels cannot be stored: %s", error)
            reason = "the server cannot store labels now; send them again"
            raise HTTPException(503, reason, {"Retry-After": "5"}) from None
        self._metrics.count_labels(answers)
        results = [
            {"prediction_id": one.prediction_id, "status": one.status} | ({"reason": one.reason} if one.reason else {})
            for one in answers
        ]
        counts = Counter(one.status for one in answers)
        return JSONResponse({"results": results, "counts": counts, "request_id": _id(request)})

    def _check_encoding(self, request: Request) -> None:
        """Refuse a compressed body. Raises HTTPException."""
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            reason = f"Content-Encoding: {encoding} is not supported; send the image itself, it is compressed already"
            raise HTTPException(415, reason, {"Accept-Encoding": "identity", "Connection": "close"})

    def _check_length(self, request: Request) -> None:
        """Refuse a body whose Content-Length is too large before reading it. Raises HTTPException."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> HTTPException:
        reason = f"the body is larger than {self._settings.max_body_bytes:,} bytes (serve.max_body_bytes)"
        return HTTPException(413, reason, {"Connection": "close"})

    async def _body(self, request: Request) -> bytes:
        """Return the whole body. Raises HTTPException if it is too large or does not arrive in time."""
        size, chunks = 0, []
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self._settings.max_body_bytes:
                        raise self._too_large()
                    chunks.append(chunk)
        except TimeoutError:
            reason = f"the body did not arrive within {self._settings.request_timeout_s:g} s (serve.request_timeout_s)"
            raise HTTPException(408, reason, {"Connection": "close"}) from None
        return b"".join(chunks)

    async def _parts(self, request: Request) -> list[bytes]:
        """Return the parts called `file`. Raises HTTPException."""
        limit, body = self._settings.max_parts, await self._body(request)

        async def stream() -> AsyncGenerator[bytes, None]:
            yield body

        parser = MultiPartParser(request.headers, stream(), max_files=limit, max_fields=limit)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if "Too many" in error.message:
                raise HTTPException(413, f"more than {limit} parts (serve.max_parts)") from None
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
        """Return the image, resized to the model's input. Raises HTTPException 400."""
        side = self._replica.model.image_size
        try:
            if len(data) <= INLINE_BYTES:
                with contextlib.suppress(images.SlowToDecode):
                    return images.decode(data, side, INLINE_PIXELS)
            return await asyncio.get_running_loop().run_in_executor(self._decoders, images.decode, data, side)
        except images.ImageError as error:
            if data[:64].lstrip().startswith(TEXTS):
                reason = "JSON or base64 is not supported; send the image itself (curl --data-binary @image.png)"
                raise HTTPException(415, reason) from None
            raise HTTPException(400, f"not an image that can be read: {error}") from None

    async def _show_page(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ready", "model": self._replica.model.version.label})

    async def _describe(self, request: Request) -> Response:
        replica = self._replica
        swaps = {"swap_error": replica.swap_error, "swaps": replica.swaps, "failed_swaps": replica.failed_swaps}
        return JSONResponse({**replica.model.describe(), **swaps})

    async def _measure(self, request: Request) -> Response:
        return Response(
            self._metrics.text(self._replica, self._batcher.waiting, self._recorder), media_type=CONTENT_TYPE
        )

    def _count(self, request: Request, path: str, status: int, seconds: float) -> None:
        self._metrics.count_request(path, status, seconds if path == "/predict" and status == 200 else None)
        if access_log.isEnabledFor(logging.INFO):
            access_log.info(
                json.dumps(
                    {
                        "at": time.time(),
                        "request_id": _id(request),
                        "method": request.method,
                        "path": request.scope["path"],
                        "status": status,
                        "ms": round(seconds * 1000, 3),
                        "model": self._replica.model.version.label,
                    }
                )
            )


def _id(request: Request) -> str:
    """Return the request id: the client's, otherwise that of the proxy, which also sends it as a header."""
    return request.headers.get("x-request-id", "")


def _error(request: Request, status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": reason, "request_id": _id(request)}, status, headers)
