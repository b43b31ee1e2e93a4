"""A source sentence and its picture as one stream."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized

from mmfusion.encoders import SourceImageEncoder, TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import STYLES, CrossFusion

B, S, P, D, DT = 2, 5, 4, 16, 12


def to_numpy(value):
    return keras.ops.convert_to_numpy(value)


def encoder(style="cross", **options):
    return SourceImageEncoder(
        image_encoder=VisionTransformer(image_size=16, patch_size=8, dim=D, depth=1, num_heads=2),
        text_encoder=TextTransformer(vocabulary_size=20, max_length=S, dim=DT, depth=1, num_heads=2),
        fusion=STYLES[style](dim=DT, image_dim=D, depth=2, num_heads=2, **options),
    )


@pytest.fixture
def inputs():
    random = np.random.default_rng(0)
    mask = np.array([[True] * S, [True] * 3 + [False] * 2])
    images = {
        "pixels": random.normal(size=(B, 16, 16, 3)).astype("float32"),
        "source_ids": random.integers(1, 20, (B, S)).astype("int32"),
    }
    return images, mask


@pytest.mark.parametrize("style", sorted(STYLES))
def test_every_style_joins_both(style, inputs):
    layer = encoder(style)
    layer.build()
    randomized(layer)
    images, mask = inputs
    tokens = to_numpy(layer(images, mask))
    assert tokens.shape == (B, P + S, D) and np.isfinite(tokens).all()
    np.testing.assert_array_equal(tokens[:, :P], to_numpy(layer.image_encoder(images["pixels"])))
    # A picture changes what the sentence comes out as, and so does the sentence itself.
    other = {**images, "pixels": images["pixels"][::-1].copy()}
    assert np.abs(to_numpy(layer(other, mask))[:, P:] - tokens[:, P:]).max() > 1e-3
    np.testing.assert_array_equal(to_numpy(layer.token_mask(mask)), np.concatenate([np.ones((B, P), bool), mask], axis=1))


def test_what_is_masked_never_matters(inputs):
    layer = encoder()
    images, mask = inputs
    first = to_numpy(layer(images, mask))
    changed = images["source_ids"].copy()
    changed[1, 3:] = 7
    np.testing.assert_array_equal(first, to_numpy(layer({**images, "source_ids": changed}, mask)))
    assert not first[1, P + 3 :].any()


def test_configuration_round_trip(inputs):
    layer = encoder()
    images, mask = inputs
    first = to_numpy(layer(images, mask))
    copy = SourceImageEncoder.from_config(layer.get_config())
    copy.build()
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(first, to_numpy(copy(images, mask)))


def test_refusals(inputs):
    with pytest.raises(ConfigError, match="leaves the text as it was.*informs the text"):
        encoder(direction="image")
    with pytest.raises(ConfigError, match="expected a dictionary of pixels and source_ids.*found"):
        encoder()(inputs[0]["pixels"])


def test_the_fusion_is_the_given_one():
    fusion = CrossFusion(dim=DT, image_dim=D, depth=1, num_heads=2)
    layer = SourceImageEncoder(
        image_encoder=VisionTransformer(image_size=16, patch_size=8, dim=D, depth=0, num_heads=2),
        text_encoder=TextTransformer(vocabulary_size=20, max_length=S, dim=DT, depth=1, num_heads=2),
        fusion=fusion,
    )
    layer.build()
    assert layer.fusion is fusion and fusion.built and layer.grid == (2, 2) and layer.image_size == (16, 16)
