"""VideoTransformer and MultiImageEncoder."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized
from gradients import graph, to_numpy

from mmfusion.encoders import MultiImageEncoder, VideoTransformer, VisionTransformer
from mmfusion.errors import ConfigError

B, F, SIDE, D = 3, 4, 16, 12
CLIPS = np.random.default_rng(0).normal(size=(B, F, SIDE, SIDE, 3)).astype("float32")
MASK = np.arange(F) < np.array([[F], [2], [3]])


def video(**options) -> VideoTransformer:
    encoder = VideoTransformer(
        **{"image_size": SIDE, "num_frames": F, "patch_size": 8, "dim": D, "depth": 2, "num_heads": 2, **options}
    )
    encoder.build()
    return randomized(encoder)


def multi(**options) -> MultiImageEncoder:
    still = VisionTransformer(image_size=SIDE, patch_size=8, dim=D, depth=1, num_heads=2, name="still")
    encoder = MultiImageEncoder(**{"encoder": still, "max_images": F, "num_heads": 2, **options})
    encoder.build()
    return randomized(encoder)


ENCODERS = {
    "tiled": video,
    "tiled in twos": lambda: video(tubelet_size=2),
    "factorised": lambda: video(attention="factorised"),
    "factorised in twos": lambda: video(attention="factorised", tubelet_size=2, kernel="chunked"),
    "multi": multi,
    "multi apart": lambda: multi(joint_depth=0),
}


@pytest.fixture(params=sorted(ENCODERS))
def encoder(request) -> keras.layers.Layer:
    return ENCODERS[request.param]()


def test_tokens_grid_and_mask_fit_each_other(encoder):
    tokens, mask = encoder(CLIPS, image_mask=MASK), np.asarray(encoder.token_mask(MASK))
    frames, rows, columns = encoder.grid
    assert tuple(tokens.shape) == (B, frames * rows * columns, D) == encoder.compute_output_shape(CLIPS.shape)
    real = MASK.reshape(B, frames, -1).any(-1)
    np.testing.assert_array_equal(
        mask.reshape(B, frames, rows, columns), np.broadcast_to(real[..., None, None], (B, frames, 2, 2))
    )
    assert encoder.token_mask(None) is None
    assert tuple(encoder.images_shape) == (None, F, SIDE, SIDE, 3)


@pytest.mark.parametrize("filler", [1.0, np.inf, np.nan])
def test_padding_never_matters(encoder, filler):
    mask = np.asarray(encoder.token_mask(MASK))
    filled = np.where(MASK[..., None, None, None], CLIPS, filler).astype("float32")
    expected = to_numpy(encoder(CLIPS, image_mask=MASK))[mask]
    np.testing.assert_array_equal(to_numpy(encoder(filled, image_mask=MASK))[mask], expected)
    assert np.isfinite(to_numpy(encoder(filled, image_mask=np.zeros_like(MASK)))).all()


def test_all_real_is_no_mask(encoder):
    np.testing.assert_allclose(to_numpy(encoder(CLIPS)), to_numpy(encoder(CLIPS, image_mask=np.ones_like(MASK))), atol=1e-6)


def test_configuration_and_graph(encoder):
    copy = type(encoder).from_config(encoder.get_config())
    copy.build()
    assert copy.get_config() == encoder.get_config()
    assert [tuple(w.shape) for w in copy.weights] == [tuple(w.shape) for w in encoder.weights]
    free = graph(encoder, ((None, None, SIDE, SIDE, 3), "float32"), ((None, None), "bool"))
    np.testing.assert_allclose(to_numpy(free(CLIPS, MASK)), to_numpy(encoder(CLIPS, MASK)), atol=1e-5)


@pytest.mark.parametrize("kind", ["factorised in twos", "multi"])
def test_file(kind, tmp_path):
    encoder = ENCODERS[kind]()
    inputs = {
        "images": keras.Input(CLIPS.shape[1:], name="images"),
        "image_mask": keras.Input(MASK.shape[1:], dtype="bool", name="image_mask"),
    }
    model, both = keras.Model(inputs, encoder(**inputs)), {"images": CLIPS, "image_mask": MASK}
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(keras.models.load_model(tmp_path / "model.keras")(both)), to_numpy(model(both)))


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["factorised", "multi"])
def test_half_precision(kind, dtype):
    if kind == "multi":
        still = VisionTransformer(image_size=SIDE, patch_size=8, dim=D, depth=1, num_heads=2, dtype=dtype)
        encoder = MultiImageEncoder(encoder=still, max_images=F, num_heads=2, dtype=dtype)
    else:
        encoder = video(attention=kind, dtype=dtype)
    tokens = encoder(CLIPS, image_mask=MASK)
    assert keras.backend.standardize_dtype(tokens.dtype) == encoder.compute_dtype
    assert np.isfinite(to_numpy(tokens)).all()


def test_attention_and_the_order_of_frames():
    """Without positions of time, tiled attention moves with the frames; with them it does not."""
    backwards = CLIPS[:, ::-1]
    for encoder in (video(), video(attention="factorised")):
        tokens, other = (to_numpy(encoder(clips)).reshape(B, F, -1, D) for clips in (CLIPS, backwards))
        assert np.abs(tokens - other[:, ::-1]).max() > 1e-2
        encoder.embedding.time.assign(np.zeros((F, D)))
        tokens, other = (to_numpy(encoder(clips)).reshape(B, F, -1, D) for clips in (CLIPS, backwards))
        np.testing.assert_allclose(tokens, other[:, ::-1], atol=1e-4)


def test_frames_meet_within_a_factorised_block_only_at_their_place():
    encoder = video(attention="factorised", depth=1)
    changed = CLIPS.copy()
    changed[:, 0, :8, :8] += 1.0  # frame 0, first patch
    moved = np.abs(to_numpy(encoder(changed)) - to_numpy(encoder(CLIPS))).reshape(B, F, 4, D).max((0, 3)) > 1e-5
    # Space spreads it over frame 0, time from there to every place of the other frames.
    assert moved.all()
    block = encoder.blocks[0]
    block.space.output_projection.kernel.assign(np.zeros((D, D)))
    moved = np.abs(to_numpy(encoder(changed)) - to_numpy(encoder(CLIPS))).reshape(B, F, 4, D).max((0, 3)) > 1e-5
    np.testing.assert_array_equal(moved, np.repeat([[True, False, False, False]], F, axis=0))


def test_each_image_passes_through_the_wrapped_encoder():
    encoder = multi(joint_depth=0)
    number = to_numpy(encoder.number)
    for image in range(F):
        expected = to_numpy(encoder.encoder(CLIPS[:, image])) + number[image]
        np.testing.assert_allclose(to_numpy(encoder(CLIPS))[:, 4 * image : 4 * image + 4], expected, atol=1e-5)


def test_a_mean_without_joint_blocks_cannot_tell_the_order():
    """Why there is a joint block by default."""
    backwards = CLIPS[:, ::-1]
    apart, joint = multi(joint_depth=0), multi()
    means = [to_numpy(encoder(clips)).mean(1) for encoder in (apart, joint) for clips in (CLIPS, backwards)]
    np.testing.assert_allclose(means[0], means[1], atol=1e-5)
    assert np.abs(means[2] - means[3]).max() > 1e-2


@pytest.mark.parametrize(("make", "message"), [
    (lambda: video(tubelet_size=3), "tubelets do not fill the clips.*num_frames a multiple of 3"),
    (lambda: video(attention="windowed"), "unknown attention.*tiled or factorised, found 'windowed'"),
    (lambda: video()(CLIPS[:, :2]), r"another size.*\['batch', 4, 16, 16, 3\], found \[3, 2, 16, 16, 3\]"),
    (lambda: multi()(CLIPS[:, :2]), r"another number.*\['batch', 4, 16, 16, 3\], found \[3, 2, 16, 16, 3\]"),
    (lambda: multi()(CLIPS[:, 0]), r"another number.*found \[3, 16, 16, 3\]"),
    (lambda: multi(max_images=0), "impossible sizes.*found 0 and 1"),
    (lambda: multi()(CLIPS, image_mask=MASK[:, :3]), "image_mask does not fit"),
])  # fmt: skip
def test_errors_say_what_is_wrong(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
