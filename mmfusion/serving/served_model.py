"""A model behind a service: its signatures, their queues, and the threads that call them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mmfusion.errors import DataError, ExportError, told_by
from mmfusion.export import Predictor, example_image
from mmfusion.export.predictor import graph_reason
from mmfusion.serving.batcher import Batcher, Batching, Outcome
from mmfusion.serving.limits import Limits
from mmfusion.serving.metrics import Metrics
from mmfusion.serving.request_error import RequestError
from mmfusion.serving.rows import alike, batch_sizes, check_row, stack, undecodable
from mmfusion.serving.signature import Signature, metadata, signatures_of
from mmfusion.serving.wire import Row

_BLAMING = (
    tf.errors.InvalidArgumentError,
    tf.errors.OutOfRangeError,
    tf.errors.UnimplementedError,
    tf.errors.DataLossError,
    UnicodeDecodeError,
)
"""What TensorFlow raises where it is the input's fault, not the machine's."""


class ServedModel:
    """Answers rows of many requests at a time.

    Args:
        predictor: What `mmfusion.load` gave, over a run or a SavedModel.
        name: Its name in addresses.
        limits: How much it takes on.
        batching: How rows are joined.
        metrics: Where calls are counted.

    Raises:
        ExportError: If its signatures cannot be served.
    """

    def __init__(self, predictor: Predictor, *, name: str, limits: Limits, batching: Batching, metrics: Metrics) -> None:
        self.predictor, self.name, self.limits, self.batching, self.metrics = predictor, name, limits, batching, metrics
        self.signatures = signatures_of(predictor)
        self.metadata = metadata(name, Path(predictor.name), self.signatures)
        self.state = "LOADING"
        self._sizes = batch_sizes(batching.max_batch)
        self._executor = ThreadPoolExecutor(batching.workers, thread_name_prefix="model")
        self._batchers: dict[str, Batcher] = {}
        self._free: asyncio.Semaphore | None = None
        self._fillers = {key: _filler(signature) for key, signature in self.signatures.items()}

    def signature(self, name: str | None) -> Signature:
        """A signature by its name.

        Args:
            name: The name; None or ``serving_default`` is the first.

        Raises:
            RequestError: If there is none of that name.
        """
        if name in (None, "serving_default"):
            return next(iter(self.signatures.values()))
        if name not in self.signatures:
            raise RequestError(
                "no such signature", where="signature_name", expected=" or ".join(self.signatures), found=repr(name)[:100]
            )
        return self.signatures[name]

    def check(self, signature: Signature, rows: Sequence[Row], where: str) -> list[int]:
        """Refuses rows that cannot be answered, before they wait with others; see `check_row`.

        Args:
            signature: What is asked.
            rows: The rows.
            where: What the request calls them, for messages.

        Returns:
            Pixels a row.

        Raises:
            DataError: If a row cannot be answered; it says which.
        """
        weights = []
        for number, row in enumerate(rows):
            with told_by(f"{where}[{number}]"):
                weights.append(check_row(row, signature, self.limits, self.predictor.frames))
        return weights

    async def ask(
        self, signature: Signature, rows: Sequence[Row], weights: Sequence[int], where: str
    ) -> list[dict[str, np.ndarray]]:
        """The answers of a request's rows.

        Args:
            signature: What is asked.
            rows: The rows.
            weights: What `check` said of them.
            where: What the request calls them, for messages.

        Returns:
            Outputs by name, a row.

        Raises:
            RequestError: If the model is not ready, or too many wait.
            DataError: If a row cannot be answered; it says which.
        """
        if self.state != "AVAILABLE":
            raise RequestError("the model is not ready", status=503, retry_after=1, expected="AVAILABLE", found=self.state)
        outcomes: Any = await self._batcher(signature).ask(rows, weights)
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, Exception):
                with told_by(f"{where}[{number}]"):
                    raise outcome
        return outcomes

    def warm_up(self) -> None:
        """Calls every signature with one row and with the most, so that nobody waits for TensorFlow's first calls.

        Raises:
            ExportError: If a signature fails.
        """
        for name, signature in self.signatures.items():
            undecodable(self._fillers[name], signature)
            for size in (1, self._sizes[-1]):
                if self.state != "LOADING":
                    return
                outcome = self.call(signature, [self._fillers[name]] * size)[0]
                if isinstance(outcome, Exception):
                    raise ExportError("a signature fails on a drawn picture", where=f"{self.predictor.name}: {name}") from outcome
        if self.state == "LOADING":
            self.state = "AVAILABLE"

    async def start(self) -> None:
        """Warms up, in a thread of the model's."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self.warm_up)

    async def close(self) -> None:
        """Ends what is under way."""
        self.state = "END"
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))
        self._executor.shutdown(wait=True)

    def call(self, signature: Signature, rows: Sequence[Row]) -> list[Outcome]:
        """Answers rows in one call; where that fails, those that are to blame fail alone.

        Args:
            signature: What is asked.
            rows: The rows of one or more requests, checked.

        Returns:
            A row's outputs by name, or the exception that it met.
        """
        groups = alike(rows, signature)
        if len(groups) > 1:
            return self._call_apart(signature, rows, groups)
        try:
            return list(self._call(signature, rows))
        except _BLAMING as error:
            if len(rows) == 1:
                refused = DataError(
                    "the model refused the input", where=" and ".join(signature.inputs), found=graph_reason(error)
                )
                return [undecodable(rows[0], signature) or refused]
        except tf.errors.OpError as error:
            found = graph_reason(error)
            return [RequestError("the model failed", status=500, where=signature.name, found=found) for _ in rows]
        # A picture whose header is fine and whose rest is not shows only now. Those are told apart by decoding each.
        outcomes: list[Outcome] = [undecodable(row, signature) for row in rows]
        good = [number for number, outcome in enumerate(outcomes) if outcome is None]
        parts = [[number] for number in good] if len(good) == len(rows) else [good] if good else []
        return self._call_apart(signature, rows, parts, outcomes)

    def _call_apart(
        self, signature: Signature, rows: Sequence[Row], parts: list[list[int]], known: list[Outcome] | None = None
    ) -> list[Outcome]:
        """The outcomes of a call for each part of the rows, by their places; and those that are known already."""
        outcomes = list(known or [None] * len(rows))
        for part in parts:
            for number, outcome in zip(part, self.call(signature, [rows[number] for number in part]), strict=True):
                outcomes[number] = outcome
        return outcomes

    def _call(self, signature: Signature, rows: Sequence[Row]) -> list[dict[str, np.ndarray]]:
        size = next(size for size in self._sizes if size >= len(rows))
        tensors = stack(rows, signature, size, self._fillers[signature.name])
        answer = {name: value.numpy() for name, value in signature.function(**tensors).items()}
        return [{name: answer[name][number] for name in signature.outputs} for number in range(len(rows))]

    def _batcher(self, signature: Signature) -> Batcher:
        if self._free is None:
            self._free = asyncio.Semaphore(self.batching.workers)
        if signature.name not in self._batchers:
            batcher = Batcher(
                lambda rows: self.call(signature, rows),
                self.batching,
                max_queue=self.limits.max_queue,
                max_weight=self.limits.max_pixels,
                executor=self._executor,
                free=self._free,
            )
            batcher.observe = self.metrics.watch(signature.name, lambda: batcher.waiting)
            self._batchers[signature.name] = batcher
        return self._batchers[signature.name]


def _filler(signature: Signature) -> Row:
    """A row that every model can answer, and quickly."""
    row: Row = {}
    for key, spec in signature.inputs.items():
        if spec.dtype != tf.string and spec.shape.rank != 2:
            # An option's range holds 1, a seed is any number.
            row[key] = spec.dtype.as_numpy_dtype(1)
            continue
        if spec.dtype != tf.string:
            row[key] = np.ones(1, spec.dtype.as_numpy_dtype) if spec.dtype == tf.bool else np.zeros(1, spec.dtype.as_numpy_dtype)
            continue
        value = example_image(8) if key.endswith("_bytes") else b"a"
        row[key] = [value] if spec.shape.rank == 2 else value
    return row
