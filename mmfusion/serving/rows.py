"""Rows on their way into a batch: what can be told of one alone is checked here, before it meets others."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mmfusion.data import decode_image
from mmfusion.errors import DataError
from mmfusion.serving.image_header import not_readable, read_header
from mmfusion.serving.limits import Limits
from mmfusion.serving.signature import Signature
from mmfusion.serving.wire import Row


def check_row(row: Row, signature: Signature, limits: Limits, frames: int) -> int:
    """Checks a row's pictures by their headers, its texts and its tokens.

    Args:
        row: The row.
        signature: What it is for.
        limits: How large pictures and texts may be.
        frames: Pictures that an example has room for.

    Returns:
        Pixels of its pictures.

    Raises:
        DataError: If something in it is no picture, no text, too large or too long.
    """
    pixels = 0
    lengths = {}
    for key, spec in signature.inputs.items():
        value = row[key]
        if spec.dtype != tf.string:
            lengths[key] = np.size(value)
        elif key.endswith("_bytes"):
            pixels += _check_pictures(value if isinstance(value, list) else [value], limits, frames)
        else:
            for text in value if isinstance(value, list) else [value]:
                _check_text(text, key, limits)
    if len(set(lengths.values())) > 1:
        raise DataError("inputs of different lengths", where=" and ".join(lengths), expected="one shape", found=lengths)
    return pixels


def _check_pictures(contents: list[bytes], limits: Limits, frames: int) -> int:
    # Where an example holds several pictures, empty ones stand for those that it has not.
    given = [content for content in contents if content or len(contents) == 1]
    if not given or len(contents) > max(frames, 1):
        raise DataError(
            "another number of pictures than the model takes", where="image_bytes", expected=f"1 to {frames}", found=len(given)
        )
    pixels = 0
    for content in given:
        header = read_header(content)
        pixels += header.pixels
        if pixels > limits.max_pixels:
            raise DataError(
                "a picture with too many pixels", where="image_bytes", expected=f"at most {limits.max_pixels:,}",
                found=f"{header.format}, {header.width} x {header.height}"
                + (f", {pixels:,} together" if pixels > header.width * header.height else ""),
                fix="send a smaller one",
            )  # fmt: skip
    return pixels


def _check_text(content: bytes, key: str, limits: Limits) -> None:
    try:
        length = len(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            "a text is not UTF-8", where=key, expected="UTF-8", found=f"byte {content[error.start]:#04x} at {error.start}"
        ) from None
    if length > limits.max_text:
        raise DataError("a text is too long", where=key, expected=f"at most {limits.max_text:,} characters", found=f"{length:,}")


def undecodable(row: Row, signature: Signature) -> DataError | None:
    """What is wrong with a row's pictures, by decoding them; None where nothing is.

    Args:
        row: The row, checked.
        signature: What it is for.
    """
    for key in signature.inputs:
        if not key.endswith("_bytes"):
            continue
        for content in row[key] if isinstance(row[key], list) else [row[key]]:
            try:
                if content:
                    _decode()(tf.constant(content))
            except (tf.errors.OpError, UnicodeDecodeError):
                return not_readable(content)
    return None


@functools.cache
def _decode() -> Any:
    # In a graph: TensorFlow 2.21 loses some 7 KB for each picture that it cannot decode eagerly, and a service meets many.
    specs = [tf.TensorSpec([], tf.string)]
    return tf.function(lambda content: tf.size(decode_image(content)), input_signature=specs, autograph=False)


def stack(rows: Sequence[Row], signature: Signature, size: int, filler: Row) -> dict[str, tf.Tensor]:
    """Rows as the tensors of one call.

    Args:
        rows: The rows.
        signature: What they are for.
        size: Rows that the call is to have, at least as many as there are.
        filler: Stands in the rows that are missing.

    Returns:
        Tensors by input. Shorter rows are filled up with what masks hide: id 0, False, no picture.
    """
    filled = [*rows, *[filler] * (size - len(rows))]
    return {key: _stacked([row[key] for row in filled], spec) for key, spec in signature.inputs.items()}


def _stacked(values: list[Any], spec: tf.TensorSpec) -> tf.Tensor:
    if not spec.shape.rank:
        return tf.constant(values[0], spec.dtype)
    if spec.shape.rank == 1:
        return tf.constant(values, spec.dtype)
    longest = max(map(len, values))
    if spec.dtype == tf.string:
        return tf.constant([[*value, *[b""] * (longest - len(value))] for value in values], tf.string)
    return tf.constant(np.stack([np.pad(value, (0, longest - len(value))) for value in values]), spec.dtype)


def alike(rows: Sequence[Row], signature: Signature) -> list[list[int]]:
    """Places of the rows that one call can answer together: those with the same options.

    Args:
        rows: The rows.
        signature: What they are for.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(tuple(np.asarray(row[key]).item() for key in signature.options), []).append(number)
    return list(groups.values())


def batch_sizes(largest: int) -> list[int]:
    """The sizes that calls have, two a doubling, so that TensorFlow does not meet new shapes without end.

    Args:
        largest: The largest batch.

    Example:
        >>> batch_sizes(20)
        [1, 2, 3, 4, 6, 8, 12, 16, 20]
    """
    powers = [2**power for power in range(largest.bit_length())]
    sizes = {size for power in powers for size in (power, power * 3 // 2)}
    return sorted({size for size in sizes if size <= largest} | {largest})
