"""Arguments, logging and exit codes that all scripts share.

Exit codes: 0 done or up to date; 1 an error, printed in one line; 3 an alarm (monitor --check); 75 another run holds
the lock; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import logging
import logging.handlers
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NoReturn, TextIO

from flywheel import FlywheelError, files
from flywheel.files import Locked
from flywheel.machine import environment, limits
from flywheel.params import Params
from flywheel.params import file as params_file

log = logging.getLogger("flywheel")
OUT_OF_MEMORY = ("allocate memory", "out of memory")  # of torch and CUDA
ALARM, LOCKED, INTERRUPTED = 3, 75, 130  # 75 is EX_TEMPFAIL of sysexits.h
ASKED_FOR = re.compile(r"allocate ([\d.]+ \w+)")  # in the messages of numpy and torch


class _Parser(argparse.ArgumentParser):
    """Print a mistake in one line and exit with 1, as for any other error."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; scripts/{self.prog} --help lists what there is", file=sys.stderr)
        sys.exit(1)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a script, with the script's docstring as its help."""
    result = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--profile", help="profile of params.yaml (default: $PROFILE, else cifar10)")
    result.add_argument(
        "--set",
        action="append",
        help='overrides such as "sweep.trials=4 sweep.epochs=2"; may be repeated (default: $SET)',
    )
    result.add_argument("--params", default="params.yaml", help="the params file (default: params.yaml)")
    return result


def stage_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a stage's script."""
    result = parser(description)
    result.add_argument("--force", action="store_true", help="run even if up to date")
    return result


def overrides(arguments: argparse.Namespace) -> str:
    """Return the overrides of the command line or else of the environment."""
    return os.environ.get("SET", "") if arguments.set is None else " ".join(arguments.set)


def load_params(arguments: argparse.Namespace) -> Params:
    """Return the params for the command line and the environment. Raises ParamsError, FlywheelError."""
    profile = arguments.profile or os.environ.get("PROFILE") or "cifar10"
    params = params_file.load(arguments.params, profile, overrides(arguments))
    environment.bypass_proxies(params.serve.host)
    for name in ("store", "reports", "cache"):
        directory: Path = getattr(params, name)
        for path in (directory, *directory.parents):
            with contextlib.suppress(OSError):
                if path.exists() and not path.is_dir():
                    raise FlywheelError(f"paths.{name}: {path} is a file; set paths.{name} to a directory")
    return params


@contextlib.contextmanager
def logged(params: Params, stage: str, *, needs_torch: bool = True) -> Iterator[None]:
    """Send log messages to stdout and, with their time, to the log file of the stage. The file gets errors, too."""
    if needs_torch:
        for lack in limits.address_space(limits.TORCH_ADDRESS_SPACE, "torch"):
            raise FlywheelError(f"{lack.text}; {lack.fix}")
    path = params.store_paths.log(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    console, file = _Console(sys.stdout), _LogFile(path, encoding="utf-8", delay=True)
    file.setFormatter(_LogFormatter())
    log.setLevel(logging.INFO)
    log.addHandler(console)
    log.addHandler(file)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        log.removeHandler(console)  # `main` prints errors
        with contextlib.suppress(OSError):  # a full disk must not hide the error
            log.error(_described(error))
        raise
    finally:
        log.removeHandler(console)
        log.removeHandler(file)
        file.close()


def _described(error: BaseException) -> str:
    match error:
        case FlywheelError():
            return f"error: {error}"
        case KeyboardInterrupt():
            return "interrupted"
        case BrokenPipeError():
            return "stdout was closed"
    return traceback.format_exc()


class _RaisingHandler(logging.Handler):
    """A handler whose errors (full disk, closed pipe) end the command, as errors of print do."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        raise


class _Console(_RaisingHandler, logging.StreamHandler[TextIO]):
    """Print the message alone."""


class _LogFile(_RaisingHandler, logging.handlers.WatchedFileHandler):
    """Write to a log file that may be moved away meanwhile."""


class _LogFormatter(logging.Formatter):
    """Put the time before each line."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created)
        return "\n".join(f"{at:%Y-%m-%d %H:%M:%S} {line}" for line in record.getMessage().splitlines())


def main(script: Callable[[], None]) -> None:
    """Run a script's main function; print an expected error in one line and exit with its code."""
    environment.prepare()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print ? on a terminal that cannot show × or └
    try:
        try:
            script()
        finally:
            print(end="", flush=True)  # here, where an error is handled, not when Python ends; stdout may be closed
    except FlywheelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(LOCKED if isinstance(error, Locked) else 1)
    except BrokenPipeError:  # the reader of stdout, such as head, has enough
        _drop_what_stdout_refuses()
        sys.exit(0)
    except OSError as error:
        _drop_what_stdout_refuses()
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}{_free(error)}{files.advice(error)}", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        lack = _lack(error)
        if lack is None:
            raise
        print(f"error: {lack}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: finished work is kept; run the same command again", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _drop_what_stdout_refuses() -> None:
    """Keep Python, which flushes stdout once more when it ends, from printing that error and exiting with 120."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lack(error: Exception) -> str | None:
    """Return what this machine lacks in one sentence, if an error of Python or torch says so."""
    if isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY):
        asked = ASKED_FOR.search(str(error))
        more = f", {asked[1]} more were asked for" if asked else ""
        return f"there is not enough memory ({files.human_size(limits.memory_bytes())} free{more}){files.NO_MEMORY}"
    if "can't start new thread" in str(error):
        return f"no more threads can be started{files.ADVICE[errno.EAGAIN]}"
    return None


def _free(error: OSError) -> str:
    """Return how much is free where a disk is full, as the next words of the sentence."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not error.filename:
        return ""
    with contextlib.suppress(OSError):
        return f" ({files.human_size(shutil.disk_usage(Path(error.filename).parent).free)} free)"
    return ""
