"""Asks a runtime whose graphs have one batch size about any number of examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mmfusion.export.runtime import Runtime


class FixedBatch:
    """Cuts a batch into parts of one size, the last filled up with copies of its last row.

    Args:
        runtime: The runtime.
        size: Its batch size.

    Example:
        >>> import numpy as np
        >>> from mmfusion.export.fixed_batch import FixedBatch
        >>> class Doubling:
        ...     def run(self, function, inputs):
        ...         assert len(inputs["x"]) == 2
        ...         return {"y": 2 * inputs["x"]}
        >>> FixedBatch(Doubling(), 2).run("double", {"x": np.arange(3)})["y"].tolist()
        [0, 2, 4]
    """

    def __init__(self, runtime: Runtime, size: int) -> None:
        self._runtime = runtime
        self._size = size

    def run(self, function: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `Runtime.run`; scalars, the same for all examples, go to and come from every part."""
        count = max(len(value) for value in inputs.values() if np.ndim(value))
        parts = []
        for start in range(0, count, self._size):
            rows = np.minimum(np.arange(start, start + self._size), count - 1)
            parts.append(
                self._runtime.run(function, {name: value[rows] if np.ndim(value) else value for name, value in inputs.items()})
            )
        return {
            name: np.concatenate([part[name] for part in parts])[:count] if np.ndim(value) else value
            for name, value in parts[0].items()
        }
