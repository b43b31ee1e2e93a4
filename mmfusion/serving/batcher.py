"""Joins rows of several requests to one call of a signature."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import count

from mmfusion.errors import ConfigError
from mmfusion.serving.request_error import RequestError
from mmfusion.serving.wire import Row

Outcome = object
"""A row's answer, or the exception that it met."""

Call = Callable[[Sequence[Row]], Sequence[Outcome]]


@dataclass(frozen=True)
class Batching:
    """How rows are joined.

    Args:
        max_batch: Rows of a call at most. Default 32.
        max_wait: Seconds for which a free worker waits for more rows at most. It does not wait where none can be expected: for
            no more rows than were under way together lately. Default 0.005.
        join: Whether rows of several requests are joined at all. Default True.
        workers: Threads that call the model. Default 1.

    Raises:
        ConfigError: If one of them cannot be.
    """

    max_batch: int = 32
    max_wait: float = 0.005
    join: bool = True
    workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (("max_batch", 1), ("max_wait", 0), ("workers", 1)):
            if not getattr(self, name) >= least:
                raise ConfigError("cannot batch so", where=name, expected=f"at least {least}", found=getattr(self, name))


@dataclass
class _Waiting:
    row: Row
    weight: int
    request: int
    outcome: asyncio.Future[Outcome]


class Batcher:
    """The queue of one signature.

    Rows wait in their order. When a worker is free, the first of them are taken, as many as there are up to `Batching.max_batch`
    and `max_weight`; each request gets the outcomes of its own rows.

    Args:
        call: Answers rows, in a thread: an outcome a row, exceptions among them.
        options: How rows are joined.
        max_queue: Rows that may wait.
        max_weight: What the rows of one call may weigh together, unless one alone weighs more.
        executor: Whose threads make the calls.
        free: Counts the threads that are free, of all signatures together.
        observe: Is told the rows of each call. Default: nobody is.

    Example:
        >>> import asyncio
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> sizes = []
        >>> async def two_requests():
        ...     batcher = Batcher(
        ...         lambda rows: [row["n"] * 2 for row in rows], Batching(max_wait=1.0), max_queue=8, max_weight=100,
        ...         executor=ThreadPoolExecutor(1), free=asyncio.Semaphore(1), observe=sizes.append,
        ...     )
        ...     return await asyncio.gather(batcher.ask([{"n": 1}, {"n": 2}], [1, 1]), batcher.ask([{"n": 3}], [1]))
        >>> asyncio.run(two_requests()), sizes
        ([[2, 4], [6]], [3])
    """

    def __init__(
        self,
        call: Call,
        options: Batching,
        *,
        max_queue: int,
        max_weight: int,
        executor: Executor,
        free: asyncio.Semaphore,
        observe: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.call, self.options, self.max_queue, self.max_weight = call, options, max_queue, max_weight
        self.executor, self.free, self.observe = executor, free, observe
        self._queue: deque[_Waiting] = deque()
        self._requests = count()
        self._running = 0
        self._together = 0
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        return len(self._queue)

    async def ask(self, rows: Sequence[Row], weights: Sequence[int]) -> list[Outcome]:
        """The outcomes of a request's rows.

        Args:
            rows: The rows.
            weights: What each weighs.

        Returns:
            An outcome a row. Once one has failed, the others are given up: those that are not there yet are None.

        Raises:
            RequestError: If the queue is full.
        """
        if len(self._queue) + len(rows) > self.max_queue:
            raise RequestError(
                "too many requests wait", status=503, retry_after=1, expected=f"at most {self.max_queue} rows",
                found=f"{len(self._queue)} and {len(rows)} more", fix="ask again later",
            )  # fmt: skip
        loop, request = asyncio.get_running_loop(), next(self._requests)
        own = [_Waiting(row, weight, request, loop.create_future()) for row, weight in zip(rows, weights, strict=True)]
        self._queue.extend(own)
        self._together = max(self._together, self._running + len(self._queue))
        self._more.set()
        if self._task is None:
            self._task = loop.create_task(self._serve())
        futures = [waiting.outcome for waiting in own]
        try:
            await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
            return [(future.exception() or future.result()) if future.done() else None for future in futures]
        finally:
            for future in futures:
                # Where one failed or the request ran out of time, nobody waits for the others any more.
                future.cancel()

    async def close(self) -> None:
        """Ends the calls that are under way, and takes no more."""
        if self._task is not None:
            self._task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _serve(self) -> None:
        while True:
            while not self._queue:
                self._more.clear()
                await self._more.wait()
            await self.free.acquire()
            try:
                if self.options.join:
                    await self._wait_for_more()
                batch = self._take()
            except BaseException:
                self.free.release()
                raise
            if not batch:
                self.free.release()
                continue
            self._running += len(batch)
            task = asyncio.get_running_loop().create_task(self._answer(batch))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _wait_for_more(self) -> None:
        # Who waits for an answer sends nothing meanwhile: no more can come than were there together, less those being answered.
        expected = min(self.options.max_batch, self._together - self._running)
        self._together = self._running + len(self._queue)
        end = time.monotonic() + self.options.max_wait
        while len(self._queue) < expected and (left := end - time.monotonic()) > 0:
            self._more.clear()
            try:
                await asyncio.wait_for(self._more.wait(), left)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        weight = 0
        while self._queue and len(batch) < self.options.max_batch:
            first = self._queue[0]
            if first.outcome.done():
                self._queue.popleft()
                continue
            other = bool(batch) and not self.options.join and first.request != batch[0].request
            if other or (batch and weight + first.weight > self.max_weight):
                break
            weight += first.weight
            batch.append(self._queue.popleft())
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        try:
            self.observe(len(batch))
            rows = [waiting.row for waiting in batch]
            outcomes = await asyncio.get_running_loop().run_in_executor(self.executor, self.call, rows)
        except Exception as error:
            outcomes = [error] * len(batch)
        finally:
            self._running -= len(batch)
            self.free.release()
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.outcome.done():
                continue
            if isinstance(outcome, BaseException):
                waiting.outcome.set_exception(outcome)
            else:
                waiting.outcome.set_result(outcome)
