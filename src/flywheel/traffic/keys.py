"""The secrets of a profile: the token of those who send labels, and the salt that hides the names of groups."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from flywheel import files
from flywheel.params import StorePaths


def hash_group(name: str, salt: bytes) -> str:
    """Return the hash (hex) under which a group, such as a patient or a camera, is recorded."""
    return hmac.new(salt, name.encode(), hashlib.sha256).hexdigest()


def token(paths: StorePaths) -> str:
    """Return the secret that a client needs to send labels: FLYWHEEL_TOKEN if set, otherwise that of the store."""
    return os.environ.get("FLYWHEEL_TOKEN", "").strip() or _secret(paths, paths.token)


def salt(paths: StorePaths) -> bytes:
    """Return the salt for the names of groups; make the folder of the traffic, which only its owner can open."""
    paths.traffic.mkdir(parents=True, exist_ok=True, mode=0o700)
    return _secret(paths, paths.salt).encode()


def _secret(paths: StorePaths, path: Path) -> str:
    """Return the secret in a file that only its owner can read; make one if there is none, one for all processes."""
    if known := _read(path):
        return known
    with files.lock(paths.lock("secrets"), wait=True):
        if not _read(path):
            with files.atomic(path) as temporary:
                temporary.touch(0o600)
                temporary.write_text(f"{secrets.token_urlsafe(32)}\n")
        return _read(path)


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
