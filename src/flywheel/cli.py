"""What every script shares: the same arguments, and errors as one line with an exit code.

Exit codes: 0 done or up to date; 1 an error, said in one line; 75 another run holds the lock; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from flywheel import FlywheelError, files
from flywheel.files import Locked
from flywheel.params import Params
from flywheel.params import file as params_file

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
def logged(params: Params, stage: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a line and appends it, with the time, to the stage's log; errors are logged too."""
    path = params.store_paths.log(stage)

    def note(text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write("".join(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n" for line in text.splitlines()))

    def say(text: str) -> None:
        print(text, flush=True)
        note(text)

    try:
        yield say
    except FlywheelError as error:
        note(f"error: {error}")
        raise
    except KeyboardInterrupt:
        note("interrupted")
        raise
    except Exception:
        note(traceback.format_exc())
        raise


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
        print("interrupted: nothing was published; run the same command again", file=sys.stderr)
        sys.exit(INTERRUPTED)
