"""The page of `make label`: one image at a time, the classes with their keys, undo. Its server listens on loopback.

Only who knows the one-time token of the URL gets a cookie, and only a page of this server may send labels.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import os
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from flywheel.data.dataset import Dataset
from flywheel.params import StorePaths
from flywheel.traffic import records, sampling
from flywheel.traffic.labels import UNCONFIRMED, LabelLog
from flywheel.traffic.sampling import Sample

PAGE = Path(__file__).with_name("label.html")
EXAMPLES = 5  # training images beside each class
CLAIM_S = 600  # an image shown to someone else who did not answer within this time is shown again


class Session:
    """The labelling of one person: the images of a sample that wait, and what was given so far.

    At the end come the images on which the person and somebody else disagree, and those whose label contradicts an
    answer with a confidence above `second_above`.
    """

    def __init__(
        self, paths: StorePaths, sample: Sample, labels: LabelLog, labeller: str, second_above: float | None = None
    ):
        self._paths, self._labels, self._labeller = paths, labels, labeller
        self._second_above = second_above
        disputed = {one.prediction_id: one for one in sampling.disputed(paths, labeller)}
        self._images = {**{drawn.prediction_id: drawn for drawn in sample.images}, **disputed}
        self._done = sampling.labelled_on_page(paths, sample) - disputed.keys()
        self._disputed = set(disputed)
        new = (made for made in self._images if made not in self._done | self._disputed)
        self._waiting = deque([*new, *disputed])
        self._given: list[str] = []
        self.shown: str | None = None
        self.finished = False

    def content(self, prediction_id: str) -> str | None:
        """Return the content hash of an image of the sample."""
        found = self._images.get(prediction_id)
        return found.hash if found else None

    def state(self) -> dict[str, Any]:
        """Return what the page shows; the next image if none is shown."""
        if self.shown is None and not self.finished:
            self.shown = self._next()
        return {
            "image": self.shown,
            "done": len(self._done),
            "total": len(self._images),
            "can_undo": bool(self._given),
            "finished": self.finished,
        }

    def give(self, prediction_id: str, label: str | None, verdict: str) -> str | None:
        """Store the label of the image that is shown. Returns why not, or None."""
        if prediction_id != self.shown:
            return "this image is not shown any more; reload the page"
        if label and not verdict and self._needs_second(prediction_id, label):
            verdict = UNCONFIRMED
        row = {"prediction_id": prediction_id, "label": label, "verdict": verdict, "labeller": self._labeller}
        (answer,) = self._labels.add([row])
        if answer.status in ("invalid", "unknown", "expired"):
            return answer.reason
        self._given.append(prediction_id)
        self._disputed.discard(prediction_id)
        if verdict == UNCONFIRMED:
            self._waiting.append(prediction_id)
        else:
            self._done.add(prediction_id)
        self._release(prediction_id)
        self.shown = None
        return None

    def undo(self) -> None:
        """Take the last label back and show its image again."""
        if self._given:
            last = self._given[-1]
            self._labels.add([{"prediction_id": last, "label": None, "labeller": self._labeller}])
            self._given.pop()
            if self.shown is not None:
                self._waiting.appendleft(self.shown)
                self._release(self.shown)
            self.shown = last
            self._done.discard(last)
            with contextlib.suppress(ValueError):  # it waits only if its label was unconfirmed
                self._waiting.remove(last)
            self._claim(last)

    def finish(self) -> None:
        """Release the image that is shown, and show no other."""
        if self.shown is not None:
            self._release(self.shown)
        self.shown, self.finished = None, True

    def _next(self) -> str | None:
        for _ in range(len(self._waiting)):
            made = self._waiting.popleft()
            known = self._labels.known(made).values()
            if made not in self._disputed and any(label.verdict != UNCONFIRMED for label in known):  # another person
                self._done.add(made)
            elif sampling.has_pixels(self._paths, self._images[made].hash):
                if self._claim(made):
                    return made
                self._waiting.append(made)  # who sees it now may never answer
        return None

    def _needs_second(self, made: str, label: str) -> bool:
        """Return whether a label contradicts a confident answer and nobody gave the same label before."""
        drawn = self._images[made]
        if self._second_above is None or drawn.confidence <= self._second_above or label == drawn.prediction:
            return False
        return label not in {known.label for known in self._labels.known(made).values()}

    def _claim(self, made: str) -> bool:
        """Reserve an image, so that two people label different ones. Returns whether it was free."""
        path = self._paths.traffic_claims / made
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > CLAIM_S:
                path.unlink()
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _release(self, made: str) -> None:
        (self._paths.traffic_claims / made).unlink(missing_ok=True)


class LabelApp:
    """The routes of the page, for one person and one browser."""

    def __init__(self, paths: StorePaths, session: Session, opened: Dataset, port: int, on_finish: Callable[[], None]):
        self.token = secrets.token_urlsafe(32)
        self._paths, self._session, self._opened, self._on_finish = paths, session, opened, on_finish
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self._cookie, self._secret = f"flywheel-label-{port}", secrets.token_urlsafe(32)
        self._token_used = False

    def build(self) -> Starlette:
        """Return the ASGI application."""
        routes = (
            ("GET", "/", self._page),
            ("GET", "/state", self._state),
            ("GET", "/image/{made}", self._image),
            ("GET", "/examples/{class_id:int}", self._examples),
            ("POST", "/label", self._label),
            ("POST", "/undo", self._undo),
            ("POST", "/finish", self._finish),
        )
        return Starlette(
            routes=[Route(path, self._guarded(handler), methods=[method]) for method, path, handler in routes]
        )

    def _guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that refuses other hosts, other pages, and who has no cookie."""

        async def answer(request: Request) -> Response:
            if request.headers.get("host") not in self._hosts:
                return _refused(403, "open the URL that make label printed")
            given = request.query_params.get("token", "")
            if given and not self._token_used and hmac.compare_digest(given.encode(), self.token.encode()):
                self._token_used = True
                redirect = RedirectResponse("/", 303)
                redirect.set_cookie(self._cookie, self._secret, httponly=True, samesite="strict")
                return redirect
            cookie = request.cookies.get(self._cookie, "")
            if not hmac.compare_digest(cookie.encode(), self._secret.encode()):
                return _refused(403, "open the URL that make label printed, in one browser; it is valid once")
            if request.method == "POST":
                if request.headers.get("origin") not in tuple(f"http://{host}" for host in self._hosts):
                    return _refused(403, "labels are taken from this server's own page only")
                if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                    return _refused(415, "the body must be JSON")
            try:
                response = await handler(request)
            except OSError as error:
                return _refused(503, f"the label cannot be stored: {error.strerror or error}")
            response.headers["Cache-Control"] = "no-store"
            return response

        return answer

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(
            PAGE.read_text(encoding="utf-8"),
            headers={
                "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data:; frame-ancestors 'none'",
                "Referrer-Policy": "same-origin",
            },
        )

    async def _state(self, request: Request) -> Response:
        return JSONResponse({**self._session.state(), "classes": list(self._opened.class_names)})

    async def _image(self, request: Request) -> Response:
        content = self._session.content(request.path_params["made"])
        try:
            data = records.image_path(self._paths, content or "none").read_bytes()
        except OSError:
            return _refused(404, "this image is not kept any more")
        return Response(data, media_type="image/png")

    async def _examples(self, request: Request) -> Response:
        """Answer with a strip of training images of a class."""
        train = self._opened.indices["train"]
        rows = train[np.flatnonzero(self._opened.labels[train] == request.path_params["class_id"])[:EXAMPLES]]
        images = list(self._opened.images[rows])
        strip = Image.fromarray(np.concatenate(images, axis=1)) if images else Image.new("LA", (1, 1))
        buffer = io.BytesIO()
        strip.save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")

    async def _label(self, request: Request) -> Response:
        try:
            body = json.loads(await request.body())
            problem = self._session.give(body["prediction_id"], body["label"], body.get("verdict", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return _refused(400, "not a label")
        return _refused(409, problem) if problem else await self._state(request)

    async def _undo(self, request: Request) -> Response:
        self._session.undo()
        return await self._state(request)

    async def _finish(self, request: Request) -> Response:
        self._session.finish()
        response = await self._state(request)
        self._on_finish()
        return response


def _refused(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status)
