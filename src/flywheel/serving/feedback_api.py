"""POST /feedback: labels for answered images, from applications and people who know the truth.

The body is a JSON array of up to 1,000 rows {"prediction_id": …, "label": …, "labeller": …}; the answer has a status
for each row (docs/serving.md). A label is on disk when its row is answered. The bearer token is always asked for, also
on this machine: behind a proxy every client looks local.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flywheel.traffic.labels import Answer, LabelLog

log = logging.getLogger("flywheel.serving")

MAX_ROWS = 1_000


class FeedbackApi:
    """The route that takes labels. `read_body` refuses a body that is too large."""

    def __init__(
        self,
        labels: LabelLog,
        token: str,
        read_body: Callable[[Request], Awaitable[bytes]],
        count: Callable[[Sequence[Answer]], None],
    ):
        self._labels, self._token, self._read_body, self._count = labels, token.encode(), read_body, count
        self._writer = ThreadPoolExecutor(1, "labels")

    async def take(self, request: Request) -> Response:
        """Answer a request. Raises HTTPException."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            reason = "labels need the header 'Authorization: Bearer <token>'; the token is in store/<profile>/token"
            raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})
        try:
            rows = json.loads(await self._read_body(request))
            json.dumps(rows, ensure_ascii=False).encode()  # half a surrogate pair can be neither stored nor sent back
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"not JSON: {error}") from None
        if not isinstance(rows, list):
            raise HTTPException(400, 'not an array of rows such as [{"prediction_id": "…", "label": "cat"}]')
        if len(rows) > MAX_ROWS:
            raise HTTPException(413, f"{len(rows):,} rows; at most {MAX_ROWS:,} are taken in a request")
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._writer, self._labels.add, rows)
        except OSError as error:
            log.error("labels cannot be stored: %s", error)
            raise HTTPException(
                503, "the server cannot store labels now; send them again", {"Retry-After": "5"}
            ) from None
        self._count(answers)
        results = [
            {"prediction_id": one.prediction_id, "status": one.status} | ({"reason": one.reason} if one.reason else {})
            for one in answers
        ]
        return JSONResponse(
            {
                "results": results,
                "counts": dict(Counter(one.status for one in answers)),
                "request_id": request.headers.get("x-request-id", ""),
            }
        )
