"""How one output of an export compares with the model's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Of coarser numbers: what a score or probability may differ by, and how far from 1 the cosine of two embeddings may be.
_OF_SCORES, _OF_COSINES = 0.1, 0.01


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


def loosely_compared(name: str, expected: np.ndarray, found: np.ndarray, tolerance: float | None = None) -> Comparison:
    """Compares what coarser numbers say with what the model says: by what the answers are used for.

    Args:
        name: ``signature/output``.
        expected: What the model says.
        found: What it says in coarser numbers.
        tolerance: Of embeddings, the largest distance of their cosines from 1, by default 0.01. Of logits, the largest difference
            of the probabilities that they make, and of other numbers the largest difference, by default 0.1. Of strings and
            captions' tokens, the share of rows that may differ: all may, and their share is said.

    Example:
        >>> import numpy as np
        >>> from mmfusion.export.comparison import loosely_compared
        >>> row = loosely_compared("encode_text/embedding", np.array([[0.6, 0.8]]), np.array([[0.61, 0.79]]))
        >>> row.output, row.passed, row.difference < 1e-3
        ('encode_text/embedding (1 - cosine)', True, True)
    """
    if expected.shape != found.shape:
        return Comparison(name, found.shape, float("inf"), tolerance or _OF_SCORES)
    if expected.dtype.kind in "US" or name.endswith("/token_ids"):
        different = (expected != found).reshape(len(expected), -1)
        share = float(np.mean(np.any(different, axis=-1)))
        what = "caption" if name.endswith("/token_ids") else name.rpartition("/")[2]
        return Comparison(f"{name} (share of other {what}s)", found.shape, share, 1.0)
    if name.endswith("/logits"):
        # A cosine of logits says little: what is common to all tokens, and changes no text, would decide it.
        return compared(f"{name} (probabilities)", _softmax(expected), _softmax(found), tolerance or _OF_SCORES)
    if not name.endswith("/embedding"):
        return compared(name, expected, found, tolerance or _OF_SCORES)
    lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1)
    cosine = np.sum(expected.astype("float64") * found, axis=-1) / lengths
    return Comparison(f"{name} (1 - cosine)", found.shape, 1.0 - float(np.min(cosine)), tolerance or _OF_COSINES)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return powers / np.sum(powers, axis=-1, keepdims=True)
