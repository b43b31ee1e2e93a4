"""What is particular to `QFormerFusion`: who sees whom, and when the queries look at the image."""

from __future__ import annotations

import numpy as np
import pytest
from factories import randomized
from gradients import graph, to_numpy

from mmfusion.errors import ConfigError
from mmfusion.fusion import QFormerFusion
from mmfusion.layers import QFormerBlock

B, T, P, N, D, DI = 2, 4, 5, 3, 8, 6
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = (RANDOM.normal(size=shape).astype("float32") for shape in ((B, T, D), (B, P, DI)))
TEXT_MASK = np.array([[True] * T, [True] * 3 + [False]])
IMAGE_MASK = np.array([[True] * 3 + [False] * 2, [True] * P])


def made(depth=3, num_queries=N, **options):
    fusion = QFormerFusion(dim=D, image_dim=DI, depth=depth, num_heads=2, num_queries=num_queries, **options)
    fusion.build()
    return randomized(fusion, scale=0.4)


def changed(array, index):
    other = array.copy()
    other[:, index] = RANDOM.normal(size=other[:, index].shape)
    return other


def difference(one, two):
    return np.abs(to_numpy(one) - to_numpy(two)).max(axis=(0, 2))


def test_queries_see_no_text_when_causal_and_do_when_matching():
    fusion = made()
    for causal in (True, False):
        one, two = (fusion(text, IMAGE, causal=causal) for text in (TEXT, changed(TEXT, 0)))
        assert (difference(one.image, two.image) > 1e-3).all() == (not causal)
        if causal:
            np.testing.assert_array_equal(to_numpy(one.image), to_numpy(two.image))
            np.testing.assert_allclose(to_numpy(one.image), to_numpy(fusion.image_tokens(IMAGE)), atol=1e-5)


def test_text_sees_earlier_text_and_the_queries_when_causal():
    fusion = made()
    plain = fusion(TEXT, IMAGE, causal=True).text
    later = difference(plain, fusion(changed(TEXT, 2), IMAGE, causal=True).text)
    assert (later[:2] == 0).all() and (later[2:] > 1e-3).all()
    assert (difference(plain, fusion(TEXT, changed(IMAGE, 1), causal=True).text) > 1e-3).all()


def test_text_reads_the_image_from_the_second_layer_on():
    for depth, informed in ((1, False), (2, True)):
        fusion = made(depth=depth)
        one, two = (fusion(TEXT, image, return_scores=True) for image in (IMAGE, changed(IMAGE, 0)))
        assert (difference(one.text, two.text) > 1e-3).any() == informed == fusion.informs_text
        assert (difference(one.image, two.image) > 1e-3).all()
        sums = to_numpy(one.scores).sum(-1)
        np.testing.assert_allclose(sums, np.broadcast_to(np.arange(depth)[:, None, None] > 0, sums.shape), atol=1e-6)


def test_looks_every_so_many_layers():
    assert [block.cross_attention for block in made(depth=5, cross_every=2).blocks] == [True, False, True, False, True]
    assert [block.cross_attention for block in made(depth=4, cross_every=3).blocks] == [True, False, False, True]


@pytest.mark.parametrize("cross_every", [1, 2])
def test_with_one_query_text_looks_where_it_looked(cross_every):
    """All that text can read of the queries is the one: its scores are known from the block's own."""
    fusion = made(num_queries=1, cross_every=cross_every)
    scores = to_numpy(fusion(TEXT, IMAGE, image_mask=IMAGE_MASK, causal=True, return_scores=True).scores)
    tokens, looks = np.broadcast_to(to_numpy(fusion.queries), (B, 1, D)), []
    for layer, block in enumerate(fusion.blocks):
        expected = np.mean(looks, axis=0) if looks else np.zeros((B, P))
        np.testing.assert_allclose(scores[:, layer], np.broadcast_to(expected[:, None, None], (B, 2, T, P)), atol=1e-5)
        image = {"context": IMAGE, "context_mask": IMAGE_MASK} if block.cross_attention else {}
        tokens, _, cross_scores, _, _ = block(tokens, num_queries=1, return_scores=True, **image)
        if cross_scores is not None:
            looks.append(to_numpy(cross_scores)[:, :, 0].mean(axis=1))
    assert scores[:, 1:, ..., :].max() < 1.0


def test_as_many_queries_whatever_the_image():
    fusion = made()
    for length in (1, 40):
        image = np.ones((B, length, DI), "float32")
        assert tuple(fusion(TEXT, image).image.shape) == tuple(fusion.image_tokens(image).shape) == (B, N, fusion.image_width)


@pytest.mark.parametrize("options", [{"norm_first": False}, {"kernel": "local"}, {"kernel": "linear"}])
def test_cached_steps_equal_the_causal_pass_scores_too(options):
    fusion = made(**options)
    whole = fusion(TEXT, IMAGE, text_mask=TEXT_MASK, image_mask=IMAGE_MASK, causal=True, return_scores=True)
    cache, texts, scores = fusion.init_cache(B, T, IMAGE, IMAGE_MASK), [], []
    for t in range(T):
        step = fusion(TEXT[:, t : t + 1], cache=cache, causal=True, text_mask=TEXT_MASK, return_scores=True)
        cache, texts, scores = step.cache, [*texts, to_numpy(step.text)], [*scores, to_numpy(step.scores)]
    texts, expected = np.concatenate(texts, axis=1), to_numpy(whole.text)
    np.testing.assert_allclose(texts[TEXT_MASK], expected[TEXT_MASK], atol=1e-5)
    scores, expected = (np.moveaxis(x, 3, 1)[TEXT_MASK] for x in (np.concatenate(scores, axis=3), to_numpy(whole.scores)))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_what_is_refused():
    for name in ("num_queries", "cross_every"):
        with pytest.raises(ConfigError, match=f"impossible {name}"):
            QFormerFusion(dim=D, num_heads=2, **{name: 0})
    block = QFormerBlock(num_heads=2)
    block.build((None, None, D), (None, None, DI))
    with pytest.raises(ConfigError, match="num_queries does not fit the tokens.*0 to 4.*found 5"):
        block(TEXT, context=IMAGE, num_queries=5)
    with pytest.raises(ConfigError, match="a context is missing"):
        block(TEXT, num_queries=2)
    with pytest.raises(ConfigError, match="a context is missing, or has no reader"):
        block(TEXT, context=IMAGE)
    config = QFormerBlock(num_heads=2, norm_first=False, layer_scale=0.1, cross_attention=False, name="a").get_config()
    assert QFormerBlock.from_config(config).get_config() == config


def test_a_graph_of_unknown_sizes_with_masks():
    fusion = made(depth=2)
    function = graph(
        lambda text, image, text_mask, image_mask: fusion(text, image, text_mask=text_mask, image_mask=image_mask).text,
        ((None, None, D), "float32"), ((None, None, DI), "float32"), ((None, None), "bool"), ((None, None), "bool"),
    )  # fmt: skip
    expected = fusion(TEXT, IMAGE, text_mask=TEXT_MASK, image_mask=IMAGE_MASK).text
    np.testing.assert_allclose(to_numpy(function(TEXT, IMAGE, TEXT_MASK, IMAGE_MASK)), to_numpy(expected), atol=1e-5)
