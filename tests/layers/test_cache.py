"""Reading with a cache equals reading at once."""

from __future__ import annotations

import layer_reference as reference
import numpy as np
import pytest
from gradients import graph, tensorflow_only
from keras import ops
from layer_reference import built, padding, stream, to_numpy

from mmfusion.errors import ConfigError
from mmfusion.layers import Attention, KeyValueCache, TransformerBlock
from mmfusion.layers.cache_writing import scattered_writes, write_at

B, T, S, D, DC, ROOM = 2, 6, 5, 12, 8, 9
KERNELS = {"exact": {"kernel": "exact"}, "chunked": {"kernel": "chunked", "chunk_size": 4}}
ALL_KERNELS = {
    **KERNELS,
    "local": {"kernel": "local", "window": 1},
    "local global": {"kernel": "local", "window": 1, "num_global_tokens": 1},
    "linear": {"kernel": "linear"},
}


@pytest.fixture(params=sorted(KERNELS))
def kernel(request) -> dict:
    return KERNELS[request.param]


def pieces(layer, tokens, cache, cuts, **options):
    outputs = []
    for piece in np.split(tokens, cuts, axis=1):
        output, _, cache = layer(piece, cache=cache, **options)
        outputs.append(to_numpy(output))
    return np.concatenate(outputs, axis=1), cache


@pytest.mark.parametrize("options", [{}, {"rotary": True, "query_key_norm": True}, {"num_key_value_heads": 1}])
@pytest.mark.parametrize("cuts", [list(range(1, T)), [3, 4], []], ids=["one by one", "pieces", "at once"])
def test_cached_equals_uncached(kernel, options, cuts):
    layer = built(Attention(num_heads=2, **kernel, **options), (None, None, D))
    tokens = stream(B, T, D)
    found, cache = pieces(layer, tokens, layer.init_cache(B, ROOM), cuts)
    np.testing.assert_allclose(found, to_numpy(layer(tokens, causal=True)), atol=2e-5)
    assert isinstance(cache, KeyValueCache) and int(cache.position) == T
    assert tuple(cache.key.shape) == (B, layer.num_key_value_heads, ROOM, D // 2)
    assert (to_numpy(cache.key)[:, :, T:] == 0).all()


def test_a_mask_over_the_places_of_the_cache(kernel):
    layer = built(Attention(num_heads=2, **kernel), (None, None, D))
    tokens, places = stream(B, T, D), padding([ROOM, ROOM], ROOM).copy()
    places[1, :2] = False  # two tokens of padding on the left
    filled = tokens.copy()
    filled[1, :2] = np.nan
    expected, _ = reference.attention(layer, tokens, None, np.broadcast_to(places[:, None, :T], (B, T, T)), causal=True)
    for given_tokens in (tokens, filled):
        found, _ = pieces(layer, given_tokens, layer.init_cache(B, ROOM), [2, 3], context_mask=places)
        np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
        np.testing.assert_allclose(found[1, 2:], expected[1, 2:], atol=2e-5)
    first, _ = pieces(layer, tokens, layer.init_cache(B, ROOM), [2, 3], context_mask=places)
    second, _ = pieces(layer, filled, layer.init_cache(B, ROOM), [2, 3], context_mask=places)
    np.testing.assert_array_equal(first[1, 2:], second[1, 2:])
    np.testing.assert_array_equal(first[1, :2], 0.0)  # nothing real precedes the padding
    # A pattern of each query, too.
    pattern = np.zeros((B, 2, ROOM), bool)
    pattern[:, 0, 0] = pattern[:, 1, 1] = True
    scores = layer(tokens[:, :2], context_mask=pattern, cache=layer.init_cache(B, ROOM), return_scores=True).scores
    np.testing.assert_allclose(to_numpy(scores)[:, 0], pattern.astype("float32"), rtol=1e-6)


@pytest.mark.parametrize("name", ALL_KERNELS)
@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5], [2, 3]], ids=["one by one", "pieces"])
def test_a_cache_with_gaps_equals_one_pass(name, cuts):
    """Padding on the left, in the middle and on the right, whatever stands there; scores too."""
    layer = built(Attention(num_heads=2, **ALL_KERNELS[name]), (None, None, D))
    places = np.array([[True, True, False, True, True, False], [False, False, True, True, False, True]])
    room = np.concatenate([places, np.ones((B, ROOM - T), bool)], axis=1)
    tokens = stream(B, T, D)
    hidden = np.where(places[..., None], tokens, np.nan).astype("float32")
    expected, scores = layer(tokens, context_mask=places, causal=True, return_scores=True)[:2]
    for given in (tokens, hidden):
        cache, outputs, weights = layer.init_cache(B, ROOM), [], []
        for piece in np.split(given, cuts, axis=1):
            output = layer(piece, context_mask=room, cache=cache, return_scores=True)
            cache = output.cache
            outputs.append(to_numpy(output.output))
            weights.append(to_numpy(output.scores))
        found, seen = np.concatenate(outputs, axis=1), np.concatenate(weights, axis=2)
        np.testing.assert_allclose(found[places], to_numpy(expected)[places], atol=2e-5)
        real = places[:, None, :, None]
        np.testing.assert_allclose(np.where(real, seen[..., :T], 0), np.where(real, to_numpy(scores), 0), atol=1e-5)
        assert not np.where(real, seen[..., T:], 0).any()


def test_scores_of_a_cached_step(kernel):
    layer = built(Attention(num_heads=2, **kernel), (None, None, D))
    tokens = stream(B, T, D)
    _, cache = pieces(layer, tokens[:, :4], layer.init_cache(B, ROOM), [2])
    plain, asked = (layer(tokens[:, 4:], cache=cache, return_scores=asked) for asked in (False, True))
    np.testing.assert_array_equal(to_numpy(plain.output), to_numpy(asked.output))
    assert plain.scores is None and tuple(asked.scores.shape) == (B, 2, 2, ROOM)
    _, expected = reference.attention(layer, tokens, causal=True)
    np.testing.assert_allclose(to_numpy(asked.scores)[..., :T], expected[:, :, 4:], atol=1e-5)
    assert (to_numpy(asked.scores)[..., T:] == 0).all()


def test_a_context_computed_once(kernel):
    layer = built(Attention(num_heads=2, query_key_norm=True, **kernel), (None, None, D), (None, None, DC))
    query, context, mask = stream(B, T, D), stream(B, S, DC, seed=1), padding([S, 2], S)
    context[1, 2:] = np.nan
    cache = layer.project_context(context, mask)
    assert np.isfinite(to_numpy(cache.key)).all()
    result = layer(query, cache=cache)
    np.testing.assert_array_equal(to_numpy(result.output), to_numpy(layer(query, context, mask)))
    assert result.cache.key is cache.key
    # A second mask narrows the cache's own.
    narrow = np.array([[True, False, True, True, True]])
    np.testing.assert_array_equal(
        to_numpy(layer(query, context_mask=narrow, cache=cache).output), to_numpy(layer(query, context, mask & narrow))
    )


def test_steps_in_a_graph_equal_steps_outside(kernel):
    layer = built(Attention(num_heads=2, rotary=True, **kernel), (None, None, D))
    tokens = stream(B, T, D)

    def read(tokens):
        def step(t, cache, outputs):
            token = ops.take(tokens, ops.reshape(t, (1,)), axis=1)
            output, _, cache = layer(token, cache=cache)
            return t + 1, cache, ops.slice_update(outputs, (0, t, 0), output)

        state = ops.convert_to_tensor(0), layer.init_cache(ops.shape(tokens)[0], ROOM), ops.zeros_like(tokens)
        return ops.while_loop(lambda t, *_: t < T, step, state)[2]

    np.testing.assert_allclose(graph(read)(tokens), to_numpy(layer(tokens, causal=True)), atol=2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
def test_the_cache_has_the_dtype_of_the_computation(kernel, dtype):
    layer = built(Attention(num_heads=2, dtype=dtype, **kernel), (None, None, D))
    assert layer.init_cache(B, ROOM).key.dtype == layer.compute_dtype
    tokens = stream(B, T, D)
    found, _ = pieces(layer, tokens, layer.init_cache(B, ROOM), [3])
    np.testing.assert_allclose(found, to_numpy(layer(tokens, causal=True)), atol=5e-2)
    # Another one on request: half the memory, the same computation.
    assert layer(tokens, cache=layer.init_cache(B, ROOM, dtype="float32")).output.dtype == layer.compute_dtype


@pytest.mark.parametrize("crossed", [False, True])
def test_a_block(kernel, crossed):
    block = TransformerBlock(num_heads=2, cross_attention=crossed, rotary=True, **kernel)
    built(block, (None, None, D), (None, None, DC) if crossed else None)
    tokens = stream(B, T, D)
    options = {"context": stream(B, S, DC, seed=1), "context_mask": padding([S, 3], S)} if crossed else {}
    whole = to_numpy(block(tokens, causal=True, **options))
    cache, outputs = block.init_cache(B, ROOM, **options), []
    for piece in np.split(tokens, [1, 2, 5], axis=1):
        output = block(piece, cache=cache)
        cache = output.cache
        outputs.append(to_numpy(output.tokens))
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, atol=2e-5)
    assert int(cache.self_attention.position) == T and (cache.cross_attention is not None) == crossed


def test_what_does_not_fit_is_refused():
    layer = built(Attention(num_heads=2, name="a"), (None, None, D))
    tokens = stream(B, T, D)
    with pytest.raises(ConfigError, match=r"does not fit the cache \[a\]: expected 2 rows of at most 4 tokens, found \[2, 6\]"):
        layer(tokens, cache=layer.init_cache(B, 4))
    with pytest.raises(ConfigError, match="does not fit the cache"):
        layer(tokens, cache=layer.init_cache(B + 1, ROOM))
    with pytest.raises(ConfigError, match="a context meets a cache of self-attention"):
        layer(tokens, tokens, cache=layer.init_cache(B, ROOM))
    with pytest.raises(ConfigError, match=r"expected \[2, 9\] or \[2, 6, 9\], found \[2, 6\]"):
        layer(tokens, context_mask=np.ones((B, T), bool), cache=layer.init_cache(B, ROOM))
    with pytest.raises(ConfigError, match="layer that is built"):
        Attention(num_heads=2).init_cache(B, ROOM)


@pytest.mark.parametrize("number", [1, 3])
def test_scattered_writes_are_slices(number):
    """Against NumPy, at each place where there is room; graphs that were traced before and after keep their own way."""
    random = np.random.default_rng(0)
    cache, new = (random.normal(size=(B, 2, length, 3)).astype("float32") for length in (ROOM, number))
    specs = ((None, 2, ROOM, 3), "float32"), ((), "int32"), ((None, 2, number, 3), "float32")

    def write(cache, position, new):
        return write_at(cache, position, new)

    sliced, scattered = graph(write, *specs), graph(write, *specs)
    expected_first = sliced(cache, np.int32(0), new)
    with scattered_writes():
        scattered(cache, np.int32(0), new)
    for position in range(ROOM - number + 1):
        expected = cache.copy()
        expected[:, :, position : position + number] = new
        for written in (sliced, scattered):
            np.testing.assert_array_equal(written(cache, np.int32(position), new), expected)
    np.testing.assert_array_equal(sliced(cache, np.int32(0), new), expected_first)


@tensorflow_only
def test_scattered_writes_need_no_operator_of_xla():
    layer = Attention(num_heads=2)
    layer(np.ones((1, 2, D), "float32"))

    def operators(number: int) -> set[str]:
        def step(tokens):
            output, _, cache = layer(tokens, cache=layer.init_cache(1, ROOM))
            return output, cache.key

        import tensorflow as tf

        traced = tf.function(step, autograph=False).get_concrete_function(tf.TensorSpec([1, number, D]))
        return {operation.type for operation in traced.graph.get_operations()}

    assert "XlaDynamicUpdateSlice" in operators(2)
    assert not {name for name in operators(1) if name.startswith("Xla")}
    with scattered_writes():
        assert not {name for name in operators(2) if name.startswith("Xla")}
