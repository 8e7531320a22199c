"""Fetch an archive once: resume, retry, verify, extract safely, and leave no partial file under a final name."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tarfile
import time
import zlib
from pathlib import Path

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError

from flywheel import files
from flywheel.data import DataError

log = logging.getLogger(__name__)

ATTEMPTS = 4
BACKOFF_S = 1.0  # doubled after each attempt
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 30  # a silent server costs 4 x 30 s + 7 s
TOTAL_TIMEOUT_S = 3600  # of a call; the next call resumes
CHUNK_BYTES = 1 << 16
TRANSIENT = (408, 425, 429)  # the 4xx answers worth another attempt


class _TryAgainError(Exception):
    """A failure that another attempt may not repeat."""


class _GiveUpError(Exception):
    """A failure that another attempt would repeat."""


def archive(url: str, path: Path, md5: str, folder: str) -> None:
    """Extract `folder` beside the archive at `path` unless it is there; fetch a missing archive from `url`.

    Raises DataError, one sentence that says what to do; leaves no partial file under a final name.
    """
    target = path.parent / folder
    if target.is_dir():
        return
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise DataError(
            f"cannot make {error.filename} ({error.strerror}); set paths.cache to a directory that can be written"
        ) from None
    with files.lock(lock, wait=True):
        if target.is_dir():
            return
        if not path.exists():
            log.info(f"data: fetching {url}")
            download(url, path, md5)
        elif _md5(path) != md5:
            raise DataError(f"{path} does not match its checksum {md5}; remove it and run make data again")
        extract(path, folder)


def download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` to `path`, resuming from `<path>.part`.

    Ends within TOTAL_TIMEOUT_S and READ_TIMEOUT_S. Raises DataError.
    """
    part = path.with_name(path.name + ".part")
    deadline = time.monotonic() + TOTAL_TIMEOUT_S
    failure = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
        try:
            _fetch_rest(url, part, deadline)
            found = _md5(part)
            if found == md5:
                part.replace(path)
                return
            part.unlink()
            failure = f"its checksum is {found}, not {md5}"
        except _GiveUpError as error:
            failure = str(error)
            break
        except _TryAgainError as error:
            failure = str(error)
        except (requests.RequestException, HTTPError) as error:
            failure = _short(error)
        except OSError as error:
            raise DataError(
                f"cannot write {part} ({error.strerror}); free space or set paths.cache, and run again"
            ) from None
    raise DataError(
        f"cannot fetch {url}: {failure}; put the file at {path}, or use your own images "
        "(data.source=folder data.path=…), or try PROFILE=demo, which needs no download"
    )


def extract(path: Path, folder: str) -> None:
    """Extract `folder` of a tar archive beside it, completely or not at all. Raises DataError.

    Python's "data" filter refuses absolute and outside paths, links to the outside, and devices (PEP 706).
    """
    temporary = path.with_name(path.name + ".extracting")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with tarfile.open(path) as opened:
            opened.extractall(temporary, filter="data")
        if (temporary / folder).is_symlink() or not (temporary / folder).is_dir():
            raise tarfile.TarError(f"it holds no directory {folder}")
        (temporary / folder).rename(path.parent / folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        first = str(error).partition("\n")[0].rstrip(":")  # tarfile tells it once for each compression
        raise DataError(f"{path} cannot be extracted ({first}); remove it and run again") from None
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be extracted ({reason}); free space or remove it, and run again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fetch_rest(url: str, part: Path, deadline: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    # Without `identity` a server may mark a .tar.gz as compressed content, and requests would unpack it.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        status = response.status_code
        if have and status == requests.codes.requested_range_not_satisfiable:
            return  # the part is complete; the checksum decides
        if status not in (requests.codes.ok, requests.codes.partial_content):
            final = 400 <= status < 500 and status not in TRANSIENT
            raise (_GiveUpError if final else _TryAgainError)(f"the server answered {status} {response.reason}")
        resumed = status == requests.codes.partial_content
        start = have if resumed else 0
        length = int(response.headers.get("Content-Length", 0))
        with (
            part.open("ab" if resumed else "wb") as writing,
            tqdm(
                desc="data: fetching", total=start + length or None, initial=start,
                unit="B", unit_scale=True, mininterval=0.5, disable=None,
            ) as bar,
        ):  # fmt: skip
            # read1 returns as soon as bytes arrive; read and iter_content wait for a full chunk, past the deadline. It
            # raises ProtocolError if the connection closes before the end.
            while chunk := response.raw.read1(CHUNK_BYTES):
                writing.write(chunk)
                bar.update(len(chunk))
                if time.monotonic() > deadline:
                    raise _GiveUpError(f"not done after {TOTAL_TIMEOUT_S} s; run again to resume")


def _md5(path: Path) -> str:
    with path.open("rb") as reading:
        return hashlib.file_digest(reading, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _short(error: requests.RequestException | HTTPError) -> str:
    if isinstance(error, requests.Timeout | ReadTimeoutError):
        return "the server does not answer"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, ProtocolError):
        return "the connection broke off"
    return type(error).__name__
