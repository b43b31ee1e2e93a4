"""What a style says that decoding remembers is what is in its cache."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from mmfusion.errors import ConfigError
from mmfusion.fusion import STYLES
from mmfusion.layers.cache import shared_by_texts

B, T, P, D, DI = 2, 5, 6, 12, 16
CASES = {
    "late": ("late", {}),
    "cross": ("cross", {}),
    "cross both": ("cross", {"direction": "both", "num_heads": 4, "image_dim": 12}),
    "co": ("co", {}),
    "co shared": ("co", {"shared_cross": True}),
    "merged": ("merged", {}),
    "bottleneck": ("bottleneck", {"num_bottlenecks": 3}),
    "gated": ("gated", {}),
    "gated alone": ("gated", {"self_attention": False}),
    "qformer": ("qformer", {"num_queries": 3}),
    "resampler": ("resampler", {"num_latents": 3}),
    "resampler of merged": ("resampler", {"num_latents": 3, "inner": "merged"}),
    "recurrent": ("recurrent", {}),
    "recurrent multiplicative": ("recurrent", {"attention": "multiplicative"}),
}


def bytes_held(state, texts: int) -> int:
    """Of all tensors of floats: those of an image once, others for each text."""
    total = 0
    for tensor, shared in zip(keras.tree.flatten(state), keras.tree.flatten(shared_by_texts(state)), strict=True):
        if tensor is None or not ops.dtype(tensor).startswith(("float", "bfloat")):
            continue
        width = 4 if ops.dtype(tensor) == "float32" else 2
        total += width * int(np.prod(tensor.shape)) * (1 if shared else texts)
    return total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_the_formula_is_what_the_cache_holds(case, dtype):
    style, options = CASES[case]
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    fusion = STYLES[style](**{"dim": D, "image_dim": DI, "depth": 3, "num_heads": 2, "dtype": policy, **options})
    fusion.build((None, None, D), (None, None, fusion.image_dim))
    size = fusion.cache_size(T, P)
    cache = fusion.init_cache(B, T, np.ones((B, P, fusion.image_dim), "float32"))
    for texts in (1, 4):
        assert size.bytes(B, texts, dtype) == bytes_held(cache, texts)


def test_every_style_is_here():
    assert {style for style, _ in CASES.values()} == set(STYLES)


def test_cross_is_the_published_formula():
    size = STYLES["cross"](dim=768, image_dim=1024, depth=12, num_heads=12).cache_size(20, 577)
    assert size.own == 2 * 12 * 20 * 12 * 64 and size.shared == 2 * 12 * 577 * 12 * 64
    assert size.bytes(images=4, texts=3) == 4 * (4 * size.shared + 4 * 3 * size.own)


def test_a_length_is_at_least_one():
    with pytest.raises(ConfigError, match="image_length"):
        STYLES["cross"](dim=D).cache_size(5, 0)
