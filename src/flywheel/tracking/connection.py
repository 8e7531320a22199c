"""How a process is connected to W&B: online, offline or not at all, and for how long it may wait for it.

Settled once, by asking the host who we are, before wandb is imported: so that a key that is refused, a host that is
gone and one that accepts and never answers all cost at most PROBE_TIMEOUT_S and lead to the offline mode.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from flywheel import FlywheelError
from flywheel.params import Params
from flywheel.tracking.environment import configure

log = logging.getLogger(__name__)

BASE_URL = "https://api.forge.coreweave.com"  # wandb 0.31's default; keys for the former host still work
FORMER_HOSTS = ("api.wandb.ai",)
PROBE_TIMEOUT_S = 3
# What all waiting for W&B in which nothing moves may cost a stage; with the probe and what moves before, under 20 s.
PATIENCE_S = 12
INTERRUPTED_PATIENCE_S = 3  # of a stage that failed or was interrupted: a sweep ends 8 s after the signal
MOVING_BYTES_PER_S = 20_000  # W&B's process reads and writes so much when it uploads; logs and retries are less

T = TypeVar("T")


class WandbError(FlywheelError):
    """W&B does not do what is asked of it; the message says what and why."""


class SilenceError(WandbError):
    """W&B does not answer, and patience is at its end."""


class Mode(NamedTuple):
    """online, offline or disabled; why; and, online, the user or team that runs belong to."""

    name: str
    why: str
    entity: str = ""


class Connection:
    """The connection of one process: settled at the first need, lost at the first trouble, never found again."""

    def __init__(self, params: Params):
        self.params = params
        self.patience_s: float = PATIENCE_S
        self.waited_s = 0.0
        self.lost = False  # there was trouble; it is said once
        self._mode: Mode | None = None
        self._announced = False
        self._lock = threading.Lock()

    @property
    def mode(self) -> Mode:
        """The mode; the first to ask settles it, and wandb's environment with it."""
        with self._lock:
            if self._mode is None:
                began = time.monotonic()
                self._mode = choose_mode(self.params.tracking.wandb)
                self.waited_s += time.monotonic() - began
                if self._mode.name != "disabled":
                    configure(self._mode.name, self.params)
            return self._mode

    @property
    def online(self) -> bool:
        """Whether W&B can be asked."""
        return self.mode.name == "online"

    @property
    def project(self) -> str:
        """The project of this profile's runs and artifacts."""
        return self.params.tracking.project or f"flywheel-{self.params.profile}"

    @property
    def where(self) -> str:
        """Host, owner and project: what was seen there says nothing about another place."""
        return f"{base_url()}/{self.mode.entity}/{self.project}"

    def announce(self) -> None:
        """Print the mode, once."""
        if not self._announced:
            self._announced = True
            log.info(f"W&B: {self.mode.name} ({self.mode.why})")

    def trouble(self, error: object, consequence: str) -> None:
        """Go on offline (disabled, when it was offline), and say so in one line the first time."""
        with self._lock:
            before, self.lost = self.lost, True
            if self._mode is not None and self._mode.name == "online":
                self._mode = Mode("offline", "there was trouble")
                os.environ["WANDB_MODE"] = "offline"
        if not before:
            log.info(f"W&B: {one_line(error)}; {consequence}")

    def wait(
        self, done: threading.Event, at_most_s: float | None = None, moved_bytes: Callable[[], int] | None = None
    ) -> bool:
        """Wait for an event; returns whether it came before patience ended.

        Time in which data moves costs no patience, so that a long upload is waited for. Data that moved is what W&B's
        process read and wrote, unless `moved_bytes` tells it.
        """
        moved_bytes = moved_bytes or _moved_bytes
        last_look, moved = time.monotonic(), moved_bytes()
        until = None if at_most_s is None else last_look + at_most_s
        while not done.wait(min(1.0, max(self.patience_s, 0.01))):
            now, total = time.monotonic(), moved_bytes()
            self.waited_s += now - last_look
            if total - moved < MOVING_BYTES_PER_S * (now - last_look):
                self.patience_s -= now - last_look
            last_look, moved = now, total
            if self.patience_s <= 0 or (until is not None and now >= until):
                return False
        self.waited_s += time.monotonic() - last_look
        return True

    def run(self, action: Callable[[], T], moved_bytes: Callable[[], int] | None = None) -> T:
        """Return what an action returns or raises; WandbError when patience ends first (it is left behind then)."""
        done = threading.Event()
        box: list[Any] = []

        def work() -> None:
            try:
                box.extend((action(), None))
            except BaseException as error:
                box.extend((None, error))
            done.set()

        threading.Thread(target=work, name="W&B", daemon=True).start()
        if not self.wait(done, moved_bytes=moved_bytes):
            raise SilenceError("it does not answer")
        result, error = box
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]


def choose_mode(wanted: str) -> Mode:
    """Return the mode, and why. Never prompts and never takes over PROBE_TIMEOUT_S (and a little)."""
    why = "tracking.wandb"
    if wanted == "auto" and (asked := os.environ.get("WANDB_MODE")):
        wanted, why = {"dryrun": "offline", "run": "online"}.get(asked, asked), "WANDB_MODE"
        if wanted not in ("online", "offline", "disabled"):
            wanted, why = "offline", f"WANDB_MODE={asked} is no mode here"
    if wanted in ("offline", "disabled"):
        return Mode(wanted, why)
    address = urlsplit(base_url())
    if address.scheme not in ("http", "https") or not address.hostname:
        return Mode("offline", f"WANDB_BASE_URL={one_line(base_url())} is no http address")
    key = api_key()
    if key is None:
        return Mode("offline", "no API key; `.venv/bin/wandb login` or WANDB_API_KEY brings runs online")
    try:
        return Mode("online", f"{address.hostname} answers", os.environ.get("WANDB_ENTITY") or who_am_i(key))
    except WandbError as error:
        return Mode("offline", str(error))


def base_url() -> str:
    """Return the host that is used."""
    return os.environ.get("WANDB_BASE_URL", BASE_URL).rstrip("/")


def api_key() -> str | None:
    """Return the API key from the environment or netrc."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    hosts = (urlsplit(base_url()).hostname or "", *(FORMER_HOSTS if "WANDB_BASE_URL" not in os.environ else ()))
    return next((key for host in hosts if (key := _in_netrc(host))), None)


def who_am_i(key: str) -> str:
    """Return the default entity of a key's owner. Raises WandbError within PROBE_TIMEOUT_S."""
    host = urlsplit(base_url()).hostname
    request = urllib.request.Request(  # noqa: S310  (the user's own choice of host)
        f"{base_url()}/graphql",
        json.dumps({"query": "query Viewer { viewer { entity } }"}).encode(),
        {"Content-Type": "application/json"},
    )
    request.add_unredirected_header("Authorization", f"Basic {_base64(f'api:{key}')}")  # the key is for this host only
    box: list[object] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S) as answer:  # noqa: S310
                box.append((json.load(answer).get("data") or {}).get("viewer") or {})
        except urllib.error.HTTPError as error:
            refused = f"{host} refuses the key" if error.code in (401, 403) else f"{host} answers with an error"
            box.append(f"{refused} ({error.code})")
        except (OSError, ValueError, AttributeError) as error:
            box.append(f"{host} does not answer ({one_line(getattr(error, 'reason', error))})")

    # A thread, because the timeout of a socket begins anew with each byte, and names are looked up without one.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PROBE_TIMEOUT_S)
    found = box[0] if box else f"{host} does not answer (within {PROBE_TIMEOUT_S} s)"
    if isinstance(found, str):
        raise WandbError(found)
    assert isinstance(found, dict)
    if not found.get("entity"):
        raise WandbError(f"{host} does not know the key")
    return str(found["entity"])


def one_line(error: object) -> str:
    """Return what an error says, short and on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def silence_or(error: Exception) -> WandbError:
    """Return what wandb raised in one line; silence is told apart, since nothing more is asked then."""
    silent = any(said in str(error) for said in ("did not respond in time", "Timed out", "timed out"))
    return SilenceError("it does not answer") if silent else WandbError(one_line(error))


def processes() -> list[Any]:
    """Return the wandb-core processes that this process started."""
    import psutil

    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "wandb-core" in child.name():
                    found.append(child)
    return found


def _moved_bytes() -> int:
    """Return how much W&B's process has read and written, sockets included; 0 where it cannot be known."""
    import psutil

    total = 0
    for process in processes():
        with contextlib.suppress(psutil.Error, AttributeError, OSError):
            counters = process.io_counters()
            total += counters.read_chars + counters.write_chars
    return total


def _in_netrc(host: str) -> str | None:
    import netrc

    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
