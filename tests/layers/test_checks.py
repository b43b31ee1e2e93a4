"""Masks of a rank that a layer has no meaning for are refused, each with one line."""

from __future__ import annotations

import numpy as np
import pytest
from layer_reference import stream

from mmfusion.errors import ConfigError
from mmfusion.layers import (
    AdditiveAttention,
    AttentiveLSTM,
    GatedCrossAttention,
    ModalityDropout,
    PerceiverResampler,
    QFormerBlock,
    SpaceTimeBlock,
)
from mmfusion.layers.checks import checked_mask

B, N, D = 2, 4, 8
TOKENS, PATTERN = stream(B, N, D), np.ones((B, N, N), bool)


@pytest.mark.parametrize(("layer", "mask", "inputs"), [
    (PerceiverResampler(num_latents=3, num_heads=2, name="a"), "media_mask", {"media": TOKENS}),
    (SpaceTimeBlock(num_frames=2, num_heads=2, name="a"), "mask", {"tokens": TOKENS}),
    (GatedCrossAttention(num_heads=2, name="a"), "mask", {"tokens": TOKENS, "context": TOKENS}),
    (QFormerBlock(num_heads=2, cross_attention=False, name="a"), "mask", {"tokens": TOKENS}),
    (AttentiveLSTM(units=4, name="a"), "tokens_mask", {"tokens": TOKENS, "memory": TOKENS}),
    (AdditiveAttention(name="a"), "memory_mask", {"query": TOKENS, "memory": TOKENS}),
    (ModalityDropout(rate=0.1, name="a"), "text_mask", {"text": TOKENS, "image": TOKENS}),
    (ModalityDropout(rate=0.1, name="a"), "image_mask", {"text": TOKENS, "image": TOKENS}),
])  # fmt: skip
@pytest.mark.parametrize("pattern", [PATTERN, PATTERN[:, :1]], ids=["of each query", "of one"])
def test_a_pattern_of_each_query_is_refused_where_it_has_no_meaning(layer, mask, inputs, pattern):
    message = rf"^{mask} does not fit the tokens \[a\]: expected \[2, 4\], found \[2, {pattern.shape[1]}, 4\]$"
    with pytest.raises(ConfigError, match=message):
        layer(**inputs, **{mask: pattern})


def test_sizes_are_told_as_far_as_they_are_known():
    with pytest.raises(
        ConfigError, match=r"m does not fit query and keys \[a\]: expected \[\?, 4\] or \[\?, 3, 4\], found \[5\]$"
    ):
        checked_mask(np.ones(5, bool), "m", "a", (None, 3), 4)
    with pytest.raises(ConfigError, match=r"expected \[2, \?\], found \[3, 4\]$"):
        checked_mask(np.ones((3, 4), bool), "m", "a", (2,), None, ranks=(2,))
