"""How one output of an export compares with the model's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Comparison(NamedTuple):
    """How one output of an export compares.

    Attributes:
        output: ``signature/output``.
        shape: Its shape.
        difference: Largest absolute difference; for strings, the number of different ones. Where `output` says another measure,
            that.
        tolerance: The largest that passes.
    """

    output: str
    shape: tuple[int, ...]
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance


def compared(name: str, expected: np.ndarray, found: np.ndarray, tolerance: float) -> Comparison:
    """Compares two arrays, number by number or string by string.

    Args:
        name: ``signature/output``.
        expected: What the model says.
        found: What the export says.
        tolerance: The largest absolute difference of numbers that passes; strings must be equal.

    Example:
        >>> import numpy as np
        >>> from mmfusion.export.comparison import compared
        >>> compared("match/score", np.array([0.5]), np.array([0.75]), 1e-4).passed
        False
    """
    if expected.shape != found.shape:
        return Comparison(name, found.shape, float("inf"), tolerance)
    if expected.dtype.kind in "US":
        return Comparison(name, found.shape, float(np.sum(expected != found)), 0.0)
    expected, found = expected.astype("float64"), found.astype("float64")
    with np.errstate(invalid="ignore"):
        # Where both are -inf, the score of no caption, they are equal.
        difference = np.where(expected == found, 0.0, np.abs(expected - found))
    return Comparison(name, found.shape, float(np.max(difference, initial=0.0)), tolerance)
