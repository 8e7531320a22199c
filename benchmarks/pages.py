"""What benchmarks share: where they write, what they tell of themselves, and how a row of figures is summed up."""

from __future__ import annotations

import hashlib
import math
import platform
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import fingerprint


def between(page: str, name: str, text: str) -> str:
    """Return the page with `text` between `<!-- name -->` and `<!-- end name -->`; unchanged without the markers."""
    opening, closing = f"<!-- {name} -->", f"<!-- end {name} -->"
    if opening not in page:
        return page
    head, rest = page.split(opening)
    return f"{head}{opening}\n{text}\n{closing}{rest.split(closing)[1]}"


def write(path: Path, name: str, text: str) -> None:
    """Put `text` into a page."""
    files.write_text(path, between(path.read_text(encoding="utf-8"), name, text))


def add_to_report(figures: Mapping[str, Any]) -> Path:
    """Put entries into reports/bench.json beside those of other benchmarks, and return its path."""
    report = Path(__file__).parents[1] / "reports" / "bench.json"
    before = files.read_json(report) if report.exists() else {}
    files.write_json(report, {**before, **figures})
    return report


# The start of an argument or of a value in it, then a path from / or ~ up to the next `key=` or the end.
ABSOLUTE_PATH = re.compile(r"""(?P<before>^|=)["']?[/~].*?(?P<name>[^/"']*?)["'/]*(?=\s+[A-Za-z_][\w.]*=|$)""", re.S)


def command() -> str:
    """Return the command line of this process for a table: absolute paths become `path/to/<file name>`."""
    arguments = (ABSOLUTE_PATH.sub(r"\g<before>path/to/\g<name>", argument) for argument in sys.argv[1:])
    return " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def code_of(*modules: str) -> str:
    """Return a digest of what modules of the package and all that they import do: other code, other figures."""
    return hashlib.sha256("".join(fingerprint.digests(*modules).values()).encode()).hexdigest()[:16]


def origin(params: Params, sections: Sequence[str], modules: Sequence[str], machine: str) -> dict[str, Any]:
    """Return what decides the figures of a study: command, params, code of the package, machine and versions."""
    import torch  # seconds that a study without it does not need

    return {
        "command": command(),
        # The command has no directories: two files of the same name in different ones are told apart by this.
        "arguments_digest": hashlib.sha256("\0".join(sys.argv[1:]).encode()).hexdigest()[:16],
        "params": {section: getattr(params, section).identity() for section in sections},
        "code": code_of(*modules),
        "machine": machine,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def resumed(path: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return an earlier result of the same origin to go on from, or nothing."""
    earlier: dict[str, Any] = files.read_json(path) if path.exists() else {}
    return earlier if {key: earlier.get(key) for key in origin} == origin else {}


def spread(values: Sequence[float], form: str = ".0f", middle: Any = statistics.median) -> str:
    """Return the middle of some figures with the least and the most."""
    return f"{middle(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def interval(values: Sequence[float], quantile: float) -> tuple[float, float, float]:
    """Return (low, mean, high) of the mean's interval, by a quantile of Student's t with len(values) - 1 degrees."""
    mean = statistics.mean(values)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean, mean + half
