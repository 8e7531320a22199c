"""Set the environment variables that wandb reads when it is imported: its folders, and what it may send."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from flywheel.params import Params

QUIET = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
HIDE_MACHINE = {
    "WANDB_PROGRAM": "flywheel",
    "WANDB_HOST": "flywheel",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_X_DISABLE_META": "true",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_X_DISABLE_STATS": "true",
}
FOLDERS = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR")


def configure(params: Params, *, machine_info: bool) -> None:
    """Set W&B's folders, what it prints, and whether it sends facts of this machine."""
    folder = params.store_paths.wandb
    os.environ.update(QUIET)
    if not machine_info:
        os.environ.update(HIDE_MACHINE)
    for name in FOLDERS:
        if name != "WANDB_CONFIG_DIR" or not user_settings().exists():
            os.environ[name] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not machine_info:
        os.environ["WANDB_DATA_DIR"] = str(_anonymous_link(folder))


def user_settings() -> Path:
    """Return the path of W&B's settings of the user: `wandb login --host` writes the host there."""
    return Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings"


def _anonymous_link(folder: Path) -> Path:
    """Return a link to a folder, the same each time, whose path names neither user nor folder.

    W&B's manifest of a table has the path of its staged files.
    """
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    link = Path(tempfile.gettempdir()) / f"flywheel-{os.getuid()}-{name}"
    with contextlib.suppress(OSError):
        link.symlink_to(folder)
    with contextlib.suppress(OSError):
        if link.lstat().st_uid == os.getuid() and link.readlink() == folder:
            return link
    return folder
