"""Soft caps, rotary grids, prefixes, windows and kernel features against plain NumPy, cached and in gradients."""

from __future__ import annotations

import keras
import layer_reference as reference
import numpy as np
import pytest
from gradients import BACKEND, graph, tensorflow_only, to_numpy, value_and_gradients
from layer_reference import built, padding, stream

from mmfusion.errors import ConfigError
from mmfusion.layers import Attention
from mmfusion.layers.kernels import exact_attention, linear_attention, linear_weights, local_attention, window_mask
from mmfusion.layers.masks import AttentionMask, causal_last

B, T, S, D, DC = 2, 7, 5, 12, 8
# More than a block of queries, with a tail.
LONG = 150
JIT = BACKEND == "jax"
KERNELS = {
    "exact": {},
    "chunked": {"kernel": "chunked", "chunk_size": 3},
    "local": {"kernel": "local", "window": 2},
    "local global": {"kernel": "local", "window": 1, "num_global_tokens": 2},
    "linear": {"kernel": "linear"},
}
OPTIONS = {
    "plain": {},
    "grouped": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "query_key_norm": True},
    "capped": {"logit_cap": 0.5},
    "rotary": {"rotary": True, "num_unrotated_tokens": 1, "rotary_base": 30.0, "num_key_value_heads": 1},
    "grid": {"rotary": "2d", "grid": (2, 3), "num_unrotated_tokens": 1, "head_dim": 8, "rotary_base": 30.0},
}


@pytest.fixture(params=sorted(KERNELS))
def kernel(request) -> dict:
    return KERNELS[request.param]


def attention(context_dim: int | None = None, **options) -> Attention:
    shapes = [(None, None, D)] if context_dim is None else [(None, None, D), (None, None, context_dim)]
    return built(Attention(**{"num_heads": 2, **options}), *shapes, seed=1)


# Positions are turned before any kernel sees them, and features have no logits to cap.
SOME = {"chunked": ("plain", "grouped", "capped"), "linear": ("plain", "grouped")}
PAIRS = [(kernel, options) for kernel in KERNELS for options in SOME.get(kernel, OPTIONS)]
if JIT:
    # There each operation is compiled for its sizes: one of a kind.
    PAIRS = [
        ("exact", "grid"),
        ("chunked", "capped"),
        ("local global", "plain"),
        ("local global", "grouped"),
        ("linear", "plain"),
    ]


@pytest.mark.parametrize(("kernel", "options"), [(KERNELS[k], OPTIONS[o]) for k, o in PAIRS], ids=[f"{k} {o}" for k, o in PAIRS])
def test_equals_numpy(kernel, options):
    layer, tokens, mask = attention(**kernel, **options), 3 * stream(B, T, D), padding([T, 4], T)
    prefixes = [
        {"causal": True, "prefix_length": 4},
        {"context_mask": mask, "causal": True, "prefix_length": np.array([5, 0])},
        {"causal": True, "prefix_length": T + 3},
    ]
    for given in ({"context_mask": mask}, {"context_mask": mask, "causal": True}, *(() if options else prefixes)):
        output, scores, _ = layer(tokens, return_scores=True, **given)
        expected, expected_scores = reference.attention(layer, tokens, **given)
        real = given.get("context_mask", np.ones((B, T), bool))
        np.testing.assert_allclose(to_numpy(output)[real], expected[real], atol=2e-5)
        np.testing.assert_allclose(to_numpy(scores).swapaxes(1, 2)[real], expected_scores.swapaxes(1, 2)[real], atol=1e-5)
        np.testing.assert_array_equal(to_numpy(output), to_numpy(layer(tokens, **given)))
        total = to_numpy(scores).sum(-1)
        np.testing.assert_allclose(total, (total > 0.5).astype("float32"), atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_a_context_equals_numpy(kernel, causal):
    layer, query = attention(DC, **kernel), stream(B, T, D)
    for length, mask in ((S, padding([S, 2], S)), (S, np.zeros((B, S), bool)), (T + 3, None)):
        context = stream(B, length, DC, seed=1)
        expected, _ = reference.attention(layer, query, context, mask, causal)
        np.testing.assert_allclose(to_numpy(layer(query, context, context_mask=mask, causal=causal)), expected, atol=2e-5)
    once = layer(query, cache=layer.project_context(context), causal=causal).output
    np.testing.assert_allclose(to_numpy(once), expected, atol=2e-5)


def test_what_is_masked_never_matters(kernel):
    layer, tokens, mask = attention(query_key_norm=True, **kernel), stream(B, T, D), padding([T, 4], T)
    filled = np.where(mask[..., None], tokens, np.nan).astype("float32")
    for given in ({}, {"causal": True}, {"causal": True, "prefix_length": np.array([2, 6])}):
        one, two = (to_numpy(layer(x, context_mask=mask, **given)) for x in (tokens, filled))
        np.testing.assert_array_equal(one[mask], two[mask])
        _, found = value_and_gradients(
            lambda x, given=given: keras.ops.sum(layer(x, context_mask=mask, **given) ** 2 * mask[..., None]),
            [filled],
            layer.trainable_weights,
            jit_compile=JIT,
        )
        assert all(np.isfinite(x).all() for x in found) and np.abs(found[0]).max() > 0


CUTS = [("grid", [4, 6])] if JIT else [("grid", [4, 6]), ("rotary", list(range(1, T)))]


@pytest.mark.parametrize(("options", "cuts"), CUTS, ids=["pieces", "one by one"][: len(CUTS)])
def test_cached_equals_uncached(kernel, options, cuts):
    options = {} if kernel.get("kernel") == "linear" else OPTIONS[options]
    layer, tokens, room = attention(**kernel, **options), stream(B, T, D), T + 2
    places = np.ones((B, room), bool)
    places[1, :2] = False
    for prefix in (None, np.array([3, 1])):
        if prefix is not None and cuts == list(range(1, T)):
            continue  # a prefix is seen whole by what is read with it, or later
        cache, outputs = layer.init_cache(B, room), []
        for piece in np.split(tokens, cuts, axis=1):
            output, scores, cache = layer(piece, context_mask=places, cache=cache, prefix_length=prefix, return_scores=True)
            outputs.append(to_numpy(output))
            assert tuple(scores.shape) == (B, layer.num_heads, piece.shape[1], room)
        whole = layer(
            tokens, context_mask=np.broadcast_to(places[:, None, :T], (B, T, T)).all(1), causal=True, prefix_length=prefix
        )
        found, real = np.concatenate(outputs, axis=1), places[:, :T]
        np.testing.assert_allclose(found[real], to_numpy(whole)[real], atol=1e-5)


def long_mask(name: str) -> AttentionMask:
    keys, pattern = padding([LONG, 90], LONG), np.random.default_rng(3).uniform(size=(B, LONG, LONG)) < 0.7
    last = causal_last(LONG, LONG)
    prefix = keras.ops.maximum(last[None], keras.ops.convert_to_tensor([[80], [3]], "int32"))
    return {
        "none": AttentionMask(),
        "keys": AttentionMask(keys=keys),
        "pattern": AttentionMask(pattern=pattern),
        "causal": AttentionMask(keys=keys, last=last),
        "prefix": AttentionMask(keys=keys, pattern=pattern, last=prefix),
        "one key speaks for all": AttentionMask(keys=np.array([[True], [False]]), pattern=pattern[:1, :, :1], last=last),
    }[name]


def values_and_gradients_of(kernel, heads: list[np.ndarray], upstream: np.ndarray) -> list[np.ndarray]:
    _, gradients = value_and_gradients(lambda *x: keras.ops.sum(kernel(*x) * upstream), heads, jit_compile=JIT)
    return [to_numpy(kernel(*heads)), *gradients]


@pytest.mark.parametrize(("window", "leading"), [(1, 0), (7, 3), (70, 0), (100, 1), (200, 2)])
@pytest.mark.parametrize("name", ["none", "keys", "pattern", "causal", "prefix", "one key speaks for all"])
def test_blocks_equal_the_masked_matrix(window, leading, name):
    if JIT and (name, window) not in (("prefix", 7), ("causal", 70)):
        pytest.skip("each takes seconds to compile")
    heads, upstream = [stream(B, 2, LONG, 4, seed=seed) for seed in range(3)], stream(B, 2, LONG, 4, seed=7)
    places, mask = np.arange(LONG), long_mask(name)
    ahead, mask = mask.last is None or len(mask.last.shape) == 2, window_mask(mask, places, LONG, window, leading)
    cap = 2.0 if leading else None
    kernels = (
        lambda q, k, v: local_attention(q, k, v, mask, window, 0, ahead, cap),
        lambda q, k, v: exact_attention(q, k, v, mask, logit_cap=cap),
    )
    found, expected = (values_and_gradients_of(kernel, heads, upstream) for kernel in kernels)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=5e-6)
    seen = to_numpy(mask.allowed(places)).any(-1)[:, 0]
    any_seen = mask.sees_any(LONG)
    np.testing.assert_array_equal(np.broadcast_to(any_seen, (B, LONG)), np.broadcast_to(seen, (B, LONG)))


@pytest.mark.parametrize("leading", [0, 3])
def test_a_long_cache_shows_the_last_window(leading):
    layer = attention(kernel="local", window=4, num_global_tokens=leading)
    tokens = stream(B, LONG, D)
    cache, outputs = layer.init_cache(B, LONG + 10), []
    for piece in np.split(tokens, [1, 101, 103, 104], axis=1):
        output, _, cache = layer(piece, cache=cache)
        outputs.append(to_numpy(output))
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), to_numpy(layer(tokens, causal=True)), atol=1e-5)
    # What the window has left behind does not matter any more.
    key = to_numpy(cache.key)
    key[:, :, leading : LONG - 4] = 1e4
    step = stream(B, 1, D, seed=3)
    forgotten = layer(step, cache=cache._replace(key=keras.ops.convert_to_tensor(key))).output
    np.testing.assert_array_equal(to_numpy(forgotten), to_numpy(layer(step, cache=cache).output))


@pytest.mark.parametrize("name", ["none", "keys", "causal", "prefix"])
@pytest.mark.parametrize("start", [0, 30])
def test_linear_blocks_equal_their_weights(name, start):
    if JIT and (name, start) != ("prefix", 30):
        pytest.skip("each takes seconds to compile")
    mask = long_mask(name)._replace(pattern=None)
    mask = mask if mask.last is None else mask._replace(last=mask.last[..., start:])
    heads = [stream(B, 2, n, 4, seed=seed) for seed, n in enumerate((LONG - start, LONG, LONG))]
    upstream, begin = stream(B, 2, LONG - start, 4, seed=7), None if mask.last is None else start
    kernels = (
        lambda q, k, v: linear_attention(q, k, v, mask, begin),
        lambda q, k, v: linear_attention(q, k, v, mask, None if begin is None else keras.ops.convert_to_tensor(begin)),
        lambda q, k, v: keras.ops.matmul(linear_weights(q, k, mask), v),
    )
    *found, expected = (values_and_gradients_of(kernel, heads, upstream) for kernel in kernels)
    for one in found:
        for ours, theirs in zip(one, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@keras.saving.register_keras_serializable(package="tests")
def squared(x):
    return x * x


@pytest.mark.parametrize("feature_map", ["elu", "relu", "softplus", "softmax", squared])
def test_feature_maps(feature_map):
    layer, tokens = attention(kernel="linear", feature_map=feature_map), stream(B, T, D)
    copy = Attention.from_config(layer.get_config())
    copy.build((None, None, D))
    copy.set_weights(layer.get_weights())
    for causal in (False, True):
        output, scores, _ = layer(tokens, causal=causal, return_scores=True)
        value = reference.dense(layer.value_projection, tokens).reshape(B, T, 2, -1)
        mixed = np.einsum("bhts,bshd->bthd", to_numpy(scores), value).reshape(B, T, -1)
        np.testing.assert_allclose(to_numpy(output), reference.dense(layer.output_projection, mixed), atol=1e-4)
        np.testing.assert_array_equal(to_numpy(copy(tokens, causal=causal)), to_numpy(output))


def test_elu_features_stay_positive():
    far = np.full((1, 1, 3, 2), -20.0, "float32")
    weights = to_numpy(linear_weights(far, far, AttentionMask()))
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-5)


def test_a_grid_of_the_call_goes_before_the_layers():
    layer, tokens = attention(rotary="2d", grid=(1, 6), head_dim=4), stream(B, 6, D)
    expected, _ = reference.attention(layer, tokens, grid=(3, 2))
    np.testing.assert_allclose(to_numpy(layer(tokens, grid=(3, 2))), expected, atol=2e-5)
    assert np.abs(to_numpy(layer(tokens)) - expected).max() > 1e-3


def test_a_cap_bounds_what_softmax_sees():
    layer = attention(logit_cap=1.0)
    _, scores, _ = layer(1e4 * stream(B, T, D), return_scores=True)
    ratio = to_numpy(scores).max(-1) / to_numpy(scores).min(-1)
    assert ratio.max() <= np.exp(2.0) * 1.001 and ratio.max() > np.exp(1.5)


def largest(function) -> int:
    """Elements of the largest tensor of a traced function without loops."""
    return max(x.shape.num_elements() or 0 for operation in function.graph.get_operations() for x in operation.outputs)


@tensorflow_only
@pytest.mark.parametrize("options", [{"kernel": "local", "window": 3, "num_global_tokens": 1}, {"kernel": "linear"}, {}])
def test_memory_is_linear(options):
    import tensorflow as tf

    length, width = 1024, 8
    layer = built(Attention(num_heads=1, **options), (None, None, width))

    @tf.function
    def step(tokens, mask):
        with tf.GradientTape() as tape:
            tape.watch(tokens)
            output = layer(tokens, context_mask=mask, causal=True)
        return output, tape.gradient(output, [tokens, *layer.trainable_weights])

    function = step.get_concrete_function(tf.TensorSpec((1, length, width)), tf.TensorSpec((1, length), "bool"))
    # Blocks of 64 queries with their keys; the exact kernel shows that the test can see a matrix.
    assert largest(function) <= length * 80 if options else largest(function) >= length**2


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("options", [KERNELS["local global"], KERNELS["linear"]], ids=["local", "linear"])
def test_in_a_graph(options, jit_compile):
    layer, tokens, mask = attention(**options), stream(B, LONG, D), padding([LONG, 70], LONG)
    free = () if jit_compile else (((None, None, D), "float32"), ((None, None), "bool"))
    for causal in (True,) if jit_compile or JIT else (False, True):
        run = graph(lambda x, m, causal=causal: layer(x, context_mask=m, causal=causal), *free, jit_compile=jit_compile)
        for length in (LONG,) if jit_compile or JIT else (LONG, 5):
            expected = layer(tokens[:, :length], context_mask=mask[:, :length], causal=causal)
            np.testing.assert_allclose(run(tokens[:, :length], mask[:, :length]), to_numpy(expected), atol=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    ({"logit_cap": 0.0}, "impossible logit_cap"),
    ({"logit_cap": 5.0, "kernel": "linear"}, r"logit_cap has no meaning here \[a\]: expected logit_cap=None, or a kernel with"),
    ({"rotary": True, "kernel": "linear"}, "rotary has no meaning here"),
    ({"rotary": "3d"}, "expected False, True or '2d', found '3d'"),
    ({"grid": (2, 3)}, "grid has no meaning here .*or rotary='2d', found"),
    ({"num_unrotated_tokens": 1}, "num_unrotated_tokens has no meaning here .*or rotary positions, found 1"),
    ({"window": 3}, "window has no meaning here .*or kernel='local', found 3"),
    ({"window": 0, "kernel": "local"}, "impossible window"),
    ({"num_global_tokens": -1, "kernel": "local"}, "impossible num_global_tokens"),
    ({"num_global_tokens": 1, "kernel": "linear"}, "num_global_tokens has no meaning here"),
    ({"feature_map": "elu"}, "feature_map has no meaning here"),
    ({"feature_map": "sine", "kernel": "linear"}, "unknown feature_map .*softmax, or a function, found 'sine'"),
    ({"dropout": 0.1, "kernel": "linear"}, "weights are not kept by this kernel"),
])  # fmt: skip
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Attention(num_heads=2, name="a", **options)


@pytest.mark.parametrize(("options", "given", "message"), [
    ({}, {"prefix_length": 2}, r"a prefix is of causal attention \[a\]; pass causal=True"),
    ({}, {"prefix_length": 2.0, "causal": True}, r"prefix_length is no length .*int\[2\], found float32\[\]"),
    ({}, {"prefix_length": np.array([1, 2, 3]), "causal": True}, r"found int\d+\[3\]"),
    ({}, {"grid": (2, 3)}, "grid has no meaning here"),
    ({"rotary": "2d", "head_dim": 4}, {}, r"rotary='2d' needs a grid \[a\]; pass grid"),
    ({"rotary": "2d", "head_dim": 4}, {"grid": (2, 3)}, "the grid does not fit .*expected 2 x 3 tokens, found 7 tokens"),
    ({"kernel": "linear"}, {"context_mask": np.ones((B, T, T), bool)}, "a mask cannot differ by query"),
])  # fmt: skip
def test_wrong_input_is_told_in_one_line(options, given, message):
    layer = attention(name="a", **options)
    with pytest.raises(ConfigError, match=message) as caught:
        layer(stream(B, T, D), **given)
    assert "\n" not in str(caught.value)


def test_two_axes_need_a_width_of_four():
    with pytest.raises(ConfigError, match="multiple of 4 with rotary='2d'.*found 6"):
        attention(rotary="2d")
