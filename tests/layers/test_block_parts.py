"""TransformerBlock with its parts in other orders, without some, and with tokens before its own."""

from __future__ import annotations

import keras
import layer_reference as reference
import numpy as np
import pytest
from gradients import to_numpy, value_and_gradients
from layer_reference import built, padding, stream

from mmfusion.errors import ConfigError
from mmfusion.layers import BlockOutput, TransformerBlock

B, M, N, S, D, DC = 2, 4, 5, 7, 12, 8
BEFORE, TOKENS, CONTEXT = stream(B, M, D, seed=2), stream(B, N, D), stream(B, S, DC, seed=1)
BEFORE_MASK, MASK, CONTEXT_MASK = padding([3, M], M), padding([N, 3], N), padding([S, 4], S)


def block(crossed=False, **options) -> TransformerBlock:
    layer = TransformerBlock(**{"num_heads": 2, "cross_attention": crossed, **options})
    return built(layer, (None, None, D), (None, None, DC) if crossed else None)


def in_numpy(layer: TransformerBlock) -> np.ndarray:
    """What a block with any parts does with the streams of this file."""

    def joined(norm, x, branch):
        return x + branch(reference.layer_norm(norm, x)) if layer.norm_first else reference.layer_norm(norm, x + branch(x))

    tokens = TOKENS.astype("float64")
    if layer.attention is not None:
        tokens = joined(layer.attention_norm, tokens, lambda x: reference.attention(layer.attention, x, None, MASK)[0])
    if layer.between is not None:
        feed = layer.between
        branch = lambda x: reference.dense(feed.output_dense, reference.gelu(reference.dense(feed.hidden, x)))  # noqa: E731
        tokens = joined(layer.between_norm, tokens, branch)
    if layer.cross is not None:
        context = CONTEXT if not layer.context_norm else reference.layer_norm(layer.cross_context_norm, CONTEXT)
        tokens = joined(layer.cross_norm, tokens, lambda x: reference.attention(layer.cross, x, context, CONTEXT_MASK)[0])
    if layer.feed_forward is not None:
        feed = layer.feed_forward
        branch = lambda x: reference.dense(feed.output_dense, reference.gelu(reference.dense(feed.hidden, x)))  # noqa: E731
        tokens = joined(layer.feed_forward_norm, tokens, branch)
    return tokens


@pytest.mark.parametrize(
    "options",
    [
        {"norm_first": False, "norm_epsilon": 1e-3},
        {"crossed": True, "norm_first": False, "use_bias": False},
        {"crossed": True, "context_norm": True},
        {"crossed": True, "self_attention": False},
        {"crossed": True, "self_attention": False, "mlp_ratio": 0, "context_norm": True},
        {"crossed": True, "context_norm": True, "feed_forward_between": True, "mlp_ratio": 2.0},
        {"crossed": True, "norm_first": False, "feed_forward_between": True, "norm_epsilon": 1e-12},
        {"self_attention": False, "mlp_ratio": 2.0},
        {"mlp_ratio": 0, "use_bias": False},
    ],
)
def test_equals_numpy(options):
    layer = block(**options)
    context = {"context": CONTEXT, "context_mask": CONTEXT_MASK} if options.get("crossed") else {}
    found = to_numpy(layer(TOKENS, mask=MASK, **context))
    np.testing.assert_allclose(found[MASK], in_numpy(layer)[MASK], atol=5e-5)
    assert any("bias" in weight.name for weight in layer.trainable_weights) == options.get("use_bias", True)
    copy = TransformerBlock.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", [{"kernel": "chunked", "chunk_size": 3}, {"norm_first": False, "num_key_value_heads": 1}])
def test_a_prefix_is_seen_as_if_it_stood_in_the_stream_and_saw_itself_alone(options, causal):
    layer = block(**options)
    # The same by one stream and a mask of each pair of tokens.
    allowed = np.zeros((B, M + N, M + N), bool)
    allowed[:, :, :M] = BEFORE_MASK[:, None]
    allowed[:, M:, M:] = MASK[:, None] & (np.tri(N, dtype=bool) if causal else True)
    probe = stream(B, N, D, seed=3) * MASK[..., None]

    def whole(before, tokens):
        return layer(keras.ops.concatenate([before, tokens], axis=1), mask=allowed)[:, M:]

    def apart(before, tokens):
        prefix = layer.project_prefix(before, BEFORE_MASK)
        return layer(tokens, mask=MASK, prefix=prefix, causal=causal)

    results = [
        (
            to_numpy(f(BEFORE, TOKENS))[MASK],
            value_and_gradients(lambda a, b, f=f: keras.ops.sum(f(a, b) * probe), [BEFORE, TOKENS]),
        )
        for f in (whole, apart)
    ]
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-5)
    for one, two in zip(results[0][1][1], results[1][1][1], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
    asked = layer(TOKENS, mask=MASK, prefix=layer.project_prefix(BEFORE, BEFORE_MASK), causal=causal, return_scores=True)
    np.testing.assert_array_equal(to_numpy(asked.tokens), to_numpy(apart(BEFORE, TOKENS)))
    assert tuple(asked.self_scores.shape) == (B, 2, N, M + N)


@pytest.mark.parametrize("kernel", ["exact", "chunked", "linear"])
def test_a_cache_behind_a_prefix_continues_it(kernel):
    layer = block(kernel=kernel)
    read = layer(BEFORE, mask=BEFORE_MASK, return_prefix=True)
    assert isinstance(read, BlockOutput)
    alone = to_numpy(layer(BEFORE, mask=BEFORE_MASK))
    np.testing.assert_allclose(to_numpy(read.tokens)[BEFORE_MASK], alone[BEFORE_MASK], atol=1e-6)
    whole = to_numpy(layer(TOKENS, mask=MASK, prefix=read.prefix, causal=True))
    cache, steps = layer.init_cache(B, N + 2, prefix=read.prefix), []
    places = np.pad(MASK, [(0, 0), (0, 2)])
    for start, stop in ((0, 1), (1, 4), (4, N)):
        result = layer(TOKENS[:, start:stop], mask=places, cache=cache)
        cache = result.cache
        steps.append(to_numpy(result.tokens))
    np.testing.assert_allclose(np.concatenate(steps, axis=1)[MASK], whole[MASK], atol=1e-5)


def test_a_context_can_be_left_out():
    layer = block(True)
    alone = block()
    kept = {"cross_norm", "cross_attention"}
    alone.set_weights([w.numpy() for w in layer.weights if not kept & set(w.path.split("/"))])
    np.testing.assert_array_equal(to_numpy(layer(TOKENS, use_context=False)), to_numpy(alone(TOKENS)))


def test_what_cannot_be_is_told_in_one_line():
    for make, message in (
        (lambda: TransformerBlock(num_heads=2, self_attention=False, mlp_ratio=0), "a block without a part"),
        (lambda: TransformerBlock(num_heads=2, context_norm=True), "context_norm without cross-attention"),
        (lambda: block(rotary=True).project_prefix(BEFORE), "a prefix needs another block.*rotary"),
        (lambda: block(kernel="local")(TOKENS, prefix=block().project_prefix(BEFORE)), "a prefix needs another block"),
        (
            lambda: block()(TOKENS, mask=np.ones((B, N, N), bool), return_prefix=True),
            "does not fit a prefix.*found \\[2, 5, 5\\]",
        ),
        (lambda: block(attention_options={"logit_cap": -1.0}), "impossible logit_cap"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


@pytest.mark.parametrize(
    "options", [{"crossed": False}, {"crossed": True, "self_attention": False}, {"crossed": True, "mlp_ratio": 0}]
)
def test_between_needs_what_it_stands_between(options):
    with pytest.raises(ConfigError, match="feed_forward_between has nothing to stand between"):
        block(**options, feed_forward_between=True)


def test_each_of_four_branches_has_its_gain_and_a_cache_runs_them_all():
    layer = block(crossed=True, feed_forward_between=True, layer_scale=0.1)
    assert sorted(layer.gains) == ["attention", "between", "cross", "feed_forward"]
    whole = to_numpy(layer(TOKENS, context=CONTEXT, causal=True))
    cache = layer.init_cache(B, N, context=keras.ops.convert_to_tensor(CONTEXT))
    steps = []
    for place in range(N):
        result = layer(TOKENS[:, place : place + 1], cache=cache)
        cache = result.cache
        steps.append(to_numpy(result.tokens))
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, atol=1e-5)
