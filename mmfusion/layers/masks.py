"""Masks: which keys a query may attend to."""

from __future__ import annotations

from keras import KerasTensor, ops


def combine_masks(
    context_mask: KerasTensor | None, *, causal: bool, query_length: int | KerasTensor, key_length: int | KerasTensor
) -> KerasTensor | None:
    """One mask of a key mask and causality.

    Args:
        context_mask: ``bool[B, S]`` or ``bool[B, T, S]``, ``True`` = may be attended to; None allows all.
        causal: Whether query t sees keys up to t + S - T alone.
        query_length: T.
        key_length: S.

    Returns:
        ``bool[B or 1, 1, 1 or T, S]``, or None if everything is allowed.

    Example:
        >>> from mmfusion.layers.masks import combine_masks
        >>> combine_masks(None, causal=True, query_length=2, key_length=2).numpy()[0, 0].tolist()
        [[True, False], [True, True]]
    """
    mask = None
    if context_mask is not None:
        context_mask = ops.cast(context_mask, "bool")
        mask = context_mask[:, None, None, :] if len(context_mask.shape) == 2 else context_mask[:, None, :, :]
    if causal:
        rows = ops.arange(query_length)[:, None] + (key_length - query_length)
        lower = (ops.arange(key_length)[None, :] <= rows)[None, None]
        mask = lower if mask is None else ops.logical_and(mask, lower)
    return mask
