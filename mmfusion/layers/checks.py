"""What layers check of their inputs before they compute: rank, width, dtype, with one clear line where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError


def check_width(shape: Sequence[int | None], name: str, where: str) -> int:
    """The width D of a shape ``[B, N, D]``.

    Args:
        shape: The shape to check.
        name: What the person who called knows it by.
        where: Name of the layer.

    Returns:
        D.

    Raises:
        ConfigError: If the rank is not 3 or D is unknown.
    """
    if len(shape) != 3 or shape[-1] is None:
        raise ConfigError(
            f"{name} is no stream of tokens",
            where=where,
            expected=f"{name} of shape [batch, tokens, width] with a known width",
            found=list(shape),
        )
    return int(shape[-1])


def check_tokens(tokens: KerasTensor, name: str, where: str, width: int | None = None, width_option: str | None = None) -> None:
    """Refuses tokens that are not ``float[B, N, width]``; the arguments are those of `check_width`.

    `width_option` is the constructor argument that sets the width, if one does.

    Raises:
        ConfigError: If rank, width or dtype is wrong.
    """
    found = check_width(tokens.shape, name, where)
    dtype = keras.backend.standardize_dtype(tokens.dtype)
    if "float" not in dtype:
        raise ConfigError(
            f"{name} has a wrong dtype",
            where=where,
            expected="floating point numbers",
            found=dtype,
            fix=f"embed or cast {name} first",
        )
    if width is not None and found != width:
        raise ConfigError(
            f"{name} has another width than the layer was built for",
            where=where,
            expected=f"[batch, tokens, {width}]",
            found=list(tokens.shape),
            fix=f"build it with {width_option}={found}, or project {name} to {width}"
            if width_option
            else "project it to that width, or use a layer of its own",
        )


def checked_mask(
    mask: KerasTensor | None,
    name: str,
    where: str,
    query_shape: Sequence[int | None],
    key_length: int | None,
) -> KerasTensor | None:
    """A mask as ``bool[B, S]`` or ``bool[B, T, S]``, where an axis may be 1.

    Args:
        mask: The mask, or None.
        name: What the person who called knows it by.
        where: Name of the layer.
        query_shape: B and T, None where one is not known; what follows them is not looked at.
        key_length: S, or None.

    Returns:
        The mask as bool tensor, or None.

    Raises:
        ConfigError: If rank, an axis or the dtype is wrong. Whole numbers 0 and 1 are accepted; floats are not, because in some
            libraries they are added to the logits.
    """
    if mask is None:
        return None
    mask = ops.convert_to_tensor(mask)
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool" and "int" not in dtype:
        raise ConfigError(
            f"{name} has a wrong dtype",
            where=where,
            expected="bool, True = real token",
            found=dtype,
            fix=f"pass {name} > 0 if ones mark real tokens",
        )
    batch, query_length = query_shape[0], query_shape[1]
    wanted = {2: (batch, key_length), 3: (batch, query_length, key_length)}.get(len(mask.shape))
    if wanted is None or any(
        found not in (None, 1, want) and want is not None for found, want in zip(mask.shape, wanted, strict=True)
    ):
        batch_text, query_text, key_text = ("?" if x is None else x for x in (batch, query_length, key_length))
        raise ConfigError(
            f"{name} does not fit query and keys",
            where=where,
            expected=f"[{batch_text}, {key_text}] or [{batch_text}, {query_text}, {key_text}]",
            found=list(mask.shape),
        )
    return ops.cast(mask, "bool")


def check_rate(rate: float, name: str, where: str) -> None:
    """Refuses what is no rate in ``[0, 1)`` with a `ConfigError`."""
    if not isinstance(rate, Real) or not 0.0 <= rate < 1.0:
        raise ConfigError(f"impossible {name}", where=where, expected="at least 0 and below 1", found=repr(rate))


def check_size(size: Any, name: str, where: str, least: int = 1) -> None:
    """Refuses what is no whole number of at least `least` with a `ConfigError`; 4.0 and ``"4"`` are none."""
    whole = isinstance(size, Integral) and not isinstance(size, bool)
    if not whole or size < least:
        expected = f"at least {least}" if whole else f"a whole number of at least {least}"
        raise ConfigError(f"impossible {name}", where=where, expected=expected, found=repr(size))
