"""Gradients of the match score by what the text sees of the image."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mmfusion.errors import ConfigError
from mmfusion.layers import Attention
from mmfusion.models import ImageTextModel


def gradient_of_match_by_attention(model: ImageTextModel, images: Any, ids: Any, mask: Any) -> npt.NDArray[np.float32]:
    """Attention from text to patches, weighted by how much more of it would raise the match logit (ALBEF's Grad-CAM).

    Args:
        model: A model with a matching head, whose fusion lets text attend to patches in one step.
        images: ``float[B, H, W, 3]``.
        ids: ``int[B, T]``.
        mask: ``bool[B, T]``, ``True`` = real token.

    Returns:
        ``float32[B, layers, heads, T, P]``: ``A · max(∂match/∂A, 0)``.

    Raises:
        ConfigError: If the model has no matching head, or its fusion has no such attention.

    Example:
        >>> from mmfusion.encoders import TextTransformer, VisionTransformer
        >>> from mmfusion.fusion import CrossFusion
        >>> from mmfusion.models import ImageTextModel, MatchingHead
        >>> model = ImageTextModel(
        ...     image_encoder=VisionTransformer(image_size=16, patch_size=8, dim=8, depth=1, num_heads=1),
        ...     text_encoder=TextTransformer(vocabulary_size=6, max_length=5, dim=8, depth=1, num_heads=1),
        ...     fusion=CrossFusion(dim=8, depth=2, num_heads=2), matching_head=MatchingHead(),
        ... )
        >>> ids = np.array([[2, 4, 5, 3, 0]])
        >>> gradient_of_match_by_attention(model, np.ones((1, 16, 16, 3), "float32"), ids, ids > 0).shape
        (1, 2, 2, 5, 4)

    Source: Li et al., ALBEF, 2021 (arXiv:2107.07651), section 5.4.
    """
    model.head("matching")
    patches = model.image_encoder(images, training=False)
    text = model.text_encoder(ids, token_mask=mask, training=False)
    length, count = int(text.shape[1]), int(patches.shape[1])
    with tf.GradientTape() as tape:
        # What the weights are made of is watched, so that they are on the tape even where no weight is to be trained.
        tape.watch([patches, text])
        with _looking(model.fusion) as looks:
            logit = tf.reduce_sum(model.match_tokens(patches, text, mask, training=False))
    gradients = tape.gradient(logit, [scores for scores, _ in looks])
    found = []
    for (scores, itself), gradient in zip(looks, gradients, strict=True):
        part = _text_to_patches(scores.shape, itself, length, count)
        if part is not None and gradient is not None:
            found.append((scores * tf.nn.relu(gradient))[part].numpy())
    if not found:
        raise ConfigError(
            "text attends to no patch in one step here, or with a kernel that keeps no weights",
            where=model.name,
            expected="fusion cross, co, gated or merged with kernel exact",
            found=type(model.fusion).__name__,
            fix='use method="attention" or "input"',
        )
    return np.stack(found, axis=1).astype(np.float32)


def gradient_of_match_by_patches(model: ImageTextModel, images: Any, ids: Any, mask: Any) -> npt.NDArray[np.float32]:
    """What the match logit would lose, to first order, were a patch like the mean: ``Σ_d (x[p, d] - x̄[d]) · ∂match/∂x[p, d]``.

    Not ``x · ∂match/∂x``: a fusion that normalises what it reads does not feel the size of x, so that this is 0.

    Args:
        model: A model with a matching head.
        images: ``float[B, H, W, 3]``.
        ids: ``int[B, T]``.
        mask: ``bool[B, T]``, ``True`` = real token.

    Returns:
        ``float32[B, P]``.

    Raises:
        ConfigError: If the model has no matching head.
    """
    model.head("matching")
    patches = model.image_encoder(images, training=False)
    text = model.text_encoder(ids, token_mask=mask, training=False)
    with tf.GradientTape() as tape:
        tape.watch(patches)
        logit = tf.reduce_sum(model.match_tokens(patches, text, mask, training=False))
    gradient = tape.gradient(logit, patches)
    patches = tf.cast(patches, tf.float32)
    apart = patches - tf.reduce_mean(patches, axis=1, keepdims=True)
    return tf.reduce_sum(apart * tf.cast(gradient, tf.float32), axis=-1).numpy()


@contextmanager
def _looking(fusion: Any) -> Iterator[list[tuple[tf.Tensor, bool]]]:
    """Collects the weights of all attention in a fusion as it runs, and whether it is self-attention."""
    looks: list[tuple[tf.Tensor, bool]] = []
    layers = {id(layer): layer for layer in fusion._flatten_layers() if isinstance(layer, Attention)}
    with ExitStack() as stack:
        for layer in layers.values():
            stack.enter_context(_asked_for_scores(layer, looks))
        yield looks


@contextmanager
def _asked_for_scores(layer: Attention, looks: list[tuple[tf.Tensor, bool]]) -> Iterator[None]:
    original = layer.call
    signature = inspect.signature(original)

    def call(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        asked = bound.arguments.get("return_scores", False)
        bound.arguments["return_scores"] = True
        result = original(*bound.args, **bound.kwargs)
        looks.append((result.scores, bound.arguments.get("context") is None))
        # As it is returned to who asks for neither scores nor a cache.
        return result if asked else result.output

    # An instance's own attribute hides the method of its class, and Keras's tracking need not know.
    layer.__dict__["call"] = call
    try:
        yield
    finally:
        del layer.__dict__["call"]


def _text_to_patches(shape: Any, itself: bool, length: int, count: int) -> tuple[Any, ...] | None:
    queries, keys = int(shape[-2]), int(shape[-1])
    if not itself and (queries, keys) == (length, count):
        return (Ellipsis,)
    if itself and queries == keys == length + count:  # one stream, the image first
        return (Ellipsis, slice(count, None), slice(None, count))
    return None
