"""Download files from the URLs that W&B gives, with a timeout on each read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import urlsplit

from flywheel import files
from flywheel.files import Digests
from flywheel.tracking.connection import WandbError, api_key, as_wandb_error, base_url, one_line

if TYPE_CHECKING:
    import requests

READ_TIMEOUT_S = 5  # without a byte


def _get(url: str, headers: Mapping[str, str]) -> requests.Response:
    """Request a stored file. Its URL is signed, or on W&B's host and needs the key. Raises WandbError."""
    import requests

    on_host = urlsplit(url).hostname == urlsplit(base_url()).hostname
    try:
        return requests.get(
            url, headers={"Accept-Encoding": "identity", **headers}, timeout=READ_TIMEOUT_S, stream=True,
            auth=("api", api_key() or "") if on_host else None,
        )  # fmt: skip
    except requests.RequestException as error:
        raise as_wandb_error(error) from None


def download(url: str, path: Path) -> Digests:
    """Download a file and return its digests. wandb's own threads would keep the process alive if W&B stalls."""
    from urllib3.exceptions import HTTPError

    with _get(url, {}) as answer, path.open("wb") as writing:
        if answer.status_code != 200:
            raise WandbError(f"it answers with {answer.status_code}")
        try:
            # Not `read`, which waits for a full chunk: a slow download would be taken for one that stalls.
            received = SimpleNamespace(read=answer.raw.read1)
            return files.digest_stream(cast(BinaryIO, received), copy_to=writing)
        except (HTTPError, OSError) as error:
            raise WandbError(one_line(error)) from None


def is_complete(url: str, expected: Digests) -> bool:
    """Tell whether a stored file has the expected size, by requesting its last byte."""
    last = max(expected.size - 1, 0)
    with _get(url, {"Range": f"bytes={last}-{last}"}) as answer:
        if answer.status_code == 206:
            return answer.headers.get("Content-Range", "").endswith(f"/{expected.size}")
        empty = expected.size == 0 and answer.status_code in (200, 416)
        return empty or (answer.status_code == 200 and int(answer.headers.get("Content-Length", -1)) == expected.size)
