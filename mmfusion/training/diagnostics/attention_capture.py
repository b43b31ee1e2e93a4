"""Looks into attention layers while a model runs, without changing what it computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np

from mmfusion.fusion import Fusion
from mmfusion.layers import Attention
from mmfusion.layers.cache import ContextCache
from mmfusion.layers.replaced_methods import replaced_methods
from mmfusion.layers.watched_attention import SeenAttention, watched_attention

_KERAS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


class AttentionRecord(NamedTuple):
    """What one layer did in one call.

    Attributes:
        name: Path of the layer in the model.
        scores: ``float[B, H, T, S]``; of a fusion ``float[B, L, H, T, P]``, its layers' looks from text at image.
        allowed: ``bool``, broadcasts to ``[B, H, T, S]``: the keys that a query could see, whatever hid the others: a mask, the
            order, a window, room of a cache that is not filled. Of a fusion's step with a cache, patches that were looked at.
        queries: ``bool[B, T]``, the real queries, or None if all are (or it is not known, in a fusion's step with a cache).
    """

    name: str
    scores: np.ndarray
    allowed: np.ndarray
    queries: np.ndarray | None


@contextmanager
def capture_attention(layers: Sequence[keras.layers.Layer]) -> Iterator[list[AttentionRecord]]:
    """Collects the attention of layers that are called, not in a graph, while the context is open.

    Args:
        layers: `mmfusion.layers.Attention`, `mmfusion.fusion.Fusion`, `keras.layers.MultiHeadAttention` and
            `keras.layers.GroupQueryAttention` are looked into, others passed over.

    Yields:
        The list that the records go to, in the order of the calls.

    Example:
        >>> import keras, numpy as np
        >>> from mmfusion.training.diagnostics import capture_attention
        >>> layer, tokens = keras.layers.MultiHeadAttention(2, 4), np.ones((1, 3, 8), "float32")
        >>> with capture_attention([layer]) as records:
        ...     output = layer(tokens, tokens, use_causal_mask=True)
        >>> records[0].scores.shape, records[0].allowed[0, 0].sum(axis=-1).tolist(), tuple(output.shape)
        ((1, 2, 3, 3), [1, 2, 3], (1, 3, 8))
    """
    records: list[AttentionRecord] = []
    with ExitStack() as stack:
        for layer in layers:
            if isinstance(layer, (Attention, Fusion, *_KERAS)):
                stack.enter_context(_looked_into(layer, records))
        yield records


def attention_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """All attention layers in a model, in the order in which it holds them.

    Args:
        model: A model or layer.

    Example:
        >>> import keras
        >>> inputs = keras.Input((3, 8))
        >>> model = keras.Model(inputs, keras.layers.MultiHeadAttention(2, 4, name="look")(inputs, inputs))
        >>> [layer.name for layer in attention_layers(model)]
        ['look']
    """
    found = [layer for layer in model._flatten_layers() if isinstance(layer, (Attention, *_KERAS))]
    return list({id(layer): layer for layer in found}.values())


@contextmanager
def _looked_into(layer: keras.layers.Layer, records: list[AttentionRecord]) -> Iterator[None]:
    if isinstance(layer, Attention):
        with watched_attention(layer, lambda seen: records.append(_record_of(layer, seen))):
            yield
        return
    original, reader = layer.call, _OF_FUSION if isinstance(layer, Fusion) else _OF_KERAS
    signature = inspect.signature(original)

    def call(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        asked = bound.arguments.get(reader.flag, False)
        bound.arguments[reader.flag] = True
        result = original(*bound.args, **bound.kwargs)
        scores = _numpy(keras.ops.cast(reader.scores(result), "float32"))
        records.append(AttentionRecord(layer.path or layer.name, scores, *reader.masks(bound.arguments, scores)))
        return result if asked else reader.unasked(result)

    with replaced_methods(layer, call=call):
        yield


def _record_of(layer: Attention, seen: SeenAttention) -> AttentionRecord:
    scores = _numpy(seen.scores)
    allowed = _numpy(seen.mask.allowed(keras.ops.arange(scores.shape[-1], dtype="int32")))
    allowed = np.ones((1, 1, 1, 1), bool) if allowed is None else allowed
    queries = _real_queries(seen.arguments, scores.shape[0], scores.shape[2])
    return AttentionRecord(layer.path or layer.name, scores, allowed, queries)


class _Reader(NamedTuple):
    """How one kind of layer is asked for its scores, says them, and what it returns to who did not ask."""

    flag: str
    scores: Callable[[Any], Any]
    masks: Callable[[dict[str, Any], np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    unasked: Callable[[Any], Any]


def _real_queries(arguments: dict[str, Any], batch: int, count: int) -> np.ndarray | None:
    """Of self-attention alone: the mask of a context says nothing of who asks."""
    cache, mask = arguments.get("cache"), arguments.get("context_mask")
    if arguments.get("context") is not None or isinstance(cache, ContextCache):
        return None
    mask = _numpy(getattr(arguments["query"], "_keras_mask", None) if mask is None and cache is None else mask)
    if mask is None or mask.ndim != 2:
        return None
    if cache is not None and mask.shape[1] > 1:
        # The mask is over the cache's places, and the queries are the next of them.
        mask = mask[:, int(_numpy(cache.position)) :][:, :count]
    return np.broadcast_to(mask.astype(bool), (batch, count))


def _fusion_masks(arguments: dict[str, Any], scores: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    if arguments.get("cache") is not None:
        # The image's mask is in the cache, in a form that is the style's own: who is never looked at is behind it.
        return np.any(scores > 0.0, axis=(1, 2, 3))[:, None, None, :], None
    allowed = np.ones((1, 1, 1, scores.shape[-1]), bool)
    image_mask = _numpy(arguments.get("image_mask"))
    if image_mask is not None and image_mask.shape[-1] == scores.shape[-1]:
        allowed = image_mask[:, None, None, :]
    return allowed, _numpy(arguments.get("text_mask"))


def _keras_masks(arguments: dict[str, Any], scores: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    shape = scores.shape
    allowed = np.ones((1, 1, 1, shape[-1]), bool)
    mask = _numpy(arguments.get("attention_mask"))
    if mask is not None:
        allowed = mask.astype(bool)[:, None] if mask.ndim == 3 else mask.astype(bool)
    keys = _numpy(arguments.get("key_mask"))
    keys = _numpy(arguments.get("value_mask")) if keys is None else keys
    if keys is not None:
        allowed = allowed & keys[:, None, None, :]
    if arguments.get("use_causal_mask"):
        allowed = allowed & np.tri(shape[-2], shape[-1], dtype=bool)[None, None]
    return allowed, _numpy(arguments.get("query_mask"))


def _numpy(value: Any) -> Any:
    return None if value is None else np.asarray(keras.ops.convert_to_numpy(value))


_OF_FUSION = _Reader("return_scores", lambda result: result.scores, _fusion_masks, lambda result: result._replace(scores=None))
_OF_KERAS = _Reader("return_attention_scores", lambda result: result[1], _keras_masks, lambda result: result[0])
