"""What all benchmarks share: options, the origin of their figures, result files, and tables in docs/."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import math
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel import files
from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.pipeline import fingerprint

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SET = ("", "overrides of params.yaml, for example data.source")
STUDY: dict[str, tuple[Any, ...]] = {  # options of the studies that train on any data set
    "profile": ("demo", "profile of params.yaml"),
    "set": SET,
    "name": ("", "suffix of the result file (default: the profile)"),
}
# The studies of the digits keep the images and the recipe of their published tables; the demo has smaller images.
DIGITS = (
    "data.image_size=32 recipe.optimizer=muon recipe.learning_rate=0.04 recipe.batch_size=64 recipe.momentum=0.6 "
    "recipe.translate=2 sweep.epochs=8"
)
PUBLISH = (False, "write the result file and its table in docs/")
# The start of an argument or of a value in it, then a path from / or ~ up to the next `key=` or the end.
ABSOLUTE_PATH = re.compile(r"""(?P<before>^|=)["']?[/~].*?(?P<name>[^/"']*?)["'/]*(?=\s+[A-Za-z_][\w.]*=|$)""", re.S)


def options(description: str | None, **given: tuple[Any, ...]) -> argparse.Namespace:
    """Parse the command line. Each option is (default, help) or (default, help, choices).

    A list as the default takes several values, False makes a switch.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, text, *choices) in given.items():
        kind: dict[str, Any] = {"action": "store_true"}
        if default is not False:
            several = isinstance(default, list)
            text += f" (default: {' '.join(map(str, default)) if several else default})" if default else ""
            kind = {"type": type(default[0] if several else default), "nargs": "+" if several else None}
            kind |= {"default": default, "choices": choices[0] if choices else None}
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **kind)
    return parser.parse_args()


def params(profile: str, overrides: str = "") -> Params:
    """Return the params of a profile of params.yaml. Raises ParamsError."""
    return params_file.load(ROOT / "params.yaml", profile, overrides)


def study(options: argparse.Namespace) -> tuple[str, str]:
    """Return the profile and the overrides of a study."""
    return options.profile, f"{DIGITS} {options.set}" if options.profile == "demo" else options.set


def scratch(folder: str) -> str:
    """Return the overrides that put the store and the reports into a folder, without W&B."""
    return f"paths.store={folder}/store paths.reports={folder}/reports tracking.wandb=disabled"


def script(name: str, profile: str, overrides: str, *more: str, quiet: bool = False, code: Path = ROOT) -> None:
    """Run scripts/<name>.py of a checkout, which prints its own errors. Raises SystemExit if it fails."""
    words = [sys.executable, f"scripts/{name}.py", "--profile", profile, "--set", overrides, *more]
    environment = {**os.environ, "PYTHONPATH": str(code / "src")}
    stdout = subprocess.DEVNULL if quiet else None
    if subprocess.run(words, cwd=code, env=environment, stdout=stdout).returncode:
        raise SystemExit(1)


@contextlib.contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """Check out a commit of this repository into a folder for the duration of the block."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def require(program: str, found: object) -> None:
    """Raise SystemExit, before anything is started, if a program was not found."""
    if not found:
        sys.exit(f"error: {program} is missing; apt install {program}")


def free_port() -> int:
    """Return a port that is free on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(profile: str, overrides: str, code: Path = ROOT) -> Iterator[str]:
    """Run the server of a checkout in the background, on the overrides' serve.port; yield its URL."""
    try:
        script("serve", profile, overrides, quiet=True, code=code)
        yield f"http://127.0.0.1:{params(profile, overrides).serve.port}"
    finally:
        script("stop", profile, overrides, quiet=True, code=code)


def command() -> str:
    """Return the command line of this process for a table: absolute paths become `path/to/<file name>`."""
    arguments = (ABSOLUTE_PATH.sub(r"\g<before>path/to/\g<name>", argument) for argument in sys.argv[1:])
    return " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def stamp(*packages: str) -> dict[str, Any]:
    """Return command, machine with its load (which slows a benchmark), and versions."""
    found = {name: importlib.import_module(name).__version__ for name in packages}
    return {
        "command": command(),
        "machine": f"{os.cpu_count()} CPUs, 15-minute load {os.getloadavg()[2]:.1f} including the benchmark",
        "versions": {"python": platform.python_version(), **found},
    }


def code_digest(*modules: str) -> str:
    """Return a digest of modules of the package and all that they import: other code gives other figures."""
    return hashlib.sha256("".join(fingerprint.digests(*modules).values()).encode()).hexdigest()[:16]


def origin(params: Params, sections: Sequence[str], modules: Sequence[str], machine: str) -> dict[str, Any]:
    """Return everything that determines the figures of a study."""
    return {
        **stamp("torch"),
        "machine": machine,
        # The command names no directories: this tells apart two files of the same name.
        "arguments_digest": hashlib.sha256("\0".join(sys.argv[1:]).encode()).hexdigest()[:16],
        "params": {section: getattr(params, section).identity() for section in sections},
        "code": code_digest(*modules),
    }


def resumed(path: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the earlier result in a file if it has the same origin, otherwise an empty one."""
    earlier: dict[str, Any] = files.read_json(path) if path.exists() else {}
    return earlier if {key: earlier.get(key) for key in origin} == origin else {}


def publish(
    name: str, page: str, result: Mapping[str, Any], table: Callable[[Any], str], *, commit: bool = True
) -> None:
    """Print the table and add the result to reports/bench.json.

    With `commit` also write benchmarks/results/<name>.json and the table in docs/<page>.
    """
    report = ROOT / "reports" / "bench.json"
    before = files.read_json(report) if report.exists() else {}
    files.write_json(report, before | ({k: v for k, v in result.items() if k.startswith(name)} or {name: result}))
    print(f"\n{table(result)}\n\nreports: {report}")
    if commit:
        files.write_json(RESULTS / f"{name}.json", result)
        path = ROOT / "docs" / page
        files.write_text(path, with_table(path.read_text(encoding="utf-8"), name, table(result)))


def with_table(page: str, name: str, table: str) -> str:
    """Return the page with `table` between `<!-- name -->` and `<!-- end name -->`; unchanged without the markers."""
    opening, closing = f"<!-- {name} -->", f"<!-- end {name} -->"
    if opening not in page:
        return page
    head, rest = page.split(opening)
    return f"{head}{opening}\n{table}\n{closing}{rest.split(closing)[1]}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (heads, ["---"] * len(heads), *rows))


def note(result: Mapping[str, Any], text: str = "") -> str:
    """Return the paragraph below a table: `text`, then command, machine and versions."""
    found = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = f" on {result['machine']}" if "machine" in result else ""
    measured = f"Measured by `{result['command']}`{machine}; {found}."
    return f"\n\n{text} {measured}" if text else f"\n\n{measured}"


def extent(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the lowest and the highest of figures."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def spread(values: Collection[float], form: str = ".0f", middle: Callable[..., float] = statistics.median) -> str:
    """Return the median (or another middle) of figures with the lowest and the highest.

    For the values of an `extent`, and for an `interval`, these are the same three figures.
    """
    return f"{middle(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return (low, mean, high): the mean with its 95 % interval by Student's t, which one figure leaves open."""
    from scipy.stats import t  # a second that few studies need

    if len(values) == 1:
        return -math.inf, values[0], math.inf
    mean = statistics.mean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean, mean + half
