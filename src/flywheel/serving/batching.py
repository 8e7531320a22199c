"""Batch the queued requests whenever the model is free, without waiting for more to arrive.

`@serve.batch` waits a fixed time for a batch to fill: 0 ms forms no batches under load, 2 ms costs a single client more
than its image takes. This queue hands over everything queued as soon as the model is free: a single request starts at
once, and batches grow with the load (figures: docs/serving.md).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from flywheel.serving import ServingError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Overloaded(ServingError):
    """The queue is full; it should have room again in `retry_after_s`."""

    def __init__(self, waiting: int, retry_after_s: int):
        super().__init__(f"{waiting} images are waiting already; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class _Queued(Generic[Item, Result]):
    item: Item
    result: asyncio.Future[Result]


class RequestBatcher(Generic[Item, Result]):
    """Pass items to `compute` in batches, in their order of arrival. Belongs to one event loop.

    `compute` takes up to `max_batch_size` items and returns one result for each. It runs in `executor`, so the loop
    keeps answering. At most `max_queued` items are queued.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        executor: Executor,
        max_batch_size: int,
        max_queued: int,
        on_batch: Callable[[int], object],
    ):
        self._compute, self._executor = compute, executor
        self._max_batch_size, self._max_queued = max_batch_size, max_queued
        self._on_batch = on_batch
        self._waiting: list[_Queued[Item, Result]] = []
        self._worker: asyncio.Task[None] | None = None
        self._items_per_s = 0.0

    @property
    def waiting(self) -> int:
        """The number of queued items."""
        return len(self._waiting)

    def submit(self, items: Sequence[Item]) -> list[asyncio.Future[Result]]:
        """Queue items, all or none, and return the futures of their results. Raises Overloaded at once."""
        if self.waiting + len(items) > self._max_queued and self.waiting:
            after_s = math.ceil(self.waiting / self._items_per_s) if self._items_per_s else 1
            raise Overloaded(self.waiting, min(max(after_s, 1), 60))
        loop = asyncio.get_running_loop()
        queued = [_Queued(item, loop.create_future()) for item in items]
        self._waiting += queued
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return [entry.result for entry in queued]

    async def _work(self) -> None:
        """Compute until the queue is empty. Requests cancelled in the queue are skipped."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            before = -1
            while before < len(self._waiting) < self._max_batch_size:  # let the loop read requests that just arrived
                before = len(self._waiting)
                await asyncio.sleep(0)
            taken, self._waiting = self._waiting[: self._max_batch_size], self._waiting[self._max_batch_size :]
            batch = [entry for entry in taken if not entry.result.done()]
            if not batch:
                continue
            started = loop.time()
            await self._compute_batch(batch)
            self._items_per_s = len(batch) / max(loop.time() - started, 1e-6)
            self._on_batch(len(batch))

    async def _compute_batch(self, batch: Sequence[_Queued[Item, Result]]) -> None:
        """Compute a batch. If that fails, compute each item alone, so that one bad item fails no other."""
        loop = asyncio.get_running_loop()
        try:
            items = [entry.item for entry in batch]
            results = await loop.run_in_executor(self._executor, self._compute, items)
        except Exception as error:
            if len(batch) > 1:
                for entry in batch:
                    await self._compute_batch([entry])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        for entry, result in zip(batch, results, strict=True):
            if not entry.result.done():
                entry.result.set_result(result)
