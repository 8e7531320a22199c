"""Play the whole story with the commands that people type: drift, alarm, labels, retraining; then tell it."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import requests

from flywheel import FlywheelError, files
from flywheel.params import RETRAINED_NAME, Params
from flywheel.pipeline import server_record
from flywheel.registry import Registry
from flywheel.retraining.report import RetrainReport

if TYPE_CHECKING:
    from flywheel.commands.demo_story import Part

log = logging.getLogger(__name__)

LOAD_S = 30  # beyond serve.poll_s, for the server to load the promoted model
PAUSE_S = 0.2  # between the requests that are sent while production changes
NEXT = """
what to type next:
  make serve PROFILE={profile}                   # then open http://127.0.0.1:8000 and send it a picture of a digit
  make label collect retrain PROFILE={profile}   # label some of the images that the server kept, and train on them
  make evaluate PROFILE=laptop SET="data.name=pets data.source=folder data.path=path/to/pets"   # use your own images"""


@dataclass(frozen=True)
class Step:
    """A command of the demo. A `part` is the title of the traffic that a simulation sends."""

    name: str
    about: str
    overrides: str = ""
    part: str = ""


STEPS = (
    Step("data", "build the data set and its splits"),
    Step("sweep", "search for the best model"),
    Step("evaluate", "judge it on test images; promote it to production"),
    Step("serve", "answer requests in the background"),
    Step("simulate", "traffic like the training images; nobody labels it", "simulate.truth=none simulate.drift=none",
         "as in training"),
    Step("monitor", "compare production with the test images; this reads no label"),
    Step("simulate", "production drifts: rotated, noisy images", "simulate.truth=none", "drifted"),
    Step("monitor", "again"),
    Step("simulate", "an application learns the truth of 300 requests and sends it to the server",
         "simulate.truth=api simulate.requests=300"),
    Step("collect", "publish these labels as feedback"),
    Step("retrain", "train on them; the gate decides whether the result replaces the production model"),
    Step("simulate", "the same drifted traffic", part="drifted, after retraining"),
    Step("monitor", "once more"),
)  # fmt: skip


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; handled like Ctrl-C."""


class DemoError(FlywheelError):
    """A command of the demo failed; its own message is above."""


def run(params: Params, arguments: Sequence[str], overrides: str) -> None:
    """Run every command once, and stop the server in any case.

    `arguments` go to every script, `overrides` are those of the user. Raises DemoError when a command fails,
    KeyboardInterrupt at Ctrl-C and SIGTERM.
    """
    from flywheel.commands import demo_story

    seconds: list[tuple[str, float]] = []
    parts: list[Part] = []
    registry, sent = Registry(params.store), Counter[str]()
    before, between, part = _retrained(params), (0.0, 0.0), ""
    continued = registry.aliases(params.registered_model).get("production", "").startswith(f"{RETRAINED_NAME}@")
    with _sigterm_interrupts():
        try:
            for step in STEPS:
                shown = f' SET="{step.overrides}"' if step.overrides else ""
                log.info(f"\n# {step.about}\n$ make {step.name} PROFILE={params.profile}{shown}")
                started = time.time()
                with _requests(params, sent) if step.name == "retrain" else contextlib.nullcontext():
                    _script(step.name, [*arguments, "--set", f"{step.overrides} {overrides}"])
                    if step.name == "retrain":
                        _wait_for_production(params)
                seconds.append((step.name, time.time() - started))
                if step.part:
                    part, between = step.part, (started, time.time())
                elif step.name == "monitor":
                    parts.append(demo_story.measure(params, registry, part, between))
        finally:
            _script("stop", [*arguments, "--set", overrides])
    log.info("\n" + "   ".join(f"{name} {s:.0f} s" for name, s in seconds) + "\n")
    retrained = _retrained(params)
    new = retrained if retrained and (before is None or before.candidate != retrained.candidate) else None
    for line in demo_story.table(parts, new):
        log.info(line)
    log.info(f"requests while make retrain ran and production changed: {sent['sent']}, failed: {sent['failed']}")
    if continued:
        log.info(f"an earlier demo had retrained on these images; remove {params.store} for the story from its start")
    log.info(f"\npicture: {demo_story.draw(parts, new, params.reports / 'demo.png')}")
    _script("report", [*arguments, "--set", overrides])
    log.info(NEXT.format(profile=params.profile))


@contextlib.contextmanager
def _requests(params: Params, sent: Counter[str]) -> Iterator[None]:
    """Send one request after another while the context is open, and count those `sent` and `failed`."""
    from flywheel.data import dataset
    from flywheel.pipeline import stage
    from flywheel.simulation.client import Client, NoAnswer

    done = threading.Event()

    def send() -> None:
        served, registry = server_record.read(params), Registry(params.store)
        assert served is not None
        opened = dataset.open_directory(registry.open(stage.dataset_of(params, registry)))
        client = Client(served.url, params.simulate.model_copy(update={"max_attempts": 1}))
        index = int(opened.traffic("data")[0])
        while not done.wait(PAUSE_S):
            answer = client.predict(index, opened.images[index], opened.class_names)
            sent.update(sent=1, failed=isinstance(answer, NoAnswer))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _script(name: str, arguments: Sequence[str]) -> None:
    """Run a script to its end. At an interrupt, wait for the script to end, too."""
    process = subprocess.Popen([sys.executable, f"scripts/{name}.py", *arguments])
    try:
        code = process.wait()
    except Terminated:  # SIGTERM reached only this process
        process.terminate()
        process.wait()
        raise
    except KeyboardInterrupt:  # Ctrl-C reached the script as well
        process.wait()
        raise
    if code:
        raise DemoError(f"make {name} failed (exit {code}); the reason is above")


def _wait_for_production(params: Params) -> None:
    """Wait until the server answers with the model in production."""
    served = server_record.read(params)
    wanted = Registry(params.store).aliases(params.registered_model).get("production")
    until = time.monotonic() + params.serve.poll_s + LOAD_S
    while served is not None and time.monotonic() < until:
        with contextlib.suppress(requests.RequestException, ValueError):
            if requests.get(f"{served.url}/model", timeout=5).json().get("ref") == wanted:
                return
        time.sleep(0.1)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _retrained(params: Params) -> RetrainReport | None:
    with contextlib.suppress(OSError, ValueError):
        return RetrainReport.model_validate(files.read_json(params.reports / "retrain.json"))
    return None
