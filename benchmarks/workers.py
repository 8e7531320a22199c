"""Run the tasks of a study in parallel: on a CPU one process per core with one thread each, on a GPU one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import harness
import torch

from flywheel import files
from flywheel.models import device as devices


def count() -> int:
    """Return how many tasks run at a time."""
    return len(os.sched_getaffinity(0)) if devices.pick().type == "cpu" else 1


def machine() -> str:
    """Describe for a table where tasks run."""
    return f"{devices.pick().type}, {os.cpu_count()} CPUs, {count()} at a time, one thread each"


def complete(
    path: Path,
    origin: Mapping[str, Any],
    keys: Sequence[str],
    tasks: Mapping[Any, Sequence[Any]],
    work: Callable[..., dict[str, Any]],
    data: Any,
) -> dict[str, Any]:
    """Run the tasks whose rows the result file lacks, write the file after each, and return the result.

    `tasks` maps the values of `keys` in a row to the arguments of `work(data, *arguments)`, which returns the row.
    """
    rows: list[dict[str, Any]] = harness.resumed(path, origin).get("rows", [])
    known = {tuple(row[key] for key in keys) for row in rows}
    for row in in_parallel(work, data, [arguments for key, arguments in tasks.items() if key not in known]):
        rows.append(row)
        print({key: value for key, value in row.items() if not isinstance(value, list)}, flush=True)
        files.write_json(path, {**origin, "rows": rows})
    return {**origin, "rows": rows}


def in_parallel(work: Callable[..., Any], data: Any, tasks: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """Yield work(data, *task) of every task as it ends. Each process gets the data once."""
    with ProcessPoolExecutor(count(), get_context("spawn"), initializer=_begin, initargs=(data,)) as pool:
        for done in as_completed([pool.submit(_one, work, task) for task in tasks]):
            yield done.result()


_data: Any


def _begin(data: Any) -> None:
    global _data
    _data = data
    torch.set_num_threads(1)


def _one(work: Callable[..., Any], task: Sequence[Any]) -> Any:
    return work(_data, *task)
