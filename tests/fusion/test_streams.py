"""What the styles that keep both streams share: who sees whom in each reading, caches, kernels, costs."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from factories import randomized
from gradients import to_numpy

from mmfusion.fusion import STYLES

B, T, P, D, DI, LAYERS = 2, 5, 6, 8, 12, 2
VARIANTS = {
    "cross": {},
    "cross both": {"direction": "both"},
    "co": {},
    "co shared": {"shared_cross": True},
    "merged": {},
    "bottleneck": {"num_bottlenecks": 3},
}
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = RANDOM.normal(size=(B, T, D)).astype("float32"), RANDOM.normal(size=(B, P, DI)).astype("float32")
TEXT_MASK = np.arange(T) < np.array([[T], [3]])
IMAGE_MASK = np.arange(P) < np.array([[P], [4]])


@functools.cache  # no test here changes a weight
def build(variant: str, **options):
    layer = STYLES[variant.split()[0]](
        **{"dim": D, "image_dim": DI, "depth": LAYERS, "num_heads": 2}, **VARIANTS[variant], **options
    )
    layer.build((None, None, D), (None, None, DI))
    return randomized(layer)


@pytest.fixture(params=sorted(VARIANTS))
def variant(request) -> str:
    return request.param


def test_who_sees_whom(variant):
    fusion = build(variant)
    other_text, other_image = TEXT.copy(), IMAGE.copy()
    other_text[:, 3:] *= -1.0
    other_image[:, -1] *= -1.0
    for causal in (False, True):
        base, later, looked = (
            fusion(text, image, causal=causal) for text, image in ((TEXT, IMAGE), (other_text, IMAGE), (TEXT, other_image))
        )
        change = np.abs(to_numpy(later.text) - to_numpy(base.text)).max((0, 2))
        assert change[3:].min() > 1e-3
        assert (change[:3].max() == 0) == causal, "a word sees those after it unless it is read from left to right"
        assert np.abs(to_numpy(looked.text) - to_numpy(base.text)).max((0, 2)).min() > 1e-4, "every word sees every patch"
        moved = np.abs(to_numpy(later.image) - to_numpy(base.image)).max()
        assert (moved > 1e-4) == (not causal and variant != "cross"), "the image sees the text in both ways' reading alone"


@pytest.mark.parametrize(("name", "norm_first"), [*((name, True) for name in VARIANTS), ("co", False), ("merged", False)])
def test_cached_steps_equal_the_causal_pass_masks_and_scores_too(name, norm_first):
    fusion = build(name) if norm_first else build(name, norm_first=False)
    whole = fusion(TEXT, IMAGE, TEXT_MASK, IMAGE_MASK, causal=True, return_scores=True)
    cache = fusion.init_cache(B, T, IMAGE, IMAGE_MASK)
    texts, scores = [], []
    for start, stop in ((0, 1), (1, 3), (3, T)):
        step = fusion(TEXT[:, start:stop], text_mask=TEXT_MASK, causal=True, cache=cache, return_scores=True)
        assert step.image is None
        cache = step.cache
        texts.append(to_numpy(step.text))
        scores.append(to_numpy(step.scores))
    np.testing.assert_allclose(np.concatenate(texts, axis=1)[TEXT_MASK], to_numpy(whole.text)[TEXT_MASK], atol=1e-5)
    expected = to_numpy(whole.scores)
    real = np.broadcast_to(TEXT_MASK[:, None, None, :, None], expected.shape)
    np.testing.assert_allclose(np.concatenate(scores, axis=3)[real], expected[real], atol=1e-5)
    np.testing.assert_allclose(expected.sum(-1), 1.0, atol=1e-5)
    assert (expected[1, ..., 4:] == 0).all(), "nothing looks at what is behind the mask"


@pytest.mark.parametrize(("name", "causal"), [("cross both", False), ("merged", True), ("bottleneck", True)])
def test_chunked_equals_exact(name, causal):
    outputs = [
        build(name, **options)(TEXT, IMAGE, TEXT_MASK, IMAGE_MASK, causal=causal) for options in ({}, {"kernel": "chunked"})
    ]
    for exact, chunked in zip(outputs[0][:2], outputs[1][:2], strict=True):
        mask = TEXT_MASK if exact.shape[1] == T else IMAGE_MASK
        np.testing.assert_allclose(to_numpy(exact)[mask], to_numpy(chunked)[mask], atol=1e-5)


@pytest.mark.parametrize("name", ["merged", "bottleneck"])
def test_linear_attention_is_causal_and_cached_too(name):
    fusion = build(name, kernel="linear")
    whole = to_numpy(fusion(TEXT, IMAGE, image_mask=IMAGE_MASK, causal=True).text)
    cache = fusion.init_cache(B, T, IMAGE, IMAGE_MASK)
    first = fusion(TEXT[:, :2], causal=True, cache=cache)
    second = fusion(TEXT[:, 2:], causal=True, cache=first.cache)
    np.testing.assert_allclose(np.concatenate([to_numpy(first.text), to_numpy(second.text)], axis=1), whole, atol=1e-5)


def test_common_arguments_reach_every_block(variant):
    options = {"mlp_ratio": 2.0, "dropout": 0.1, "attention_dropout": 0.2, "stochastic_depth": 0.3, "layer_scale": 0.01}
    fusion = STYLES[variant.split()[0]](dim=D, image_dim=DI, depth=LAYERS, num_heads=2, **VARIANTS[variant], **options)
    copy = type(fusion).from_config(fusion.get_config())
    assert copy.get_config() == fusion.get_config()
    names = ("blocks", "image_blocks", "cross_blocks", "image_cross_blocks")
    blocks = [block for name in names for block in getattr(fusion, name, [])]
    assert len(blocks) >= LAYERS
    for block in blocks:
        assert (block.dropout, block.attention_dropout, block.layer_scale) == (0.1, 0.2, 0.01)
        assert block.stochastic_depth == (0.0 if block.name.endswith("0") else 0.3)
        assert block.mlp_ratio == (
            0.0 if fusion.name.startswith("co_") and "cross" in block.name and fusion.shared_cross else 2.0
        )


def formula(variant: str, text: int, image: int, dim: int, image_dim: int, ratio: int, count: int) -> float:
    """The operations that the docstrings say, a layer."""
    t, p, d, di, r, k = text, image, dim, image_dim, ratio, count

    def queries(t, p, d, di):
        return 2 * (t * d**2 * (6 + 2 * r) + 2 * p * d * di + 2 * t * d * (t + p))

    if variant == "cross":
        return queries(t, p, d, di)
    if variant == "cross both":
        return queries(t, p, d, di) + queries(p, t, di, d)
    if variant == "co":
        return 2 * (
            t * d**2 * (6 + 4 * r) + p * di**2 * (6 + 4 * r) + 2 * (t + p) * d * di + 2 * t * d * (t + p) + 2 * p * di * (t + p)
        )
    if variant == "co shared":
        return 2 * (t + p) * (d**2 * (8 + 2 * r) + 2 * d * (t + p))
    if variant == "merged":
        return 2 * ((t + p) * d**2 * (4 + 2 * r) + 2 * (t + p) ** 2 * d)
    return 2 * ((t + p + 2 * k) * d**2 * (4 + 2 * r) + 2 * d * ((t + k) ** 2 + (p + k) ** 2))


@pytest.mark.parametrize("name", ["cross", "cross both", "co", "co shared", "merged", "bottleneck"])
def test_the_formulas_of_the_docstrings_are_the_cost(name):
    text, image, dim, image_dim, ratio, count = 32, 49, 64, 96, 3, 4
    options = {**VARIANTS[name], "num_bottlenecks": count} if name == "bottleneck" else VARIANTS[name]

    def cost(depth):
        sizes = {"dim": dim, "image_dim": image_dim, "depth": depth, "num_heads": 4, "mlp_ratio": float(ratio)}
        return STYLES[name.split()[0]](**sizes, **options).cost(text, image)

    # A layer more: what the first and the last have of their own falls out.
    assert cost(3).flops - cost(2).flops == pytest.approx(formula(name, text, image, dim, image_dim, ratio, count))
    assert cost(3).memory > cost(2).memory


@pytest.mark.parametrize("name", ["cross both", "bottleneck"])
def test_a_functional_model_of_keras_does_the_same(name):
    fusion = build(name)
    text, image = keras.Input((None, D)), keras.Input((P, DI))
    output = fusion(text, image, return_scores=True)
    assert tuple(output.text.shape) == (None, None, D) and output.cache is None
    model = keras.Model([text, image], [output.text, output.scores])
    expected = fusion(TEXT, IMAGE, return_scores=True)
    for found, wanted in zip(model([TEXT, IMAGE]), (expected.text, expected.scores), strict=True):
        np.testing.assert_array_equal(to_numpy(found), to_numpy(wanted))
