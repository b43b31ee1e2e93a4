"""Attention's health: measures with known answers, a look that changes nothing, layers of ours and of Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized, tiny_batch, tiny_model

from mmfusion.fusion import CrossFusion
from mmfusion.layers import Attention
from mmfusion.training.diagnostics import (
    AttentionProbe,
    attention_entropy,
    attention_health,
    attention_layers,
    capture_attention,
    effective_rank,
    stable_rank,
)


def softmax(x: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    weights = np.where(allowed, np.exp(x), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def test_entropy_counts_allowed_keys_alone():
    allowed = np.array([[True, True, False, False], [True] * 4, [True, False, False, False], [False] * 4])
    scores = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(attention_entropy(scores, allowed), [1.0, 0.5, np.nan, np.nan])


def test_ranks():
    random = np.random.default_rng(0)
    orthogonal = np.linalg.qr(random.normal(size=(6, 6)))[0]
    for values in ([1.0] * 6, [4.0, 2.0, 1.0, 0.0, 0.0, 0.0]):
        matrix = orthogonal * np.array(values) @ orthogonal.T
        share = np.array([value for value in values if value]) / sum(values)
        assert effective_rank(matrix) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
        assert stable_rank(matrix) == pytest.approx(np.sum(np.square(values)) / max(values) ** 2)
    assert effective_rank(np.zeros((2, 3))) == 0.0


def test_padding_does_not_count():
    random = np.random.default_rng(1)
    real = np.array([[True] * 5 + [False] * 2, [True] * 3 + [False] * 4])
    scores = softmax(random.normal(size=(2, 3, 7, 7)), real[:, None, None, :])
    health = attention_health(scores, real[:, None, None, :], real)
    parts = [attention_health(scores[i : i + 1, :, :n, :n]) for i, n in enumerate((5, 3))]
    entropy = (5 * parts[0].entropy + 3 * parts[1].entropy) / 8
    np.testing.assert_allclose(health.entropy, entropy)
    np.testing.assert_allclose(health.rank, (parts[0].rank + parts[1].rank) / 2)
    spoilt = np.where(real[:, None, :, None], scores, 1.0 / 7)
    for one, other in zip(attention_health(spoilt, real[:, None, None, :], real), health, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("causal", [False, True])
def test_the_look_is_that_of_the_layer_and_changes_nothing(causal):
    random = np.random.default_rng(2)
    tokens, mask = random.normal(size=(2, 5, 8)).astype("float32"), np.arange(5) < np.array([5, 3])[:, None]
    layer = Attention(num_heads=2)
    before = layer(tokens, context_mask=mask, causal=causal)
    with capture_attention([layer]) as records:
        during = layer(tokens, context_mask=mask, causal=causal)
        asked = layer(tokens, context_mask=mask, causal=causal, return_scores=True)
    np.testing.assert_array_equal(during, before)
    np.testing.assert_array_equal(records[0].scores, asked.scores)
    np.testing.assert_array_equal(records[0].queries, mask)
    allowed = np.broadcast_to(records[0].allowed, records[0].scores.shape)
    assert (allowed == (records[0].scores > 0)).all()
    assert "call" not in layer.__dict__
    with pytest.raises(ZeroDivisionError), capture_attention([layer]):
        _ = 1 / 0
    np.testing.assert_array_equal(layer(tokens, context_mask=mask, causal=causal), before)


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_hides_what_is_outside_of_it(causal):
    """Equal tokens: a query gives all that it sees the same, so that its entropy is 1, however narrow the window."""
    layer, tokens, mask = (
        Attention(num_heads=2, kernel="local", window=2, num_global_tokens=1),
        np.ones((2, 9, 8)),
        np.ones((2, 9)),
    )
    mask[1, 6:] = 0
    with capture_attention([layer]) as records:
        layer(tokens, context_mask=mask > 0, causal=causal)
    health = attention_health(*records[0][1:])
    np.testing.assert_allclose(health.entropy, [1.0, 1.0], atol=1e-6)
    allowed = np.broadcast_to(records[0].allowed, records[0].scores.shape)
    assert (allowed == (records[0].scores > 0)).all() and allowed[0, 0, 5].sum() == (4 if causal else 6)
    # All keys of the sequence in its place would say less.
    assert attention_health(records[0].scores, mask[:, None, None, :] > 0, mask > 0).entropy.max() < 0.9


def test_what_is_in_a_cache_is_seen_and_what_is_not_filled_is_not():
    layer, other, mask = Attention(num_heads=2), Attention(num_heads=2), np.ones((2, 6), bool)
    mask[1, 1:3] = False
    tokens, image, image_mask = np.ones((2, 2, 8)), np.ones((2, 5, 8)), np.arange(5) < np.array([5, 3])[:, None]
    layer(tokens), other(tokens, image)
    cache, context = layer.init_cache(2, 6), other.project_context(image, image_mask)
    with capture_attention([layer, other]) as records:
        for _ in range(2):
            cache = layer(tokens, context_mask=mask, cache=cache).cache
        other(tokens, cache=context)
    for record in records:
        health = attention_health(*record[1:])
        np.testing.assert_allclose(health.entropy, [1.0, 1.0], atol=1e-6)
    allowed = np.broadcast_to(records[1].allowed, records[1].scores.shape)
    assert allowed[:, 0].sum(axis=-1).tolist() == [[3, 4], [1, 2]]
    np.testing.assert_array_equal(records[1].queries, [[True, True], [False, True]])
    assert np.broadcast_to(records[2].allowed, records[2].scores.shape)[:, 0, 0].sum(axis=-1).tolist() == [5, 3]
    assert records[2].queries is None


def test_a_step_of_a_fusion_with_a_cache():
    fusion = CrossFusion(dim=8, depth=2, num_heads=2)
    text, image, mask = np.ones((2, 1, 8), "float32"), np.ones((2, 5, 8), "float32"), np.arange(5) < np.array([5, 3])[:, None]
    fusion(text, image)
    cache = fusion.init_cache(2, 4, image, mask)
    with capture_attention([fusion]) as records:
        fusion(text, text_mask=np.ones((2, 4), bool), cache=cache, causal=True)
    health = attention_health(records[0].scores[:, 0], records[0].allowed, records[0].queries)
    np.testing.assert_allclose(health.entropy, [1.0, 1.0], atol=1e-6)


def test_layers_of_keras():
    inputs, mask = keras.Input((4, 8)), keras.Input((4,), dtype="bool")
    looked = keras.layers.MultiHeadAttention(2, 4, name="first")(inputs, inputs, attention_mask=mask[:, None, :])
    outputs = keras.layers.GroupQueryAttention(4, 4, 2, name="second")(looked, looked, use_causal_mask=True)
    model = keras.Model([inputs, mask], outputs)
    assert [layer.name for layer in attention_layers(model)] == ["first", "second"]
    batch = [np.ones((1, 4, 8), "float32"), np.array([[True, True, True, False]])]
    before = model(batch)
    report = AttentionProbe(model, batch)()["attention"]
    np.testing.assert_array_equal(model(batch), before)
    assert report["layers"] == ["first", "second"]
    # Equal tokens: all allowed keys get the same.
    np.testing.assert_allclose(report["entropy"][0], [1.0, 1.0], atol=1e-5)
    np.testing.assert_allclose(report["entropy"][1], [1.0] * 4, atol=1e-5)
    np.testing.assert_allclose(report["rank"][0], [1 / 3] * 2, atol=1e-5)


def test_an_image_text_model():
    model, batch = randomized(tiny_model(name="model")), tiny_batch(4)
    report = AttentionProbe(model, batch)()
    assert {name: np.shape(stream["entropy"]) for name, stream in report.items()} == {
        "image encoder": (2, 2), "text encoder": (2, 3), "fusion, text to image": (2, 2),
    }  # fmt: skip
    assert report["text encoder"]["layers"] == ["block_0", "block_1"]
    fused = model.fusion(
        model.text_encoder(batch["token_ids"], token_mask=batch["token_mask"]), model.image_encoder(batch["image"]),
        text_mask=batch["token_mask"], return_scores=True,
    )  # fmt: skip
    expected = attention_health(np.asarray(fused.scores)[:, 1], queries=batch["token_mask"])
    np.testing.assert_allclose(report["fusion, text to image"]["entropy"][1], expected.entropy, atol=1e-4)
    # Large queries and keys: every head looks at one place.
    for layer in attention_layers(model.image_encoder):
        layer.query_projection.kernel.assign(100.0 * layer.query_projection.kernel)
    assert np.max(AttentionProbe(model, batch)()["image encoder"]["entropy"]) < 0.3


@pytest.mark.parametrize("heads", [("contrastive",), ("captioning",)])
def test_models_of_fewer_heads(heads):
    report = AttentionProbe(tiny_model(heads=heads), tiny_batch(2))()
    assert {"image encoder", "text encoder"} <= set(report)
    if heads == ("captioning",):
        # The first token of a causal text has no choice: the mean is over the others.
        assert np.isfinite(report["text encoder"]["entropy"]).all()
