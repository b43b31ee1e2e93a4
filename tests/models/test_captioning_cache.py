"""Long texts with a cache: the same logits as without, and the memory that the formula says."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import IMAGE_SIZE, randomized
from gradients import to_numpy
from keras import ops

from mmfusion.decoding import compiled
from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.fusion import STYLES
from mmfusion.layers.cache import shared_by_texts
from mmfusion.models import CaptioningHead, ImageTextModel
from mmfusion.models.captioning import first_state, state_size, write_captions

LENGTH, VOCABULARY = 256, 30
OPTIONS = {"qformer": {"num_queries": 3}, "bottleneck": {"num_bottlenecks": 3}}


def model_of(style: str, max_length: int, **block_options) -> ImageTextModel:
    return randomized(
        ImageTextModel(
            image_encoder=VisionTransformer(image_size=IMAGE_SIZE, patch_size=8, dim=16, depth=1, num_heads=2),
            text_encoder=TextTransformer(
                vocabulary_size=VOCABULARY, max_length=max_length, dim=12, depth=1, num_heads=2, block_options=block_options
            ),
            fusion=STYLES[style](dim=12, image_dim=16, depth=2, num_heads=2, **OPTIONS.get(style, {})),
            captioning_head=CaptioningHead(start_id=2, end_id=3),
        )
    )


@pytest.mark.parametrize("style", ["cross", "merged", "recurrent"])
def test_cached_equals_uncached_over_256_tokens(style):
    model, random = model_of(style, LENGTH), np.random.default_rng(0)
    ids = random.integers(4, VOCABULARY, (2, LENGTH)).astype("int32")
    patches = model.image_encoder(random.normal(size=(2, *IMAGE_SIZE, 3)).astype("float32"))
    expected = to_numpy(compiled(model.caption_logits, model.variables)(patches, ids))
    state, step = first_state(model, patches, None, LENGTH), compiled(model.caption_step, model.variables)
    found = []
    for place in range(LENGTH):
        logits, state = step(ids[:, place], state)
        found.append(to_numpy(logits))
    np.testing.assert_allclose(np.stack(found, axis=1), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1 and np.abs(np.diff(expected, axis=1)).max(axis=(0, 2)).min() > 1e-3


@pytest.mark.parametrize(
    ("style", "beams"), [("cross", 1), *((style, 3) for style in ("cross", "gated", "merged", "qformer", "recurrent"))]
)
def test_a_search_carries_what_the_formula_says(style, beams, monkeypatch):
    model, room, images = model_of(style, 9, num_key_value_heads=1), 8, 2
    patches, original, held = model.image_encoder(np.ones((images, *IMAGE_SIZE, 3), "float32")), model.caption_step, []

    def step(token_ids, state):
        tensors = [x for x in keras.tree.flatten(state) if x is not None and ops.dtype(x) == "float32"]
        held.append(4 * sum(int(np.prod(x.shape)) for x in tensors))
        return original(token_ids, state)

    monkeypatch.setattr(model, "caption_step", step)
    write_captions(model, patches, max_tokens=room, beam_size=beams, limit=2)
    assert set(held) == {state_size(model, room).bytes(images, beams)}
    shared = keras.tree.flatten(shared_by_texts(first_state(model, patches, None, room)))
    assert any(shared) == (style in ("cross", "gated"))
