"""Batches formed from whatever is waiting, without ever waiting for more.

`@serve.batch` waits a fixed time for a batch to fill: 0 ms forms no batches under load, 2 ms costs a lone client more
than its image takes. This queue takes all that is there the moment the model is free, so a lone request leaves at
once and under load the batches grow by themselves (measured: docs/serving.md).
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
    """The queue is full; `retry_after_s` tells when room is to be expected."""

    def __init__(self, waiting: int, retry_after_s: int):
        super().__init__(f"{waiting} images are waiting already; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    answer: asyncio.Future[Result]


class Batches(Generic[Item, Result]):
    """Gives items to `compute` in batches, in the order of arrival. Lives on one event loop.

    `compute` takes up to `max_batch_size` items and returns one result each; it runs in `executor`, so the loop goes
    on answering. At most `max_queued` items wait.
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
        self._waiting: list[_Waiting[Item, Result]] = []
        self._worker: asyncio.Task[None] | None = None
        self._items_per_s = 0.0

    @property
    def waiting(self) -> int:
        """How many items wait for the model."""
        return len(self._waiting)

    def submit(self, items: Sequence[Item]) -> list[asyncio.Future[Result]]:
        """Queue items, all or none, and return the futures of their results. Raises Overloaded at once."""
        if self.waiting + len(items) > self._max_queued and self.waiting:
            after_s = math.ceil(self.waiting / self._items_per_s) if self._items_per_s else 1
            raise Overloaded(self.waiting, min(max(after_s, 1), 60))
        loop = asyncio.get_running_loop()
        queued = [_Waiting(item, loop.create_future()) for item in items]
        self._waiting += queued
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return [entry.answer for entry in queued]

    async def _work(self) -> None:
        """Compute until nothing waits. Who hangs up while waiting costs no computation."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            before = -1
            while before < len(self._waiting) < self._max_batch_size:  # those who arrive in this very moment come along
                before = len(self._waiting)
                await asyncio.sleep(0)
            taken, self._waiting = self._waiting[: self._max_batch_size], self._waiting[self._max_batch_size :]
            batch = [entry for entry in taken if not entry.answer.done()]
            if not batch:
                continue
            started = loop.time()
            await self._answer(batch)
            self._items_per_s = len(batch) / max(loop.time() - started, 1e-6)
            self._on_batch(len(batch))

    async def _answer(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        """Compute a batch; if that fails, each item alone, so that one bad item spoils no other's answer."""
        loop = asyncio.get_running_loop()
        try:
            items = [entry.item for entry in batch]
            results = await loop.run_in_executor(self._executor, self._compute, items)
        except Exception as error:
            if len(batch) > 1:
                for entry in batch:
                    await self._answer([entry])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for entry, result in zip(batch, results, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(result)
