"""Positions along a line and over a grid against plain NumPy and torch."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import to_numpy, value_and_gradients
from layer_reference import built, dense, stream

from mmfusion.errors import ConfigError
from mmfusion.layers import LearnedPositions, PatchEmbedding, SinusoidalPositions, TokenEmbedding, resize_grid
from mmfusion.layers.positions import sinusoid_grid, sinusoids

B, N, D = 2, 6, 8


def waves(places: np.ndarray, dim: int, base: float = 10000.0) -> np.ndarray:
    table = np.zeros((len(places), dim))
    for row, place in enumerate(places):
        for i in range(dim // 2):
            table[row, 2 * i], table[row, 2 * i + 1] = (f(place / base ** (2 * i / dim)) for f in (np.sin, np.cos))
    return table


def grid_waves(rows: int, columns: int, dim: int) -> np.ndarray:
    places = [(row, column) for row in range(rows) for column in range(columns)]
    halves = [waves(np.array([place[axis] for place in places]), dim // 2) for axis in (0, 1)]
    return np.concatenate(halves, axis=1)


def test_sinusoids():
    np.testing.assert_allclose(to_numpy(sinusoids(np.arange(3, 9), D, 50.0)), waves(np.arange(3, 9), D, 50.0), atol=1e-5)
    np.testing.assert_allclose(to_numpy(sinusoid_grid(2, 3, D)), grid_waves(2, 3, D), atol=1e-5)
    layer, tokens = SinusoidalPositions(), stream(B, N, D)
    np.testing.assert_allclose(to_numpy(layer(tokens, offset=2)), tokens + waves(np.arange(2, 2 + N), D), atol=1e-5)
    np.testing.assert_allclose(to_numpy(layer(tokens, grid=(3, 2))), tokens + grid_waves(3, 2, D), atol=1e-5)
    np.testing.assert_allclose(to_numpy(SinusoidalPositions(grid=(2, 3))(tokens)), tokens + grid_waves(2, 3, D), atol=1e-5)


@pytest.mark.parametrize(("grid", "new"), [((4, 6), (7, 5)), ((3, 3), (2, 9)), ((1, 2), (4, 1)), ((14, 14), (24, 16))])
def test_resized_as_torch_does(grid, new):
    torch = pytest.importorskip("torch")
    position = stream(grid[0] * grid[1], 5)
    planes = torch.from_numpy(position.T.reshape(1, 5, *grid))
    expected = torch.nn.functional.interpolate(planes, size=new, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(to_numpy(resize_grid(position, grid, new)), expected.numpy().reshape(5, -1).T, atol=1e-5)


def test_resizing_keeps_what_is_constant_and_what_is_there():
    np.testing.assert_allclose(to_numpy(resize_grid(np.ones((6, 1), "float32"), (2, 3), (5, 7))), 1.0, atol=1e-6)
    position = stream(6, D)
    assert resize_grid(position, (2, 3), (2, 3)) is position


def test_learned_positions():
    tokens, line, grid = stream(B, N, D), built(LearnedPositions(length=9), (None, None, D)), LearnedPositions(grid=(2, 3))
    table = to_numpy(line.position)
    np.testing.assert_allclose(to_numpy(line(tokens)), tokens + table[:N], atol=1e-6)
    np.testing.assert_allclose(to_numpy(line(tokens, offset=keras.ops.convert_to_tensor(3))), tokens + table[3:], atol=1e-6)
    built(grid, (None, None, D))
    np.testing.assert_allclose(to_numpy(grid(tokens)), tokens + to_numpy(grid.position), atol=1e-6)
    other = stream(B, 20, D)
    expected = other + to_numpy(resize_grid(grid.position, (2, 3), (4, 5)))
    np.testing.assert_allclose(to_numpy(grid(other, grid=(4, 5))), expected, atol=1e-5)
    _, (_, found) = value_and_gradients(lambda x: keras.ops.sum(grid(x, grid=(4, 5)) ** 2), [other], grid.trainable_weights)
    assert found.shape == (N, D) and np.abs(found).min() > 0


def test_embeddings_without_learned_positions():
    images, ids = stream(B, 4, 6, 3), np.array([[1, 2, 3], [4, 0, 1]])
    patches = {kind: PatchEmbedding(patch_size=2, dim=D, positions=kind) for kind in ("learned", "sinusoidal", "none")}
    texts = {kind: TokenEmbedding(vocabulary_size=5, dim=D, max_length=4, positions=kind) for kind in patches}
    for kind in ("sinusoidal", "none"):
        patch, text = built(patches[kind], (None, 4, 6, 3)), built(texts[kind])
        assert len(patch.weights) == 2 and len(text.weights) == 2
        wave = 1.0 if kind == "sinusoidal" else 0.0
        cut = images.reshape(B, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, 6, 12)
        expected = dense(patch.projection, cut) + wave * grid_waves(2, 3, D)
        np.testing.assert_allclose(to_numpy(patch(images)), expected, atol=1e-5)
        expected = to_numpy(text.embedding)[ids] + wave * waves(np.arange(1, 4), D)
        np.testing.assert_allclose(to_numpy(text(ids, offset=1)), expected, atol=1e-5)
        assert type(patch).from_config(patch.get_config()).positions == kind
    built(patches["learned"], (None, 4, 6, 3)), built(texts["learned"])
    assert [w.name for w in patches["learned"].weights] == ["position_embedding", "kernel", "bias"]
    assert [w.name for w in texts["learned"].weights] == ["embedding", "position_embedding", "output_bias"]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: LearnedPositions(), "impossible positions .*a length or a grid"),
    (lambda: LearnedPositions(length=3, grid=(1, 3)), "impossible positions"),
    (lambda: LearnedPositions(grid=(0, 3)), "impossible positions"),
    (lambda: LearnedPositions(length=3)(stream(B, N, D)), r"do not fit the positions .*expected 3 tokens, found 6"),
    (lambda: LearnedPositions(grid=(2, 3))(stream(B, N, D), grid=(2, 2)), "expected 2 x 2 tokens, found 6"),
    (lambda: SinusoidalPositions(grid=(2, 2))(stream(B, N, D)), "expected 2 x 2 tokens, found 6"),
    (lambda: SinusoidalPositions()(stream(B, N, 3)), "sinusoids do not fill .*a multiple of 2, found 3"),
    (lambda: SinusoidalPositions(grid=(2, 3))(stream(B, N, 6)), "a multiple of 4, found 6"),
    (lambda: PatchEmbedding(patch_size=2, dim=6, positions="sinusoidal"), "a multiple of 4, found 6"),
    (lambda: TokenEmbedding(vocabulary_size=5, dim=6, max_length=4, positions="rotary"), "unknown positions .*found 'rotary'"),
])  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
