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

_KERAS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


class AttentionRecord(NamedTuple):
    """What one layer did in one call.

    Attributes:
        name: Path of the layer in the model.
        scores: ``float[B, H, T, S]``; of a fusion ``float[B, L, H, T, P]``, its layers' looks from text at image.
        allowed: ``bool``, broadcasts to ``[B, H, T, S]``: the keys that a query was allowed to see.
        queries: ``bool[B, T]``, the real queries, or None if all are.
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
    original = layer.call
    flag = "return_attention_scores" if isinstance(layer, _KERAS) else "return_scores"
    signature = inspect.signature(original)

    def call(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        asked = bound.arguments.get(flag, False)
        bound.arguments[flag] = True
        result = original(*bound.args, **bound.kwargs)
        records.append(_record(layer, bound.arguments, result))
        if asked:
            return result
        return _READERS[_kind(layer)].as_asked(result, bound.arguments)

    # An instance's own attribute hides the method of its class, and Keras's tracking need not know.
    layer.__dict__["call"] = call
    try:
        yield
    finally:
        del layer.__dict__["call"]


class _Reader(NamedTuple):
    """How one kind of layer says its scores, and what it returns to who did not ask for them."""

    scores: Callable[[Any], Any]
    masks: Callable[[dict[str, Any], tuple[int, ...]], tuple[np.ndarray, np.ndarray | None]]
    as_asked: Callable[[Any, dict[str, Any]], Any]


def _kind(layer: keras.layers.Layer) -> str:
    return "fusion" if isinstance(layer, Fusion) else "attention" if isinstance(layer, Attention) else "keras"


def _record(layer: keras.layers.Layer, arguments: dict[str, Any], result: Any) -> AttentionRecord:
    reader = _READERS[_kind(layer)]
    scores = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(reader.scores(result), "float32")))
    allowed, queries = reader.masks(arguments, scores.shape)
    return AttentionRecord(layer.path or layer.name, scores, allowed, queries)


def _fusion_masks(arguments: dict[str, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    allowed = np.ones((1, 1, 1, shape[-1]), bool)
    image_mask = _numpy(arguments.get("image_mask"))
    if image_mask is not None and image_mask.shape[-1] == shape[-1]:
        allowed = image_mask[:, None, None, :]
    return allowed, _numpy(arguments.get("text_mask"))


def _attention_masks(arguments: dict[str, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    mask = _numpy(arguments.get("context_mask"))
    allowed = np.ones((1, 1, 1, shape[-1]), bool)
    if mask is not None:
        allowed = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    if arguments.get("causal"):
        seen = np.tri(shape[-2], shape[-1], shape[-1] - shape[-2], dtype=bool)
        prefix = _numpy(arguments.get("prefix_length"))
        if prefix is not None:
            seen = seen | (np.arange(shape[-1]) < np.reshape(prefix, (-1, 1, 1)))
        allowed = allowed & (seen[None, None] if seen.ndim == 2 else seen[:, None])
    itself = arguments.get("context") is None
    return allowed, mask if itself and mask is not None and mask.ndim == 2 else None


def _keras_masks(arguments: dict[str, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
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


def _attention_as_asked(result: Any, arguments: dict[str, Any]) -> Any:
    return result.output if arguments.get("cache") is None else result._replace(scores=None)


def _numpy(value: Any) -> np.ndarray | None:
    return None if value is None else np.asarray(keras.ops.convert_to_numpy(value))


_READERS = {
    "fusion": _Reader(lambda result: result.scores, _fusion_masks, lambda result, _: result._replace(scores=None)),
    "attention": _Reader(lambda result: result.scores, _attention_masks, _attention_as_asked),
    "keras": _Reader(lambda result: result[1], _keras_masks, lambda result, _: result[0]),
}
