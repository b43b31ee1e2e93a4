"""TubeletEmbedding and SpaceTimeBlock: against plain NumPy, frame by frame, and what masks promise of them."""

from __future__ import annotations

import layer_reference as reference
import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops
from layer_reference import built, padding, stream, to_numpy

from mmfusion.errors import ConfigError
from mmfusion.layers import SpaceTimeBlock, TubeletEmbedding

B, F, H, W, D = 2, 4, 4, 6, 8
CLIPS, FRAMES = stream(B, F, H, W, 3), padding([F, 3], F)


def embedding(tubelet_size: int = 2) -> TubeletEmbedding:
    return built(TubeletEmbedding(patch_size=2, tubelet_size=tubelet_size, dim=D), (None, F, H, W, 3))


def space_time(**options) -> SpaceTimeBlock:
    return built(SpaceTimeBlock(num_frames=F, num_heads=2, **options), (None, None, D))


@pytest.mark.parametrize("tubelet_size", [1, 2, 4])
def test_tubelets_equal_loops(tubelet_size):
    layer = embedding(tubelet_size)
    kernel, bias = (to_numpy(w) for w in layer.projection.weights)
    space, time = to_numpy(layer.space), to_numpy(layer.time)
    clips = CLIPS * FRAMES[:, :, None, None, None]
    expected = np.zeros((B, F // tubelet_size, H // 2, W // 2, D))
    for frame, row, column in np.ndindex(*expected.shape[1:4]):
        box = clips[:, frame * tubelet_size :, row * 2 : row * 2 + 2, column * 2 : column * 2 + 2][:, :tubelet_size]
        place = row * (W // 2) + column
        expected[:, frame, row, column] = box.reshape(B, -1) @ kernel + bias + space[place] + time[frame]
    np.testing.assert_allclose(to_numpy(layer(CLIPS, FRAMES)), expected.reshape(B, -1, D), atol=1e-5)
    # Three real frames fill two boxes of two, and one of four.
    real = np.repeat(FRAMES.reshape(B, -1, tubelet_size).any(-1), H * W // 4, axis=1)
    np.testing.assert_array_equal(np.asarray(layer.token_mask(FRAMES)), real)


@pytest.mark.parametrize("kernel", ["exact", "chunked"])
def test_divided_attention_equals_loops(kernel):
    layer, places = space_time(kernel=kernel), 3
    tokens, mask = stream(B, F * places, D), np.repeat(FRAMES, places, axis=1)
    mask[0, 1] = False  # a token inside a real frame
    x = tokens.astype("float64")
    seen = np.zeros_like(x)
    for frame in range(F):
        part = slice(frame * places, (frame + 1) * places)
        seen[:, part] = reference.attention(layer.space, reference.layer_norm(layer.space_norm, x)[:, part], None, mask[:, part])[
            0
        ]
    x = x + seen
    for place in range(places):
        part = slice(place, None, places)
        seen[:, part] = reference.attention(layer.time, reference.layer_norm(layer.time_norm, x)[:, part], None, mask[:, part])[0]
    x = x + seen
    hidden = reference.gelu(reference.dense(layer.feed_forward.hidden, reference.layer_norm(layer.feed_forward_norm, x)))
    x = x + reference.dense(layer.feed_forward.output_dense, hidden)
    np.testing.assert_allclose(to_numpy(layer(tokens, mask))[mask], x[mask], atol=5e-5)


@pytest.mark.parametrize("filler", [3.0, np.inf, np.nan])
def test_padding_never_matters(filler):
    layer, block, places = embedding(1), space_time(), H * W // 4
    mask = np.repeat(FRAMES, places, axis=1)
    results = []
    for clips in (CLIPS, np.where(FRAMES[..., None, None, None], CLIPS, filler).astype("float32")):

        def loss(x):
            return ops.sum(ops.square(block(layer(x, FRAMES), mask)) * mask[..., None].astype("float32"))

        results.append((to_numpy(block(layer(clips, FRAMES), mask))[mask], value_and_gradients(loss, [clips], layer.weights)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for one, two in zip(results[0][1][1], results[1][1][1], strict=True):
        assert np.isfinite(two).all()
        np.testing.assert_array_equal(one, two)
    tokens = np.where(mask[..., None], stream(B, F * places, D), filler).astype("float32")
    expected = to_numpy(block(stream(B, F * places, D), mask))[mask]
    np.testing.assert_array_equal(to_numpy(block(tokens, mask))[mask], expected)


def test_a_shorter_clip_is_a_padded_one():
    short = built(SpaceTimeBlock(num_frames=2, num_heads=2), (None, None, D))
    tokens, mask = stream(1, F * 3, D), np.arange(F * 3)[None] < 6
    np.testing.assert_allclose(to_numpy(space_time()(tokens, mask))[:, :6], to_numpy(short(tokens[:, :6])), atol=1e-5)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: embedding()(stream(1, F, H, W, 3).astype("int32")), "clips have a wrong dtype.*found int32"),
    (lambda: embedding()(stream(1, F, H, 8, 3)), r"another size than the layer was built for.*found \[1, 4, 4, 8, 3\]"),
    (lambda: embedding()(CLIPS, FRAMES[:, :2]), r"frame_mask does not fit"),
    (lambda: embedding(3), "tubelets do not fill the clips.*frames a multiple of 3"),
    (lambda: TubeletEmbedding(patch_size=2, tubelet_size=0, dim=3), "impossible sizes.*found 2, 0 and 3"),
    (lambda: space_time()(stream(1, 7, D)), "no whole frames.*a multiple of 4 tokens, found 7"),
    (lambda: SpaceTimeBlock(num_frames=0, num_heads=1), "impossible number of frames"),
])  # fmt: skip
def test_errors_say_what_is_wrong(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
