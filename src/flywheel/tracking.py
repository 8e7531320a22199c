"""Weights & Biases runs. The only module that imports wandb beside the registry's remote.

W&B is a mirror: results stand in local files first, and whatever goes wrong here is reported once and fails
nothing. Settings follow what was measured with wandb 0.31 (docs/how-it-works.md, W&B): the mode and the
folders are set in the environment before wandb is imported, so that nothing is written under the home
directory and nothing about the machine is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flywheel.params import Params

BASE_URL = "https://api.forge.coreweave.com"  # wandb 0.31's default; keys for the former host still work
FORMER_HOSTS = ("api.wandb.ai",)
PROBE_TIMEOUT_S = 3
START_TIMEOUT_S, FINISH_TIMEOUT_S = 15, 60
SILENT = {
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_X_DISABLE_META": "true",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_X_DISABLE_STATS": "true",
}
FOLDERS = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR")
USER_SETTINGS = Path(".config/wandb/settings")  # below the home directory: the host that `wandb login --host` chose


class Run:
    """One W&B run, or nothing in mode disabled. No method raises: the first trouble ends the mirroring."""

    def __init__(self, run: Any, say: Callable[[str], None]):
        self._run = run
        self._say = say

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics."""
        self._try(lambda run: run.log(dict(metrics), step=step))

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        """Set final values, which W&B's tables of runs show."""
        self._try(lambda run: run.summary.update(dict(metrics)))

    def log_pictures(self, pictures: Sequence[Path]) -> None:
        """Log picture files under their names."""

        def draw(run: Any) -> None:
            import wandb

            run.log({path.stem: wandb.Image(str(path)) for path in pictures})

        self._try(draw)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a uint8 array (h, w, 3) in it is shown as an image. W&B keeps a copy of all of it."""

        def draw(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=list(columns))
            for row in rows:
                table.add_data(*(wandb.Image(value) if hasattr(value, "dtype") else value for value in row))
            run.log({name: table})

        self._try(draw)

    def log_confusion_matrix(
        self, labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str]
    ) -> None:
        """Log W&B's own interactive confusion matrix."""

        def draw(run: Any) -> None:
            import wandb

            plot = wandb.plot.confusion_matrix(
                y_true=list(labels), preds=list(predictions), class_names=list(class_names)
            )
            run.log({"confusion_matrix_interactive": plot})

        self._try(draw)

    def finish(self, failed: bool = False) -> None:
        """End the run as finished or failed."""
        self._try(lambda run: run.finish(exit_code=1 if failed else 0))
        self._run = None

    def _try(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._run = None
            self._say(f"W&B: {_one_line(error)}; going on without it, results are in the reports")


class Tracker:
    """Starts runs in the mode the params ask for. The mode is settled and printed once, at the first run."""

    def __init__(self, params: Params, group: str, say: Callable[[str], None] = print):
        self.params = params
        self.group = group
        self.say = say
        self._mode: Any = None  # online, offline or disabled, once settled

    def start(self, job_type: str, name: str, config: Mapping[str, Any], id: str | None = None) -> Run:
        """Start a run of the tracker's group. Falls back to offline when W&B cannot be reached."""
        if self._mode is None:
            self._mode, why = choose_mode(self.params.tracking.wandb)
            self.say(f"W&B: {self._mode} ({why})")
        if self._mode == "disabled":
            return Run(None, self.say)
        configure(self._mode, self.params.store / "wandb")
        try:
            return Run(self._init(job_type, name, config, id), self.say)
        except Exception as error:
            if self._mode == "online":
                self.say(f"W&B: {_one_line(error)}; going on offline")
                self._mode = "offline"
                return self.start(job_type, name, config, id)
            self.say(f"W&B: {_one_line(error)}; going on without it, results are in the reports")
            self._mode = "disabled"
            return Run(None, self.say)

    def _init(self, job_type: str, name: str, config: Mapping[str, Any], id: str | None) -> Any:
        import wandb

        return wandb.init(
            project=self.params.tracking.project or f"flywheel-{self.params.profile}",
            job_type=job_type,
            name=name,
            group=self.group,
            mode=self._mode,  # wandb reads the environment once a process; the fallback must reach it too
            id=id,
            config=dict(config),
            reinit="create_new",
            settings=wandb.Settings(init_timeout=START_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S),
        )


def choose_mode(wanted: str) -> tuple[str, str]:
    """Return online, offline or disabled, and why. Never prompts and never takes over PROBE_TIMEOUT_S."""
    if wanted != "auto":
        return wanted, "tracking.wandb"
    if mode := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(mode, mode), "WANDB_MODE"
    address = urlsplit(os.environ.get("WANDB_BASE_URL", BASE_URL))
    hosts = {address.hostname or "", *(FORMER_HOSTS if "WANDB_BASE_URL" not in os.environ else ())}
    if not os.environ.get("WANDB_API_KEY") and not any(_in_netrc(host) for host in hosts):
        return "offline", "no API key; `wandb login` or WANDB_API_KEY brings runs online"
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=PROBE_TIMEOUT_S):
            return "online", f"{address.hostname} answers"
    except OSError:
        return "offline", f"{address.hostname} does not answer"


def configure(mode: str, folder: Path) -> None:
    """Set W&B's mode, folders and silence in the environment, where it reads them before all else."""
    os.environ.update(SILENT, WANDB_MODE=mode)
    for name in FOLDERS:
        if name != "WANDB_CONFIG_DIR" or not (Path.home() / USER_SETTINGS).exists():
            os.environ[name] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _in_netrc(host: str) -> bool:
    import netrc

    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
