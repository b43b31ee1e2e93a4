"""RecurrentFusion reads step by step, both ways, and says where it looked."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from factories import randomized
from gradients import BACKEND, to_numpy, value_and_gradients

sys.path.insert(0, str(Path(__file__).parents[1] / "layers"))
import layer_reference as reference

from mmfusion.errors import ConfigError
from mmfusion.fusion import RecurrentFusion

B, T, P, D, DI = 2, 4, 5, 8, 6
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = RANDOM.normal(size=(B, T, D)).astype("float32"), RANDOM.normal(size=(B, P, DI)).astype("float32")
TEXT_MASK, IMAGE_MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]]) > 0, np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]) > 0
MASKS = {"text_mask": TEXT_MASK, "image_mask": IMAGE_MASK}


def fusion(**options) -> RecurrentFusion:
    layer = RecurrentFusion(dim=D, image_dim=DI, num_heads=2, mlp_ratio=1.5, **options)
    layer.build()
    return randomized(layer)


def in_numpy(layer, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    text, memory, scores = TEXT.astype("float64"), reference.dense(layer.image_projection, IMAGE), []
    for reader in layer.readers:
        tokens = reference.layer_norm(reader.norm, text)
        hidden, seen = reference.dense(reader.of_text, tokens), []
        for name, lstm in (("forward", reader.forward), ("backward", reader.backward))[: 1 if causal else 2]:
            read = reference.attentive_lstm(lstm, tokens, memory, TEXT_MASK, IMAGE_MASK, reverse=name == "backward")
            hidden = hidden + reference.dense(reader.of_readers[f"of_{name}"], read["hidden"])
            hidden = hidden + reference.dense(reader.of_readers[f"of_{name}_context"], read["context"])
            seen.append(read["weights"])
        text = text + reference.dense(reader.output_dense, np.tanh(hidden))
        scores.append(np.mean(seen, axis=0))
    return reference.layer_norm(layer.norm, text), np.stack(scores, axis=1)


@pytest.mark.parametrize("attention", ["additive", "multiplicative"])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_numpy(attention, causal):
    layer = fusion(attention=attention)
    output = layer(TEXT, IMAGE, **MASKS, causal=causal, return_scores=True)
    text, scores = in_numpy(layer, causal)
    np.testing.assert_allclose(to_numpy(output.text)[TEXT_MASK], text[TEXT_MASK], atol=2e-5)
    real = np.broadcast_to(TEXT_MASK[:, None, None], scores.shape[:-1])
    np.testing.assert_allclose(to_numpy(output.scores)[real], scores[real], atol=1e-5)
    np.testing.assert_allclose(to_numpy(output.scores).sum(-1), 1.0, atol=1e-5)


def test_both_ways_the_first_token_knows_the_last():
    layer, other = fusion(), TEXT.copy()
    other[:, -1] *= -1.0
    first, second = (to_numpy(layer(x, IMAGE, causal=True).text) for x in (TEXT, other))
    np.testing.assert_array_equal(first[:, :-1], second[:, :-1])
    first, second = (to_numpy(layer(x, IMAGE).text) for x in (TEXT, other))
    assert np.abs(first[:, 0] - second[:, 0]).max() > 1e-3


def test_a_cache_holds_the_state_and_reads_a_mask_of_its_places():
    layer, places = fusion(depth=1), np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]]) > 0
    whole = layer(TEXT, IMAGE, places[:, :T], IMAGE_MASK, causal=True, return_scores=True)
    cache = layer.init_cache(B, T + 1, IMAGE, IMAGE_MASK)
    assert all(x.shape == () or x.shape[0] == B for x in keras.tree.flatten(cache) if x is not None)
    texts, scores = [], []
    for piece in (TEXT[:, :1], TEXT[:, 1:3], TEXT[:, 3:]):
        output = layer(piece, text_mask=places, causal=True, cache=cache, return_scores=True)
        cache = output.cache
        texts.append(to_numpy(output.text))
        scores.append(to_numpy(output.scores))
    real = places[:, :T]
    np.testing.assert_allclose(np.concatenate(texts, axis=1)[real], to_numpy(whole.text)[real], atol=1e-5)
    np.testing.assert_allclose(np.concatenate(scores, axis=3), to_numpy(whole.scores), atol=1e-5)
    assert int(cache.layers[0].position) == T


def test_gradients_reach_every_weight_and_none_is_nan_behind_the_mask():
    layer = fusion(attention_dropout=0.1, dropout=0.1, stochastic_depth=0.1, layer_scale=0.5)
    text, image = (np.where(mask[..., None], x, np.nan).astype("float32") for mask, x in ((TEXT_MASK, TEXT), (IMAGE_MASK, IMAGE)))
    jit = BACKEND == "jax"

    def loss(x, y):
        return keras.ops.sum(layer(x, y, **MASKS, training=True).text[:, :2] ** 2)

    _, found = value_and_gradients(loss, [text, image], layer.trainable_weights, jit_compile=jit)
    assert all(np.isfinite(x).all() for x in found)
    weights = layer.trainable_weights
    _, found = value_and_gradients(lambda x, y: keras.ops.sum(layer(x, y).text ** 2), [TEXT, IMAGE], weights, jit_compile=jit)
    still = [weight.path for weight, x in zip(layer.trainable_weights, found[2:], strict=True) if np.abs(x).max() == 0]
    assert not still, still


def test_a_kernel_has_no_meaning():
    with pytest.raises(ConfigError, match=r"one kernel \[r\]: expected kernel='exact', found 'chunked'; leave fusion.kernel out"):
        RecurrentFusion(dim=D, kernel="chunked", name="r")
