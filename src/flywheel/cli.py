"""What every script shares: the same arguments, and errors as one line with an exit code.

Exit codes: 0 done or up to date; 1 an error, said in one line; 75 another run holds the lock; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import logging.handlers
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NoReturn, TextIO

from flywheel import FlywheelError, files
from flywheel.files import Locked
from flywheel.params import Params
from flywheel.params import file as params_file

log = logging.getLogger("flywheel")
LOCKED, INTERRUPTED = 75, 130  # 75 is EX_TEMPFAIL of sysexits.h


class _Parser(argparse.ArgumentParser):
    """A mistake is one line and exit code 1, as every other error."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; scripts/{self.prog} --help lists what there is", file=sys.stderr)
        sys.exit(1)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a script; its help is the script's docstring."""
    result = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--profile", help="profile of params.yaml (default: $PROFILE, else cifar10)")
    result.add_argument(
        "--set",
        action="append",
        help='overrides such as "sweep.trials=4 sweep.epochs=2"; may stand several times (default: $SET)',
    )
    result.add_argument("--params", default="params.yaml", help="the params file (default: params.yaml)")
    return result


def stage_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a stage's script."""
    result = parser(description)
    result.add_argument("--force", action="store_true", help="run though up to date")
    return result


def load_params(arguments: argparse.Namespace) -> Params:
    """Return the params that the command line and the environment ask for."""
    profile = arguments.profile or os.environ.get("PROFILE") or "cifar10"
    overrides = os.environ.get("SET", "") if arguments.set is None else " ".join(arguments.set)
    params = params_file.load(arguments.params, profile, overrides)
    for name in ("store", "reports", "cache"):
        place: Path = getattr(params, name)
        for path in (place, *place.parents):
            with contextlib.suppress(OSError):
                if path.exists() and not path.is_dir():
                    raise FlywheelError(f"paths.{name}: {path} is a file; set paths.{name} to a directory")
    return params


@contextlib.contextmanager
def logged(params: Params, stage: str) -> Iterator[None]:
    """Send what the package logs to stdout, and with the time to the stage's log, where errors go too."""
    path = params.store_paths.log(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    console, file = _Console(sys.stdout), _LogFile(path, encoding="utf-8", delay=True)
    file.setFormatter(_LogFormatter())
    log.setLevel(logging.INFO)
    log.addHandler(console)
    log.addHandler(file)
    try:
        yield
    except (FlywheelError, KeyboardInterrupt, Exception) as error:
        log.removeHandler(console)  # `main` prints errors
        known = {FlywheelError: f"error: {error}", KeyboardInterrupt: "interrupted"}
        log.error(next((text for kind, text in known.items() if isinstance(error, kind)), traceback.format_exc()))
        raise
    finally:
        log.removeHandler(console)
        log.removeHandler(file)
        file.close()


class _RaisingHandler(logging.Handler):
    """A handler whose errors end the command, as those of print do: a full disk, a closed pipe."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        raise


class _Console(_RaisingHandler, logging.StreamHandler[TextIO]):
    """What a person sees: the message alone."""


class _LogFile(_RaisingHandler, logging.handlers.WatchedFileHandler):
    """A log file that may be moved away while it is written."""


class _LogFormatter(logging.Formatter):
    """Each line with its time."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created)
        return "\n".join(f"{at:%Y-%m-%d %H:%M:%S} {line}" for line in record.getMessage().splitlines())


def main(script: Callable[[], None]) -> None:
    """Run a script's main function; an expected error becomes one line on stderr and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show × or └ is no reason to fail
    try:
        script()
    except Locked as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(LOCKED)
    except FlywheelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}{files.advice(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: finished work is kept; run the same command again", file=sys.stderr)
        sys.exit(INTERRUPTED)
