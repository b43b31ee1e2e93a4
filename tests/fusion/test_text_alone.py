"""A fusion's own layers over a text without an image, and parts between (BLIP, CoCa)."""

from __future__ import annotations

import numpy as np
import pytest
from factories import randomized
from gradients import to_numpy

from mmfusion.errors import ConfigError
from mmfusion.fusion import STYLES, CrossFusion
from mmfusion.layers import TransformerBlock

B, T, P, D, DI = 2, 4, 5, 8, 12
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = RANDOM.normal(size=(B, T, D)).astype("float32"), RANDOM.normal(size=(B, P, DI)).astype("float32")
MASK = np.array([[True] * T, [True, True, False, False]])


def build(**options) -> CrossFusion:
    fusion = CrossFusion(**{"dim": D, "image_dim": DI, "depth": 2, "num_heads": 2, **options})
    fusion.build()
    return randomized(fusion)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_layers_without_their_look_at_the_image(norm_first, causal):
    fusion = build(norm_first=norm_first, norm_epsilon=1e-5)
    tokens = TEXT
    for block in fusion.blocks:
        plain = TransformerBlock(num_heads=2, norm_first=norm_first, norm_epsilon=1e-5)
        plain.build((None, None, D))
        for part in ("attention_norm", "attention", "feed_forward_norm", "feed_forward"):
            getattr(plain, part).set_weights(getattr(block, part).get_weights())
        tokens = plain(tokens, mask=MASK, causal=causal)
    expected = to_numpy(tokens if fusion.norm is None else fusion.norm(tokens))
    found = to_numpy(fusion.text_tokens(np.where(MASK[..., None], TEXT, np.nan), MASK, causal=causal))
    np.testing.assert_allclose(found[MASK], expected[MASK], atol=1e-5)
    assert np.abs(found - to_numpy(fusion(TEXT, IMAGE, text_mask=MASK, causal=causal).text))[MASK].max() > 1e-2


def test_who_cannot_read_a_text_alone_says_so():
    options = {"dim": D, "depth": 1, "num_heads": 2}
    fusions = [STYLES[style](**options) for style in STYLES if style != "cross"]
    fusions += [CrossFusion(**options, direction=direction) for direction in ("image", "both")]
    for fusion in fusions:
        fusion.build((None, None, D), (None, None, D))
        with pytest.raises(ConfigError, match="this fusion cannot read a text alone"):
            fusion.text_tokens(TEXT)
    with pytest.raises(ConfigError, match="text_mask"):
        build().text_tokens(TEXT, MASK[:, :2])


def test_parts_between_and_a_normalised_context():
    fusion = build(context_norm=True, feed_forward_between=True, activation="quick_gelu")
    tokens = TEXT
    for block in fusion.blocks:
        assert block.activation == "quick_gelu"
        first = TransformerBlock(num_heads=2, activation="quick_gelu")
        second = TransformerBlock(
            num_heads=2, activation="quick_gelu", self_attention=False, cross_attention=True, context_norm=True
        )
        first.build((None, None, D))
        second.build((None, None, D), (None, None, DI))
        same = {"attention_norm": "attention_norm", "attention": "attention"}
        for layer, parts in (
            (first, {**same, "feed_forward_norm": "between_norm", "feed_forward": "between"}),
            (second, {name: name for name in ("cross_norm", "cross_context_norm", "cross", "feed_forward_norm", "feed_forward")}),
        ):
            for mine, its in parts.items():
                getattr(layer, mine).set_weights(getattr(block, its).get_weights())
        tokens = second(first(tokens, mask=MASK, causal=True), context=IMAGE)
    found = to_numpy(fusion(TEXT, IMAGE, text_mask=MASK, causal=True).text)
    np.testing.assert_allclose(found[MASK], to_numpy(fusion.norm(tokens))[MASK], atol=1e-5)
    copy = CrossFusion.from_config(fusion.get_config())
    assert copy.get_config() == fusion.get_config() and copy.blocks[0].feed_forward_between
