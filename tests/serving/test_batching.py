"""RequestBatcher batches what is queued, limits the queue, and isolates failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flywheel.serving.batching import Overloaded, RequestBatcher


class Model:
    """Double numbers. If blocked, wait for `go` first. An item "bad" fails its batch."""

    def __init__(self, blocked: bool = False) -> None:
        self.batches: list[list[Any]] = []
        self.go = threading.Event()
        if not blocked:
            self.go.set()

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        assert self.go.wait(10)
        self.batches.append(list(items))
        if "bad" in items:
            raise ValueError("a bad item")
        return [item * 2 for item in items]


def made(model: Model, most: int = 8, queued: int = 16) -> RequestBatcher[Any, Any]:
    return RequestBatcher(model, ThreadPoolExecutor(1), most, queued, lambda size: None)


def test_a_single_item_starts_at_once_and_queued_items_form_batches() -> None:
    async def scenario() -> None:
        model = Model(blocked=True)
        batches = made(model)
        first = batches.submit([1])
        await asyncio.sleep(0.05)  # the model is busy with it now
        rest = [batches.submit([number])[0] for number in range(2, 12)]
        assert batches.waiting == 10
        model.go.set()
        assert await asyncio.gather(*first, *rest) == [2 * number for number in range(1, 12)]
        assert [len(batch) for batch in model.batches] == [1, 8, 2]

    asyncio.run(scenario())


def test_items_submitted_at_the_same_time_are_one_batch() -> None:
    async def scenario() -> None:
        model = Model()
        batches = made(model)

        async def submit(number: int) -> int:
            (answer,) = batches.submit([number])
            return int(await answer)

        assert await asyncio.gather(*[submit(number) for number in range(6)]) == [0, 2, 4, 6, 8, 10]
        assert [len(batch) for batch in model.batches] == [6]

    asyncio.run(scenario())


def test_a_bad_item_fails_alone() -> None:
    async def scenario() -> None:
        model = Model()
        results = await asyncio.gather(*made(model).submit([1, "bad", 3]), return_exceptions=True)
        assert results[0] == 2
        assert isinstance(results[1], ValueError)
        assert results[2] == 6

    asyncio.run(scenario())


def test_cancelled_items_are_not_computed() -> None:
    async def scenario() -> None:
        model = Model(blocked=True)
        batches = made(model)
        first = batches.submit([1])
        await asyncio.sleep(0.05)
        gone = [batches.submit([number])[0] for number in range(100, 110)]
        stays = batches.submit([2])
        for answer in gone:
            answer.cancel()
        model.go.set()
        assert await asyncio.gather(*first, *stays) == [2, 4]
        assert all(item < 100 for batch in model.batches for item in batch)

    asyncio.run(scenario())


def test_a_full_queue_refuses_all_items_of_a_request_and_recovers() -> None:
    async def scenario() -> None:
        model = Model(blocked=True)
        batches = made(model, most=4, queued=6)
        first = batches.submit([0])
        await asyncio.sleep(0.05)
        queued = batches.submit([1, 2, 3, 4, 5])
        with pytest.raises(Overloaded, match="5 images are waiting already") as refused:
            batches.submit([6, 7])
        assert 1 <= refused.value.retry_after_s <= 60
        assert batches.waiting == 5
        sixth = batches.submit([6])
        model.go.set()
        assert await asyncio.gather(*first, *queued, *sixth) == [0, 2, 4, 6, 8, 10, 12]
        assert await batches.submit([7])[0] == 14

    asyncio.run(scenario())


def test_an_empty_queue_accepts_a_request_larger_than_itself() -> None:
    async def scenario() -> None:
        answers = made(Model(), most=4, queued=4).submit(list(range(10)))
        assert await asyncio.gather(*answers) == [2 * number for number in range(10)]

    asyncio.run(scenario())
