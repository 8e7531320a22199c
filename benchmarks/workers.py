"""Work side by side: on CPUs as many tasks at a time as there are, with one thread each; on a GPU one after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch

from flywheel.models import device as devices


def count() -> int:
    """Return how many tasks run at a time."""
    return len(os.sched_getaffinity(0)) if devices.pick().type == "cpu" else 1


def machine() -> str:
    """Return on what tasks run, as a table tells it."""
    return f"{devices.pick().type}, {os.cpu_count()} CPUs, {count()} at a time, one thread each"


def each(work: Callable[..., Any], data: Any, tasks: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """Yield work(data, *task) of every task, as they end. They begin in order, in processes that get the data once."""
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
