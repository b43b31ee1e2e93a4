"""Options of attention pooling; its plain form is in test_small_layers, SigLIP's in tests/parity."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import value_and_gradients
from layer_reference import attention, built, layer_norm, padding, stream, to_numpy

from mmfusion.errors import ConfigError
from mmfusion.layers import AttentionPooling

B, S, D, DM = 3, 5, 8, 6
TOKENS, MASK = stream(B, S, DM), padding([3, S, 0], S)


@pytest.mark.parametrize(
    "options", [{"norm": True, "mlp_ratio": 2.0}, {"norm": True, "num_queries": 4}, {"mlp_ratio": 1.0}, {"output_norm": True}]
)
def test_masks_and_scores(options):
    layer = built(AttentionPooling(num_heads=2, dim=D, **options), (None, None, DM))
    filled = np.where(MASK[..., None], TOKENS, np.nan).astype("float32")
    output = layer(filled, tokens_mask=MASK, return_scores=True)
    pooled = to_numpy(output.output)
    np.testing.assert_array_equal(pooled, to_numpy(layer(TOKENS, tokens_mask=MASK)))
    assert not pooled[2].any() and np.abs(pooled[:2]).min(axis=-1).max() > 0
    sums = to_numpy(output.scores).sum(-1)
    np.testing.assert_allclose(sums, np.broadcast_to([[[1.0]], [[1.0]], [[0.0]]], sums.shape), atol=1e-6)
    _, (gradient,) = value_and_gradients(lambda x: keras.ops.sum(layer(x, tokens_mask=MASK) ** 2), [filled])
    assert np.isfinite(gradient).all() and not gradient[~MASK].any() and np.abs(gradient[MASK]).min(axis=-1).max() > 0


def test_several_normalised_queries_equal_numpy():
    layer = built(AttentionPooling(num_heads=2, dim=D, norm=True, num_queries=4), (None, None, DM))
    queries = layer_norm(layer.query_norm, np.broadcast_to(to_numpy(layer.query), (B, 4, D)))
    expected, _ = attention(layer.attention, queries, layer_norm(layer.tokens_norm, TOKENS), MASK)
    np.testing.assert_allclose(to_numpy(layer(TOKENS, tokens_mask=MASK)), expected, atol=1e-5)
    normed = AttentionPooling(num_heads=2, dim=D, norm=True, num_queries=4, output_norm=True, norm_epsilon=1e-3)
    built(normed, (None, None, DM))
    queries = layer_norm(normed.query_norm, np.broadcast_to(to_numpy(normed.query), (B, 4, D)))
    pooled, _ = attention(normed.attention, queries, layer_norm(normed.tokens_norm, TOKENS), MASK)
    expected = layer_norm(normed.pooled_norm, pooled) * MASK.any(1)[:, None, None]
    np.testing.assert_allclose(to_numpy(normed(TOKENS, tokens_mask=MASK)), expected, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"norm": True, "mlp_ratio": 2.0}])
def test_the_tokens_own_keras_mask_is_taken(options):
    layer, ids = built(AttentionPooling(num_heads=2, dim=D, **options), (None, None, DM)), np.array([[3, 4, 0], [0, 0, 0]])
    tokens = keras.layers.Embedding(9, DM, mask_zero=True)(ids)
    found = to_numpy(layer(tokens))
    np.testing.assert_array_equal(found, to_numpy(layer(to_numpy(tokens), tokens_mask=ids > 0)))
    assert found[0].any() and not found[1].any()


def test_what_cannot_be_is_refused():
    for ratio in (0, -1.0):
        with pytest.raises(ConfigError, match=r"impossible mlp_ratio \[a\]: expected more than 0, or None, found"):
            AttentionPooling(num_heads=2, mlp_ratio=ratio, name="a")


def test_a_cascade_as_in_coca():
    """Queries for captioning, and one more that pools them for the contrastive embedding."""
    many = built(AttentionPooling(num_heads=2, dim=D, norm=True, num_queries=4), (None, None, DM))
    one = built(AttentionPooling(num_heads=2, norm=True), (None, None, D))
    tokens = many(TOKENS)
    assert tuple(tokens.shape) == (B, 4, D) and tuple(one(tokens).shape) == (B, D)
