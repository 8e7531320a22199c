"""Prepare the environment of this process, and so of all that it starts, whatever the shell is set up for."""

from __future__ import annotations

import os
import pwd
import re
import tempfile
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def prepare() -> None:
    """Change the variables that would make a library fail. To be called before libraries are imported."""
    bypass_proxies(*LOOPBACK)
    _name_user()
    os.environ["MPLBACKEND"] = "Agg"  # pictures are written to files
    for name in ("PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT"):  # Ray's processes need their docstrings
        os.environ.pop(name, None)
    if "TMPDIR" in os.environ:
        os.environ["TMPDIR"] = tempfile.gettempdir()  # Ray does not check that it can be written
    if not os.access(Path.home(), os.W_OK):
        os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"flywheel-{os.getuid()}-matplotlib"))
    for name, value in list(os.environ.items()):
        if name.startswith("WANDB_") or name == "RAY_ADDRESS":
            os.environ[name] = value.strip()  # a key from a file ends with a newline
        if name.endswith("_NUM_THREADS") and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", value):
            del os.environ[name]  # libgomp would say so once for each process


def bypass_proxies(*hosts: str) -> None:
    """Connect to hosts directly, in this process and all that it starts, even if http_proxy is set."""
    listed = f"{os.environ.get('no_proxy', '')},{os.environ.get('NO_PROXY', '')}".split(",")
    direct = list(dict.fromkeys(host.strip() for host in (*listed, *hosts) if host.strip()))
    if "*" not in direct:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(direct)


def _name_user() -> None:
    """Give a user without a name, as in a container, one; and a user without a home directory the root directory."""
    try:
        user = pwd.getpwuid(os.getuid())
        name, home = user.pw_name, user.pw_dir
    except KeyError:
        name, home = f"uid-{os.getuid()}", "/"
    os.environ.setdefault("USER", name)
    os.environ["HOME"] = os.environ.get("HOME") or home
