"""Gradients of the match score by what the text sees of the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mmfusion.errors import ConfigError
from mmfusion.layers import Attention
from mmfusion.layers.watched_attention import SeenAttention, watched_attention
from mmfusion.models import ImageTextModel
from mmfusion.models.fusing import fuse, num_leading_tokens


def gradient_of_match_by_attention(model: ImageTextModel, images: Any, ids: Any, mask: Any) -> npt.NDArray[np.float32]:
    """Attention from text to patches, weighted by how much more of it would raise the match logit (ALBEF's Grad-CAM).

    Args:
        model: A model with a matching head, whose fusion lets text attend to patches in one step.
        images: ``float[B, H, W, 3]``.
        ids: ``int[B, T]``.
        mask: ``bool[B, T]``, ``True`` = real token.

    Returns:
        ``float32[B, layers, heads, T, P]``: ``A · max(∂match/∂A, 0)``; what leading tokens get stands before the patches.

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
    # What is pooled of the patches first is no patch.
    way = None if model.fusion is None or model.image_pooling is not None else model.fusion.text_to_patches
    count = int(patches.shape[1])
    with tf.GradientTape() as tape:
        # What the weights are made of is watched, so that they are on the tape even where no weight is to be trained.
        tape.watch([patches, text])
        with _looking(model.fusion) as looks:
            # Asked for scores, a fusion asks those of its layers for theirs in which text looks at the image.
            logit = tf.reduce_sum(model.match_fused(*fuse(model, text, patches, mask, return_scores=True, training=False)))
    gradients = tape.gradient(logit, [look.output for look in looks])
    found = []
    for look, gradient in zip(looks, gradients, strict=True):
        if look.asked and look.itself == (way == "joint") and way is not None and gradient is not None:
            weighted = (look.scores * tf.nn.relu(look.by_weight(gradient))).numpy()
            found.append(weighted[:, :, count:, :count] if way == "joint" else weighted)
    if not found:
        raise ConfigError(
            "text attends to no patch in one step here",
            where=model.name,
            expected="fusion cross, co, gated or merged",
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
        ``float32[B, P]``; what leading tokens get stands before the patches.

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
    apart = patches - tf.reduce_mean(patches[:, num_leading_tokens(model.image_encoder) :], axis=1, keepdims=True)
    return tf.reduce_sum(apart * tf.cast(gradient, tf.float32), axis=-1).numpy()


class _Look(NamedTuple):
    """One attention of a pass: ``output = scores · value``, head by head, before it is projected.

    Attributes:
        scores: ``float32[B, H, T, S]``.
        value: ``float[B, S, Hkv, d]``.
        output: ``float[B, T, H · d]``.
        itself: Whether a stream attended to itself.
        asked: Whether its scores were asked for.
    """

    scores: tf.Tensor
    value: tf.Tensor
    output: tf.Tensor
    itself: bool
    asked: bool

    def by_weight(self, gradient: tf.Tensor) -> tf.Tensor:
        """From the gradient by the output that by each weight, ``∂/∂A[h, t, s] = Σ_d ∂/∂output[t, h, d] · value[h, s, d]``.

        By this product and not through the weights: no kernel needs to keep them.
        """
        heads, width = self.scores.shape[1], self.value.shape[-1]
        gradient = tf.reshape(tf.cast(gradient, tf.float32), (*gradient.shape[:2], heads, width))
        value = tf.repeat(tf.cast(self.value, tf.float32), heads // self.value.shape[1], axis=1)
        return tf.einsum("bthd,bhsd->bhts", gradient, value)


@contextmanager
def _looking(fusion: Any) -> Iterator[list[_Look]]:
    """Collects what all attention in a fusion does as it runs."""
    looks: list[_Look] = []

    def see(seen: SeenAttention) -> None:
        looks.append(_Look(seen.scores, seen.value, seen.output, seen.arguments.get("context") is None, seen.asked))

    layers = {id(layer): layer for layer in fusion._flatten_layers() if isinstance(layer, Attention)}
    with ExitStack() as stack:
        for layer in layers.values():
            stack.enter_context(watched_attention(layer, see))
        yield looks
