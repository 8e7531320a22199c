"""Run the whole loop once with the commands that people type, then print the accuracies and write the report."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TypeVar

import requests
from pydantic import BaseModel

from flywheel import FlywheelError, files
from flywheel.params import Params
from flywheel.pipeline import server_record
from flywheel.registry import Registry
from flywheel.retraining.report import RetrainReport
from flywheel.simulation.report import SimulationReport

log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=BaseModel)

COMMANDS = ("data", "sweep", "evaluate", "serve", "simulate", "retrain", "simulate")
LOAD_S = 30  # beyond serve.poll_s, for the server to load the promoted model


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; handled like Ctrl-C."""


class DemoError(FlywheelError):
    """A command of the demo failed; its own message is above."""


def run(params: Params, arguments: Sequence[str]) -> None:
    """Run every command once, and stop the server in any case. `arguments` go to every script.

    Raises DemoError when a command fails, KeyboardInterrupt at Ctrl-C and SIGTERM.
    """
    seconds: list[tuple[str, float]] = []
    before = _report(params, "retrain", RetrainReport)
    with _sigterm_interrupts():
        try:
            for number, name in enumerate(COMMANDS):
                if number == len(COMMANDS) - 1:
                    _wait_for_production(params)
                log.info(f"\n$ make {name} PROFILE={params.profile}")
                started = time.monotonic()
                _script(name, arguments)
                seconds.append((name, time.monotonic() - started))
        finally:
            _script("stop", arguments)
    log.info("\n" + "   ".join(f"{name} {s:.0f} s" for name, s in seconds))
    retrained, simulated = _report(params, "retrain", RetrainReport), _report(params, "simulation", SimulationReport)
    if retrained and simulated and (before is None or before.candidate != retrained.candidate):
        for line in table(Registry(params.store), retrained, simulated):
            log.info(line)
    log.info("")
    _script("report", arguments)


def table(registry: Registry, retrained: RetrainReport, simulated: SimulationReport) -> Iterator[str]:
    """Yield the accuracy before and after retraining and of other arms, with the labels that each needs."""
    candidate = registry.label(retrained.candidate)
    yield ""
    yield f"{'accuracy':<42}{'labels':>8}{'test':>10}{'holdout':>10}"
    for (name, labels, scores), model in zip_longest(retrained.rows(), (registry.label(retrained.parent), candidate)):
        accuracies = (scores.test.accuracy, scores.holdout.accuracy)
        title = f"{name:<19}{model or 'instead, in as many steps'}"
        yield f"{title:<42}{'–' if labels is None else labels:>8}" + "".join(
            f"{'–' if value is None else f'{value:.1%}':>10}" for value in accuracies
        )
    decision = "in production" if retrained.promoted else "not promoted"
    yield f"{candidate} is {decision}: {'; '.join(retrained.reasons)}"
    models = ", ".join(simulated.models)
    yield f"served last: {simulated.accuracy:.1%} of {simulated.n:,} simulated requests, by {models}"
    yield (
        f"holdout: production images that no model trains on; {retrained.hard_examples:,} of the labelled images were "
        "answered wrongly, and to know which, all must be labelled"
    )


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


def _report(params: Params, name: str, model: type[Model]) -> Model | None:
    with contextlib.suppress(OSError, ValueError):
        return model.model_validate(files.read_json(params.reports / f"{name}.json"))
    return None
