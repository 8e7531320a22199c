"""How long a stage takes to say that it is up to date, beside a bare start of Python.

    .venv/bin/python benchmarks/up_to_date.py --profile demo        (after make evaluate PROFILE=demo)

Reads   the profile's receipts, through the scripts themselves
Writes  nothing; prints a table
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = ("data", "sweep", "evaluate", "status")


def seconds(*arguments: str) -> float:
    """Return the wall time of one Python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Time every command and the baseline in turn, several rounds, and print medians and spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="demo", help="a profile whose stages are up to date")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, the commands alternating")
    arguments = parser.parse_args()
    runs = {"python -c pass": ("-c", "pass")}
    runs |= {name: (f"scripts/{name}.py", "--profile", arguments.profile) for name in COMMANDS}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, command in runs.items():
            times[name].append(seconds(*command))
    print(f"{'command':<16}{'median':>9}{'least':>9}{'most':>9}   of {arguments.rounds} rounds")
    for name, found in times.items():
        print(f"{name:<16}{statistics.median(found):>8.2f}s{min(found):>8.2f}s{max(found):>8.2f}s")


if __name__ == "__main__":
    main()
