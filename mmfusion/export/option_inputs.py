"""Options of decoding as a person names them, as inputs of an export's ``caption_sample`` and ``caption_beam``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mmfusion.errors import ExportError


class _Signature(NamedTuple):
    name: str
    width: str
    numbers: dict[str, Any]


_OF_METHOD = {
    "sample": _Signature(
        "caption_sample", "num_samples", {"temperature": np.float32(1), "top_p": np.float32(1), "max_tokens": np.int32(0)}
    ),
    "beam": _Signature(
        "caption_beam", "beam_size", {"length_penalty": np.float32(1), "min_tokens": np.int32(0), "max_tokens": np.int32(0)}
    ),
}


def option_inputs(
    options: Mapping[str, Any], known: Mapping[str, int], count: int, where: str
) -> tuple[str, dict[str, np.ndarray], np.ndarray]:
    """The signature that writes so, the numbers that it takes for a whole call, and a seed for each picture.

    Args:
        options: ``method``, ``"sample"`` or ``"beam"``, and its options; what is not said is 1, or as long as there is room.
        known: What the export says of its captions: ``max_tokens``, ``num_samples``, ``beam_size``.
        count: Pictures.
        where: The export, for messages.

    Raises:
        ExportError: If these captions take no such option, or another number of captions than they have.

    Example:
        >>> from mmfusion.export.option_inputs import option_inputs
        >>> known = {"max_tokens": 9, "num_samples": 2, "beam_size": 3}
        >>> name, numbers, seeds = option_inputs({"method": "sample", "top_p": 0.5, "seeds": 7}, known, 2, "an export")
        >>> name, {key: value.item() for key, value in numbers.items()}, seeds.tolist()
        ('caption_sample', {'temperature': 1.0, 'top_p': 0.5, 'max_tokens': 9}, [7, 8])
    """
    options = dict(options)
    method = options.pop("method", "beam")
    if method not in _OF_METHOD:
        raise ExportError("an export does not write so", where=where, expected="method sample or beam", found=repr(method))
    name, width, numbers = _OF_METHOD[method]
    numbers = {**numbers, "max_tokens": np.int32(known["max_tokens"])}
    if options.pop(width, known[width]) != known[width]:
        raise ExportError("the export writes another number of captions", where=where, expected=f"{width}={known[width]}")
    seeds = options.pop("seeds", 0) if method == "sample" else 0
    unknown = sorted(set(options) - set(numbers))
    if unknown:
        taken = [*numbers, "seeds"] if method == "sample" else [*numbers]
        raise ExportError(
            f"{name} does not take that", where=where, expected=", ".join(taken), found=", ".join(unknown), fix="ask the run"
        )
    given = {key: _cast(key, options.get(key, value), value.dtype, (), where) for key, value in numbers.items()}
    return name, given, seeds_of(seeds, count, where)


def seeds_of(seeds: Any, count: int, where: str) -> np.ndarray:
    """A seed of each example: those given, or one number and those that follow it.

    Args:
        seeds: ``int[count]`` or one number.
        count: How many examples.
        where: For errors.

    Returns:
        ``int32[count]``.

    Raises:
        ExportError: If they are not so many, or no integers.

    Example:
        >>> from mmfusion.export.option_inputs import seeds_of
        >>> seeds_of(7, 3, "a model").tolist()
        [7, 8, 9]
    """
    if not np.ndim(seeds):
        seeds = _cast("seeds", seeds, np.dtype("int32"), (), where) + np.arange(count, dtype="int32")
    return _cast("seeds", seeds, np.dtype("int32"), (count,), where)


def _cast(name: str, value: Any, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    found = np.asarray(value)
    if found.shape != shape or found.dtype.kind not in ("iuf" if dtype.kind == "f" else "iu"):
        expected = f"{dtype.name}{list(shape)}" if shape else f"one {dtype.name}"
        raise ExportError("not what an option can be", where=f"{where}: {name}", expected=expected, found=repr(value)[:80])
    return found.astype(dtype)
