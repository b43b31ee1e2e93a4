"""How rows are joined: in real threads, with calls that last until the test lets them."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmfusion.errors import ConfigError
from mmfusion.serving import Batcher, Batching, RequestError
from mmfusion.serving.rows import batch_sizes


class Doubling:
    """Doubles numbers; a call lasts until it is let go. A negative number fails, and fails alone."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.go = threading.Semaphore(0)

    def __call__(self, rows):
        numbers = [row["number"] for row in rows]
        self.calls.append(numbers)
        assert self.go.acquire(timeout=20)
        return [ValueError(f"negative: {number}") if number < 0 else 2 * number for number in numbers]


def batcher(call, *, max_queue=100, max_weight=10**9, **options) -> Batcher:
    options = Batching(**{"max_wait": 0.0, **options})
    executor = ThreadPoolExecutor(options.workers)
    return Batcher(
        call, options, max_queue=max_queue, max_weight=max_weight, executor=executor, free=asyncio.Semaphore(options.workers)
    )


def ask(one: Batcher, *numbers: int, weights=None) -> asyncio.Task:
    rows = [{"number": number} for number in numbers]
    return asyncio.create_task(one.ask(rows, weights or [1] * len(rows)))


async def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("never")


def test_what_waits_while_a_call_is_under_way_is_joined():
    async def scenario():
        call = Doubling()
        one = batcher(call, max_batch=4)
        first = ask(one, 1)
        await until(lambda: call.calls)
        others = [ask(one, 2, 3), ask(one, 4), ask(one, 5, 6)]
        await until(lambda: one.waiting == 5)
        call.go.release(3)
        answers = await asyncio.gather(first, *others)
        assert answers == [[2], [4, 6], [8], [10, 12]]
        assert call.calls == [[1], [2, 3, 4, 5], [6]]
        await one.close()

    asyncio.run(scenario())


def test_without_joining_each_request_is_a_call():
    async def scenario():
        call = Doubling()
        call.go.release(9)
        one = batcher(call, max_batch=2, join=False)
        assert await asyncio.gather(ask(one, 1), ask(one, 2, 3, 4), ask(one, 5)) == [[2], [4, 6, 8], [10]]
        assert call.calls == [[1], [2, 3], [4], [5]]

    asyncio.run(scenario())


def test_a_failure_is_its_own_requests_alone():
    async def scenario():
        call = Doubling()
        one = batcher(call)
        first = ask(one, 1)
        await until(lambda: call.calls)
        good, bad = ask(one, 7), ask(one, 8, -1)
        await until(lambda: one.waiting == 3)
        call.go.release(2)
        assert await first == [2] and await good == [14]
        assert [str(outcome) for outcome in await bad] == ["16", "negative: -1"]
        assert call.calls == [[1], [7, 8, -1]]

    asyncio.run(scenario())


def test_an_unexpected_error_of_a_call_reaches_all_who_wait_and_the_next_are_answered():
    async def scenario():
        def call(rows):
            if rows[0]["number"] == 0:
                raise MemoryError("none left")
            return [row["number"] for row in rows]

        one = batcher(call, max_wait=1.0)
        assert [[type(outcome) for outcome in row] for row in await asyncio.gather(ask(one, 0), ask(one, 1))] == [
            [MemoryError]
        ] * 2
        assert await ask(one, 3) == [3]

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_says_when_to_come_back():
    async def scenario():
        call = Doubling()
        one = batcher(call, max_queue=3)
        tasks = [ask(one, 1)]
        await until(lambda: call.calls)
        tasks.append(ask(one, 2, 3))
        await until(lambda: one.waiting == 2)
        with pytest.raises(RequestError, match="too many requests wait: expected at most 3 rows, found 2 and 2 more") as error:
            await ask(one, 4, 5)
        assert (error.value.status, error.value.retry_after) == (503, 1)
        tasks.append(ask(one, 6))
        call.go.release(2)
        assert await asyncio.gather(*tasks) == [[2], [4, 6], [12]]

    asyncio.run(scenario())


def test_who_has_gone_is_not_computed():
    async def scenario():
        call = Doubling()
        one = batcher(call)
        first = ask(one, 1)
        await until(lambda: call.calls)
        gone, stays = ask(one, 2, 3), ask(one, 4)
        await until(lambda: one.waiting == 3)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        call.go.release(2)
        assert await first == [2] and await stays == [8]
        assert call.calls == [[1], [4]]

    asyncio.run(scenario())


def test_heavy_rows_are_not_joined_beyond_the_weight():
    async def scenario():
        call = Doubling()
        call.go.release(9)
        one = batcher(call, max_weight=10)
        assert await ask(one, 1, 2, 3, 4, weights=[6, 4, 5, 50]) == [2, 4, 6, 8]
        assert call.calls == [[1, 2], [3], [4]]

    asyncio.run(scenario())


def test_a_free_worker_waits_for_as_many_as_there_were_and_not_for_one_alone():
    calls: list[int] = []

    def slowly(rows):
        calls.append(len(rows))
        time.sleep(0.05)
        return [2 * row["number"] for row in rows]

    async def scenario():
        one = batcher(slowly, max_wait=5.0)
        for number in range(5):
            assert await asyncio.wait_for(ask(one, number), 4.0) == [2 * number], "a client alone does not wait"
        assert calls == [1] * 5
        calls.clear()

        async def client(number):
            for turn in range(10):
                await asyncio.sleep(0.005 * number)
                assert await ask(one, number + turn) == [2 * (number + turn)]

        await asyncio.gather(*(client(number) for number in range(4)))
        # Once all four were there together, each call waits for all of them, though they come at different times.
        assert sum(calls) == 40 and calls.count(4) >= 8, calls

    asyncio.run(scenario())


def test_two_workers_call_at_a_time():
    async def scenario():
        call = Doubling()
        one = batcher(call, workers=2, max_batch=1)
        tasks = [ask(one, 1), ask(one, 2), ask(one, 3)]
        await until(lambda: len(call.calls) == 2)
        await asyncio.sleep(0.05)
        assert len(call.calls) == 2 and one.waiting == 1
        call.go.release(3)
        assert await asyncio.gather(*tasks) == [[2], [4], [6]]

    asyncio.run(scenario())


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"max_wait": -1.0}, {"workers": 0}])
def test_options_that_cannot_be(options):
    with pytest.raises(ConfigError, match=f"cannot batch so \\[{next(iter(options))}\\]"):
        Batching(**options)


def test_sizes_of_calls_waste_no_more_than_a_third():
    for largest in (1, 2, 3, 20, 64):
        sizes = batch_sizes(largest)
        assert sizes[0] == 1 and sizes[-1] == largest and len(sizes) <= 13
        for rows in range(1, largest + 1):
            size = next(size for size in sizes if size >= rows)
            assert (size - rows) / size < 1 / 3
