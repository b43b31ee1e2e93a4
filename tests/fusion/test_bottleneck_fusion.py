"""BottleneckFusion: the streams meet in the bottleneck and nowhere else."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized
from gradients import to_numpy, value_and_gradients

from mmfusion.errors import ConfigError
from mmfusion.fusion import BottleneckFusion

T, P, D = 6, 7, 4
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = (RANDOM.normal(size=(1, n, D)).astype("float32") for n in (T, P))


class Severed(BottleneckFusion):
    """Whose bottleneck comes back from the image as it went there."""

    def _read_image(self, index, bottleneck, image, *arguments):
        _, image, reads = super()._read_image(index, bottleneck, image, *arguments)
        return bottleneck, image, reads


def build(kind=BottleneckFusion, **options) -> BottleneckFusion:
    fusion = kind(**{"dim": D, "depth": 2, "num_heads": 2, "num_bottlenecks": 2, **options})
    fusion.build()
    return randomized(fusion, scale=0.5)


@pytest.mark.parametrize("causal", [False, True])
def test_without_the_bottleneck_nothing_of_the_image_reaches_the_text(causal):
    joined, severed = build(), build(Severed)
    for fusion, flows in ((joined, True), (severed, False)):
        first, second = (to_numpy(fusion(TEXT, image, causal=causal).text) for image in (IMAGE, -IMAGE))
        assert (np.abs(first - second).max() > 1e-3) == flows


@pytest.mark.parametrize("count", [1, 2])
def test_the_text_knows_no_more_of_the_image_than_the_bottleneck_holds(count):
    fusion = build(depth=1, num_bottlenecks=count)
    probe = RANDOM.normal(size=(20, T, D)).astype("float32")
    text, image = (np.repeat(x, len(probe), axis=0) for x in (TEXT, IMAGE))
    _, (gradient,) = value_and_gradients(lambda image: keras.ops.sum(fusion(text, image).text * probe), [image])
    sizes = np.linalg.svd(gradient.reshape(len(probe), -1), compute_uv=False)
    # All that T words say of P patches, in 20 different ways, passes through count tokens of D numbers.
    assert count <= np.sum(sizes > 1e-5 * sizes[0]) <= count * D


def test_the_text_writes_to_the_bottleneck_unless_it_is_read_from_left_to_right():
    fusion = build(depth=2)
    for causal in (False, True):
        first, second = (to_numpy(fusion(text, IMAGE, causal=causal).image) for text in (TEXT, -TEXT))
        assert (np.abs(first - second).max() > 1e-4) != causal


def test_a_window_is_of_patches_alone():
    patches = RANDOM.normal(size=(1, 300, D)).astype("float32")
    fusion, whole = build(kernel="local"), build()
    assert {block.kernel for block in fusion.blocks} == {"chunked"}
    other = patches.copy()
    other[:, 299] *= -5.0
    first, second = (to_numpy(fusion(TEXT, x).text) for x in (patches, other))
    assert np.abs(first - second).max() > 1e-5, "the bottleneck sees all"
    assert np.abs(first - to_numpy(whole(TEXT, patches).text)).max() > 1e-5, "patches do not"


def test_a_step_in_half_precision_returns_a_cache_of_the_form_that_it_was_given():
    fusion = build(dtype="mixed_bfloat16")
    cache = fusion.init_cache(1, T, IMAGE)
    output = fusion(TEXT[:, :1], causal=True, cache=cache, return_scores=True)
    forms = [[(x.shape, x.dtype) for x in keras.tree.flatten(c) if x is not None] for c in (cache, output.cache)]
    assert forms[0] == forms[1]
    np.testing.assert_allclose(to_numpy(output.scores).sum(-1), 1.0, atol=1e-5)


def test_no_bottleneck_is_refused():
    with pytest.raises(ConfigError, match="impossible num_bottlenecks"):
        BottleneckFusion(dim=D, num_heads=2, num_bottlenecks=0)
