"""A sweep for people, from its journal: sweep.json, sweep.csv and the pictures."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel import files
from flywheel.sweep import plots


def write(
    folder: Path,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    searched: Sequence[str],
    logarithmic: Sequence[str],
) -> list[Path]:
    """Write the reports of a sweep into a folder and return their paths. `summary` has sweep.json's other keys."""
    files.write_json(folder / "sweep.json", {**summary, "trials": list(rows)})
    with files.atomic(folder / "sweep.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    title = f"{summary['dataset'].partition('@')[0]}: {len(rows)} trials"
    return [
        folder / "sweep.json",
        folder / "sweep.csv",
        plots.search_history(rows, f"{title}, search history", folder / "sweep_history.png"),
        plots.params_against_accuracy(
            rows, searched, logarithmic, f"{title}, params against accuracy", folder / "sweep_params.png"
        ),
    ]
