"""Files from the URLs that W&B gives, each read with a limit on silence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import urlsplit

from flywheel import files
from flywheel.files import Digests
from flywheel.tracking.connection import WandbError, api_key, base_url, one_line, silence_or

if TYPE_CHECKING:
    import requests

READ_TIMEOUT_S = 5  # without a byte


def _get(url: str, headers: Mapping[str, str]) -> requests.Response:
    """Ask for a stored file; its URL is signed, or W&B's own and needs the key. Raises WandbError."""
    import requests

    ours = urlsplit(url).hostname == urlsplit(base_url()).hostname
    try:
        return requests.get(
            url, headers={"Accept-Encoding": "identity", **headers}, timeout=READ_TIMEOUT_S, stream=True,
            auth=("api", api_key() or "") if ours else None,
        )  # fmt: skip
    except requests.RequestException as error:
        raise silence_or(error) from None


def download(url: str, place: Path) -> Digests:
    """Store what a URL gives and return its digests. Not by wandb: its threads outlive a service that is silent."""
    from urllib3.exceptions import HTTPError

    with _get(url, {}) as answer, place.open("wb") as writing:
        if answer.status_code != 200:
            raise WandbError(f"it answers with {answer.status_code}")
        try:
            return files.digest_stream(cast(BinaryIO, answer.raw), copy_to=writing)
        except (HTTPError, OSError) as error:
            raise WandbError(one_line(error)) from None


def is_whole(url: str, expected: Digests) -> bool:
    """Tell whether a stored file has its size, by asking for its last byte."""
    last = max(expected.size - 1, 0)
    with _get(url, {"Range": f"bytes={last}-{last}"}) as answer:
        if answer.status_code == 206:
            return answer.headers.get("Content-Range", "").endswith(f"/{expected.size}")
        empty = expected.size == 0 and answer.status_code in (200, 416)
        return empty or (answer.status_code == 200 and int(answer.headers.get("Content-Length", -1)) == expected.size)
