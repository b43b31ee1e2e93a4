"""MergedFusion: one stream, and the mask of a prefix language model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized
from gradients import to_numpy, value_and_gradients

from mmfusion.errors import ConfigError
from mmfusion.fusion import MergedFusion

B, T, P, D = 2, 5, 6, 8
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = (RANDOM.normal(size=(B, n, D)).astype("float32") for n in (T, P))
TEXT_MASK = np.arange(T) < np.array([[T], [3]])
IMAGE_MASK = np.arange(P) < np.array([[P], [4]])


@pytest.fixture(scope="module")
def fusion() -> MergedFusion:
    layer = MergedFusion(dim=D, depth=2, num_heads=2)
    layer.build()
    return randomized(layer)


def one_stream(fusion, text, image, allowed):
    """The stream as a whole under a mask of each pair of tokens."""
    tokens = keras.ops.concatenate([image + fusion.modality[1], text + fusion.modality[0]], axis=1)
    for block in fusion.blocks:
        tokens = block(tokens, mask=allowed)
    return fusion.norm(tokens)


def prefix_mask() -> np.ndarray:
    """Rows ask: the image sees the image, a word sees the image and the words up to itself."""
    allowed = np.zeros((B, P + T, P + T), bool)
    allowed[:, :, :P] = IMAGE_MASK[:, None]
    allowed[:, P:, P:] = np.tri(T, dtype=bool) & TEXT_MASK[:, None]
    return allowed


def test_the_causal_reading_is_the_mask_of_a_prefix_language_model(fusion):
    probe = RANDOM.normal(size=(B, T, D)).astype("float32") * TEXT_MASK[..., None]
    allowed = prefix_mask()
    functions = (
        lambda text, image: one_stream(fusion, text, image, allowed)[:, P:],
        lambda text, image: fusion(text, image, TEXT_MASK, IMAGE_MASK, causal=True).text,
    )
    expected, found = (to_numpy(f(TEXT, IMAGE))[TEXT_MASK] for f in functions)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    gradients = [
        value_and_gradients(lambda a, b, f=f: keras.ops.sum(f(a, b) * probe), [TEXT, IMAGE], fusion.trainable_weights)[1]
        for f in functions
    ]
    for one, two in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_the_image_does_not_depend_on_how_the_text_goes_on(fusion):
    image = to_numpy(fusion(TEXT, IMAGE, causal=True).image)
    np.testing.assert_array_equal(image, to_numpy(fusion(-TEXT, IMAGE, causal=True).image))
    assert np.abs(image - to_numpy(fusion(TEXT, IMAGE).image)).max() > 1e-2


def test_scores_are_the_images_part_of_the_attention(fusion):
    mask = np.concatenate([IMAGE_MASK, TEXT_MASK], axis=1)
    tokens = keras.ops.concatenate([IMAGE + fusion.modality[1], TEXT + fusion.modality[0]], axis=1)
    whole = to_numpy(fusion.blocks[0](tokens, mask=mask, return_scores=True).self_scores)[:, :, P:, :P]
    found = to_numpy(fusion(TEXT, IMAGE, TEXT_MASK, IMAGE_MASK, return_scores=True).scores)[:, 0]
    np.testing.assert_allclose(found, whole / whole.sum(-1, keepdims=True), atol=1e-6)


def test_a_window_is_refused():
    with pytest.raises(ConfigError, match="would hide the image from the text.*use kernel='chunked'"):
        MergedFusion(dim=D, kernel="local")
