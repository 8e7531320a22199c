"""Choose how a process uses W&B (online, offline, disabled), and limit how long it waits for it.

The mode is chosen once, before wandb is imported: the most private one that was asked for, otherwise by asking W&B
which user the API key belongs to. A refused key, an unreachable host and one that accepts connections but never answers
all cost at most PROBE_TIMEOUT_S and lead to the offline mode.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from flywheel import FlywheelError
from flywheel.params import Params
from flywheel.tracking.environment import configure, user_settings

log = logging.getLogger(__name__)

BASE_URL = "https://api.forge.coreweave.com"  # wandb 0.31's default; keys for the former host still work
FORMER_HOSTS = ("api.wandb.ai",)
PROBE_TIMEOUT_S = 3
# A stage waits at most this long for W&B without any upload; with the probe and the uploads before, under 20 s.
STALL_TIMEOUT_S = 12
INTERRUPTED_TIMEOUT_S = 3  # after a failure or an interruption: a sweep must end 8 s after the signal
PRIVATE_FIRST = ("disabled", "offline", "online")  # of several wishes, the first one of these counts
LOOK_S = 3.0  # between looks whether data moves, which it does in bursts
UPLOADING_BYTES_PER_S = 20_000  # W&B's process reads and writes at least this much when it uploads; retries are less

T = TypeVar("T")


class WandbError(FlywheelError):
    """A request to W&B failed; the message says which and why."""


class StalledError(WandbError):
    """W&B did not answer in time."""


class Mode(NamedTuple):
    """online, offline or disabled; why; and, if online, the user or team that runs belong to."""

    name: str
    why: str
    entity: str = ""


class Connection:
    """The connection of one process. The first error makes it offline for the rest of the process."""

    def __init__(self, params: Params, *, upload: bool = False):
        self.params = params
        self.upload = upload  # make sync: whatever was asked for before, the user asks for an upload now
        self.stall_budget_s: float = STALL_TIMEOUT_S  # what is left of it
        self.waited_s = 0.0
        self.gave_up = False  # after an error, which is logged once
        self._computing = False
        self._mode: Mode | None = None
        self._announced = False
        self._lock = threading.Lock()

    @property
    def mode(self) -> Mode:
        """The mode; the first access chooses it and configures wandb's environment."""
        with self._lock:
            if self._mode is None:
                began = time.monotonic()
                self._mode = ask() if self.upload else choose_mode(self.params.tracking.wandb)
                self.waited_s += time.monotonic() - began
                if self._mode.name == "online":
                    if (url := base_url()) != BASE_URL:
                        os.environ["WANDB_BASE_URL"] = url  # the settings files are not wandb's from here on
                    # Of a run that is uploaded later, this machine's facts would be wrong.
                    configure(self.params, machine_info=self.params.tracking.machine_info and not self.upload)
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
    def project_url(self) -> str:
        """Host, owner and project: identifies where runs, artifacts and aliases were seen."""
        return f"{base_url()}/{self.mode.entity}/{self.project}"

    def log_mode(self) -> None:
        """Log the mode, once."""
        if not self._announced:
            self._announced = True
            project = f"; project {self.mode.entity}/{self.project}" if self.online else ""
            log.info(f"W&B: {self.mode.name} ({self.mode.why}{project})")

    def give_up(self, error: object, consequence: str) -> None:
        """Continue offline after an error; the first one is logged in one line."""
        with self._lock:
            before, self.gave_up = self.gave_up, True
            if self._mode is not None and self._mode.name == "online":
                self._mode = Mode("offline", "after an error")
        if not before:
            log.info(f"W&B: {one_line(error)}; {consequence}")

    def wait(
        self, done: threading.Event, at_most_s: float | None = None, count_bytes: Callable[[], int] | None = None
    ) -> bool:
        """Wait for an event; returns whether it came before the stall budget was used up.

        Time in which data moves does not count, so a long upload may finish, nor does that in `computing`.
        `count_bytes` returns the bytes moved so far; by default those that W&B's process has read and written.
        """
        count_bytes = count_bytes or _bytes_moved
        last_look, moved = time.monotonic(), count_bytes()
        until = None if at_most_s is None else last_look + at_most_s
        while not done.wait(max(min(LOOK_S, self.stall_budget_s, at_most_s or LOOK_S), 0.01)):
            now, total = time.monotonic(), count_bytes()
            self.waited_s += now - last_look
            if not self._computing and total - moved < UPLOADING_BYTES_PER_S * (now - last_look):
                self.stall_budget_s -= now - last_look
            last_look, moved = now, total
            if self.stall_budget_s <= 0 or (until is not None and now >= until):
                return False
        self.waited_s += time.monotonic() - last_look
        return True

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Do something that needs no network and may take long, such as a digest of 10 GB; one thread at a time."""
        self._computing = True
        try:
            yield
        finally:
            self._computing = False

    def run(self, action: Callable[[], T], count_bytes: Callable[[], int] | None = None) -> T:
        """Return what an action returns or raises; StalledError when the stall budget is used up before it ends."""
        done, future = threading.Event(), _in_thread(action)
        future.add_done_callback(lambda _: done.set())
        if not self.wait(done, count_bytes=count_bytes):
            raise StalledError("it does not answer")
        return future.result()


def choose_mode(wanted: str) -> Mode:
    """Return the mode, and why. Never prompts; takes little more than PROBE_TIMEOUT_S at most."""
    name, why = min(_wishes(wanted), key=lambda wish: PRIVATE_FIRST.index(wish[0]), default=("online", ""))
    return ask() if name == "online" else Mode(name, why)


def ask() -> Mode:
    """Return the mode online, or offline if W&B does not know the key or does not answer."""
    if not _is_http(base_url()):
        return Mode("offline", f"WANDB_BASE_URL={one_line(base_url())} is not an http address")
    key = api_key()
    if key is None:
        return Mode("offline", "no API key; `.venv/bin/wandb login` or WANDB_API_KEY brings runs online")
    try:
        host = urlsplit(base_url()).hostname
        return Mode("online", f"{host} answers", os.environ.get("WANDB_ENTITY") or who_am_i(key))
    except WandbError as error:
        return Mode("offline", str(error))


def _wishes(param: str) -> Iterator[tuple[str, str]]:
    """Yield each mode that was asked for, and where: tracking.wandb, W&B's variables and its settings files."""
    if param != "auto":
        yield param, "tracking.wandb"
    if asked := os.environ.get("WANDB_MODE"):
        mode = {"dryrun": "offline", "run": "online"}.get(asked, asked)
        yield (mode, "WANDB_MODE") if mode in PRIVATE_FIRST else ("offline", f"WANDB_MODE={asked} is not a mode")
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on", "t", "y"):
        yield "disabled", "WANDB_DISABLED"
    for file, settings in _settings():
        if (asked := settings.get("mode", "")) in PRIVATE_FIRST:
            yield asked, f"mode in {file}"


def _settings() -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Yield W&B's settings files of this folder (`wandb offline` writes it) and of the user, with their content."""
    folder = Path(os.environ.get("WANDB_DIR") or ".")
    hidden = (folder / ".wandb").exists()
    for file in (folder / (".wandb" if hidden else "wandb") / "settings", user_settings()):
        parser = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            if parser.read(file) and parser.has_section("default"):
                yield file, parser["default"]


def _is_http(url: str) -> bool:
    try:
        address = urlsplit(url)
    except ValueError:  # such as http://[::1
        return False
    return address.scheme in ("http", "https") and bool(address.hostname)


def base_url() -> str:
    """Return the URL of the W&B host."""
    named = [settings["base_url"] for _, settings in _settings() if settings.get("base_url")]
    return (os.environ.get("WANDB_BASE_URL") or next(iter(named), BASE_URL)).rstrip("/")


def api_key() -> str | None:
    """Return the API key from the environment or netrc."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    address = urlsplit(base_url())  # wandb login writes the port, too; a hand-written entry may lack it
    hosts = (address.netloc, address.hostname or "", *(FORMER_HOSTS if base_url() == BASE_URL else ()))
    return next((key for host in hosts if (key := _in_netrc(host))), None)


def who_am_i(key: str) -> str:
    """Return the default entity of a key's owner. Raises WandbError within PROBE_TIMEOUT_S."""
    host = urlsplit(base_url()).hostname
    request = urllib.request.Request(  # noqa: S310  (the user's own choice of host)
        f"{base_url()}/graphql",
        json.dumps({"query": "query Viewer { viewer { entity } }"}).encode(),
        {"Content-Type": "application/json"},
    )
    credentials = base64.b64encode(f"api:{key}".encode()).decode()
    request.add_unredirected_header("Authorization", f"Basic {credentials}")  # the key is for this host only

    def ask() -> str:
        try:
            with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S) as answer:  # noqa: S310
                entity = ((json.load(answer).get("data") or {}).get("viewer") or {}).get("entity")
        except urllib.error.HTTPError as error:
            refused = f"{host} refuses the key" if error.code in (401, 403) else f"{host} answers with an error"
            raise WandbError(f"{refused} ({error.code})") from None
        except Exception as error:  # whatever a broken server makes urllib and json raise
            raise WandbError(f"{host} does not answer ({one_line(getattr(error, 'reason', error))})") from None
        if not entity:
            raise WandbError(f"{host} does not know the key")
        return str(entity)

    # A thread, because a socket's timeout starts again with each byte, and looking up a name has none.
    try:
        return _in_thread(ask).result(PROBE_TIMEOUT_S)
    except TimeoutError:
        raise WandbError(f"{host} does not answer (within {PROBE_TIMEOUT_S} s)") from None


def one_line(error: object) -> str:
    """Return what an error says, short and on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def as_wandb_error(error: Exception) -> WandbError:
    """Return an error of wandb as one line: StalledError for a timeout, after which W&B is not asked again."""
    stalled = any(text in str(error) for text in ("did not respond in time", "Timed out", "timed out"))
    return StalledError("it does not answer") if stalled else WandbError(one_line(error))


def wandb_processes() -> list[Any]:
    """Return the wandb-core processes that this process started."""
    import psutil

    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "wandb-core" in child.name():
                    found.append(child)
    return found


def _in_thread(action: Callable[[], T]) -> Future[T]:
    """Run an action in a daemon thread: unlike an executor's, Python does not wait for it at exit."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="W&B", daemon=True).start()
    return future


def _bytes_moved() -> int:
    """Return the bytes that W&B's process has read and written, sockets included; 0 if unknown."""
    import psutil

    total = 0
    for process in wandb_processes():
        with contextlib.suppress(psutil.Error, AttributeError, OSError):
            counters = process.io_counters()
            total += counters.read_chars + counters.write_chars
    return total


def _in_netrc(host: str) -> str | None:
    import netrc

    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return None
    return found[2] if found else None
