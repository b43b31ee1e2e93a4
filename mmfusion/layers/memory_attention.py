"""What the attentions of recurrent decoders share: a memory projected once, and the mix of it by weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.checks import check_tokens, checked_mask
from mmfusion.layers.kernels.softmax import softmax_over_keys
from mmfusion.layers.masks import AttentionMask, without_masked


class ProjectedMemory(NamedTuple):
    """A memory ready for attention, computed once for all steps of a decoder.

    Attributes:
        key: ``float[B, H, S, A / H]``, what queries are compared with, head by head.
        value: ``float[B, H, S, Dm / H]``, what is mixed.
        mask: ``bool[B, S]``, ``True`` = real token, or None.
    """

    key: KerasTensor
    value: KerasTensor
    mask: KerasTensor | None


class MemoryOutput(NamedTuple):
    """What attention to a memory returns.

    Attributes:
        context: ``float[B, Dm]``, or ``float[B, T, Dm]`` of T queries: the memory, weighted.
        weights: ``float32[B, S]`` or ``float32[B, T, S]``, with several heads ``float32[B, H, S]`` or ``float32[B, H, T, S]``;
            each row sums to 1, or is 0 where nothing could be attended to.
    """

    context: KerasTensor
    weights: KerasTensor


def checked_memory(
    memory: KerasTensor, memory_mask: KerasTensor | None, where: str, width: int | None = None
) -> tuple[KerasTensor, KerasTensor | None]:
    """A memory with zeros behind its mask, and the mask as ``bool[B, S]``.

    Args:
        memory: ``float[B, S, Dm]``.
        memory_mask: ``bool[B, S]``, ``True`` = real token, or None.
        where: Name of the layer.
        width: Dm, where it is known.

    Raises:
        ConfigError: If rank, width or dtype is wrong.
    """
    check_tokens(memory, "memory", where, width)
    mask = checked_mask(memory_mask, "memory_mask", where, memory.shape, memory.shape[1], ranks=(2,))
    return without_masked(memory, mask), mask


def queries_of(query: KerasTensor, where: str, width: int | None = None) -> KerasTensor:
    """``float[B, T, D]`` of a query that may be ``float[B, D]``, of one step."""
    query = query[:, None] if len(query.shape) == 2 else query
    check_tokens(query, "query", where, width)
    return query


def mix(logits: KerasTensor, memory: ProjectedMemory, keep: KerasTensor | None = None) -> tuple[KerasTensor, KerasTensor]:
    """Softmax over the memory, and the memory weighted by it, each head its own part of the features.

    Args:
        logits: ``float[B, H, T, S]``.
        memory: The projected memory.
        keep: ``float[B, H, T, S]`` or less, multiplies the weights that mix; not those returned. Default: none.

    Returns:
        ``float[B, T, Dm]`` and ``float32[B, H, T, S]``.
    """
    logits = ops.cast(logits, "float32")
    allowed = AttentionMask(keys=memory.mask).allowed(ops.arange(ops.shape(logits)[-1], dtype="int32"))
    if allowed is None:
        weights = softmax_over_keys(logits)
    else:
        weights = ops.where(allowed, softmax_over_keys(ops.where(allowed, logits, -1e30)), 0.0)
    used = ops.cast(weights, memory.value.dtype)
    used = used if keep is None else used * keep
    mixed = ops.matmul(used, memory.value)
    shape, width = ops.shape(mixed), mixed.shape[1] * mixed.shape[3]
    return ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (shape[0], shape[2], width)), weights


def split_heads(x: KerasTensor, heads: int) -> KerasTensor:
    """``float[B, N, D]`` as ``float[B, H, N, D / H]``."""
    shape = ops.shape(x)
    return ops.transpose(ops.reshape(x, (shape[0], shape[1], heads, x.shape[-1] // heads)), (0, 2, 1, 3))


def as_asked(context: KerasTensor, weights: KerasTensor, query_shape: Sequence[int | None]) -> MemoryOutput:
    """The output in the form of the query: without the axis of steps for one step, without that of heads for one head."""
    if len(query_shape) == 2:
        context, weights = context[:, 0], weights[:, :, 0]
    return MemoryOutput(context, weights[:, 0] if weights.shape[1] == 1 else weights)


def check_heads(num_heads: int, sizes: dict[str, int], where: str) -> None:
    """Refuses heads that do not divide the widths."""
    for name, size in sizes.items():
        if num_heads < 1 or size < 1 or size % num_heads:
            raise ConfigError(
                "the heads do not divide the width",
                where=where,
                expected=f"num_heads that divides {name}, {size}",
                found=num_heads,
            )
