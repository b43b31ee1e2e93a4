"""The battery that every layer passes: configuration, shapes, weights, training, dtypes, files."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from gradients import graph
from layer_reference import padding, stream, to_numpy

from mmfusion.layers import (
    Attention,
    AttentionPooling,
    FeedForward,
    GatedCrossAttention,
    LayerScale,
    LearnedPositions,
    PatchEmbedding,
    PerceiverResampler,
    SinusoidalPositions,
    SpaceTimeBlock,
    StochasticDepth,
    TokenEmbedding,
    TransformerBlock,
    TubeletEmbedding,
)

B, N, S, D, DC = 2, 5, 7, 8, 6
TOKENS, CONTEXT = stream(B, N, D), stream(B, S, DC, seed=1)
MASK, CONTEXT_MASK = padding([N, 3], N), padding([S, 4], S)
CROSS = {"query": TOKENS, "context": CONTEXT, "context_mask": CONTEXT_MASK}
BLOCK = {"tokens": TOKENS, "mask": MASK}
# Query and output have D · D + D numbers each, keys and values D · D + D or DC · D + D.
PROJECTION, FOREIGN = D * D + D, DC * D + D
MLP = 2 * D * 4 * D + 4 * D + D


class Case(NamedTuple):
    kind: type
    options: dict[str, Any]
    inputs: dict[str, np.ndarray]
    shape: tuple[int, ...]
    weights: int
    parameters: int


CASES = {
    "attention": Case(
        Attention, {"num_heads": 2, "seed": 1}, {"query": TOKENS, "context_mask": MASK}, (B, N, D), 8, 4 * PROJECTION
    ),
    "attention chunked": Case(
        Attention, {"num_heads": 2, "kernel": "chunked", "chunk_size": 2}, CROSS, (B, N, D), 8, 2 * PROJECTION + 2 * FOREIGN
    ),
    "attention grouped": Case(
        Attention,
        {"num_heads": 4, "head_dim": 3, "num_key_value_heads": 2, "use_bias": False, "query_key_norm": True, "output_dim": 10},
        CROSS, (B, N, 10), 6, D * 12 + 2 * DC * 6 + 12 * 10 + 2 * 3,
    ),
    "attention rotary": Case(
        Attention, {"num_heads": 2, "rotary": True, "rotary_base": 50.0}, {"query": TOKENS}, (B, N, D), 8, 4 * PROJECTION
    ),
    "attention local": Case(
        Attention, {"num_heads": 2, "kernel": "local", "window": 1, "num_global_tokens": 1, "logit_cap": 5.0},
        {"query": TOKENS, "context_mask": MASK}, (B, N, D), 8, 4 * PROJECTION,
    ),
    "attention linear": Case(
        Attention, {"num_heads": 2, "kernel": "linear", "feature_map": "softplus"}, CROSS, (B, N, D), 8,
        2 * PROJECTION + 2 * FOREIGN,
    ),
    "attention on a grid": Case(
        Attention, {"num_heads": 2, "rotary": "2d", "grid": (2, 2), "num_unrotated_tokens": 1}, {"query": TOKENS}, (B, N, D), 8,
        4 * PROJECTION,
    ),
    "attention pooling": Case(
        AttentionPooling, {"num_heads": 2}, {"tokens": TOKENS, "tokens_mask": MASK}, (B, D), 9, 4 * PROJECTION + D
    ),
    "attention pooling of three": Case(
        AttentionPooling, {"num_heads": 2, "num_queries": 3}, {"tokens": TOKENS}, (B, 3, D), 9, 4 * PROJECTION + 3 * D
    ),
    "attention pooling with everything": Case(
        AttentionPooling,
        {
            "num_heads": 2, "num_queries": 2, "dim": 6, "norm": True, "mlp_ratio": 2.0, "attention_dropout": 0.1,
            "activation": "relu", "norm_epsilon": 1e-5, "kernel": "exact",
        },
        {"tokens": TOKENS, "tokens_mask": MASK}, (B, 2, 6), 19,
        2 * 6 + 2 * (6 * 6 + 6) + 2 * (D * 6 + 6) + 2 * D + 2 * 2 * 6 + 2 * 6 * 12 + 12 + 6,
    ),
    "gated cross-attention": Case(
        GatedCrossAttention,
        {
            "num_heads": 2, "mlp_ratio": 3.0, "num_key_value_heads": 1, "kernel": "chunked", "activation": "relu", "dropout": 0.1,
            "stochastic_depth": 0.1, "use_bias": False, "norm_epsilon": 1e-5, "initial_gate": 0.4,
            "gated_feed_forward": True, "norm": "rms",
        },
        {**BLOCK, "context": CONTEXT, "context_mask": CONTEXT_MASK}, (B, N, D), 11,
        2 * D * D + 2 * DC * 4 + 3 * D * 3 * D + 2 * D + 2,
    ),
    "resampler": Case(
        PerceiverResampler,
        {
            "num_latents": 3, "depth": 2, "num_heads": 2, "dim": 6, "head_dim": 4, "mlp_ratio": 2.0, "dropout": 0.1,
            "use_bias": True,
        },
        {"media": TOKENS, "media_mask": MASK}, (B, 3, 6), 41,
        3 * 6 + D * 6 + 6 + 2 * (3 * (6 * 8 + 8) + 8 * 6 + 6 + 3 * 12 + 2 * 6 * 12 + 12 + 6) + 12,
    ),
    "block": Case(TransformerBlock, {"num_heads": 2}, BLOCK, (B, N, D), 16, 4 * PROJECTION + MLP + 4 * D),
    "block crossed": Case(
        TransformerBlock,
        {
            "num_heads": 2, "cross_attention": True, "num_key_value_heads": 1, "kernel": "chunked", "chunk_size": 3,
            "layer_scale": 0.1, "query_key_norm": True, "rotary": True, "mlp_ratio": 2.0, "stochastic_depth": 0.1, "dropout": 0.1,
            "activation": "relu", "norm_epsilon": 1e-5,
        },
        {**BLOCK, "context": CONTEXT, "context_mask": CONTEXT_MASK}, (B, N, D), 33,
        4 * PROJECTION + 2 * (D * 4 + 4) + 2 * (DC * 4 + 4) + 4 * 4 + (4 * D * D + 3 * D) + 6 * D + 3 * D,
    ),
    "block with a part between": Case(
        TransformerBlock,
        {"num_heads": 2, "cross_attention": True, "context_norm": True, "feed_forward_between": True, "activation": "quick_gelu"},
        {**BLOCK, "context": CONTEXT}, (B, N, D), 34, 6 * PROJECTION + 2 * FOREIGN + 2 * MLP + 8 * D + 2 * DC,
    ),
    "feed forward": Case(FeedForward, {"hidden_dim": 9, "dropout": 0.1}, {"tokens": TOKENS}, (B, N, D), 4, 2 * D * 9 + 9 + D),
    "layer scale": Case(LayerScale, {"initial": 0.3}, {"branch": TOKENS}, (B, N, D), 1, D),
    "learned positions": Case(LearnedPositions, {"length": 9}, {"tokens": TOKENS}, (B, N, D), 1, 9 * D),
    "sinusoidal positions": Case(SinusoidalPositions, {"base": 50.0}, {"tokens": TOKENS}, (B, N, D), 0, 0),
    "stochastic depth": Case(StochasticDepth, {"rate": 0.4, "seed": 2}, {"branch": TOKENS}, (B, N, D), 0, 0),
    "patch embedding": Case(
        PatchEmbedding, {"patch_size": 2, "dim": D}, {"images": stream(B, 4, 6, 3)}, (B, 6, D), 3, 12 * D + D + 6 * D
    ),
    "patch embedding without a bias": Case(
        PatchEmbedding, {"patch_size": 2, "dim": D, "use_bias": False, "positions": "none"}, {"images": stream(B, 4, 6, 3)},
        (B, 6, D), 1, 12 * D,
    ),
    "attention pooling, normalised": Case(
        AttentionPooling, {"num_heads": 2, "output_norm": True}, {"tokens": TOKENS, "tokens_mask": MASK}, (B, D), 11,
        4 * PROJECTION + 3 * D,
    ),
    "tubelet embedding": Case(
        TubeletEmbedding,
        {"patch_size": 2, "tubelet_size": 2, "dim": D},
        {"clips": stream(B, 4, 2, 6, 3), "frame_mask": padding([4, 3], 4)}, (B, 6, D), 4, 24 * D + D + 3 * D + 2 * D,
    ),
    "space time block": Case(
        SpaceTimeBlock,
        {"num_frames": 3, "num_heads": 2, "mlp_ratio": 2.0, "dropout": 0.1, "stochastic_depth": 0.1, "kernel": "chunked",
         "layer_scale": 0.2, "query_key_norm": True, "num_key_value_heads": 1},
        {"tokens": stream(B, 6, D), "mask": padding([6, 4], 6)}, (B, 6, D), 33,
        4 * PROJECTION + 4 * (D * 4 + 4) + 4 * 4 + 4 * D * D + 3 * D + 6 * D + 3 * D,
    ),
    "token embedding": Case(
        TokenEmbedding,
        {"vocabulary_size": 11, "dim": D, "max_length": 9},
        {"token_ids": np.arange(B * N, dtype="int32").reshape(B, N)}, (B, N, D), 3, 11 * D + 9 * D + 11,
    ),
}  # fmt: skip


# A layer without weights, and an embedding without its output layer, are no mistakes here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The model does not have any trainable weights"),
    pytest.mark.filterwarnings("ignore:Gradients do not exist for variables"),
]


@pytest.fixture(params=sorted(CASES))
def case(request) -> Case:
    return CASES[request.param]


def functional(case: Case, layer) -> keras.Model:
    inputs = {name: keras.Input(value.shape[1:], dtype=value.dtype.name, name=name) for name, value in case.inputs.items()}
    return keras.Model(inputs, layer(**inputs))


def test_shapes_weights_and_configuration(case):
    layer = case.kind(**case.options, name="a")
    eager = layer(**case.inputs)
    assert tuple(eager.shape) == case.shape
    assert functional(case, layer).output.shape == (None, *case.shape[1:])
    assert len(layer.trainable_weights) == case.weights
    assert layer.count_params() - sum(np.prod(w.shape) for w in layer.non_trainable_weights) == case.parameters
    config = layer.get_config()
    assert {name: config[name] for name in case.options} == case.options
    copy = case.kind.from_config(config)
    assert copy.get_config() == config
    copy.build_from_config(layer.get_build_config())
    assert [tuple(w.shape) for w in copy.weights] == [tuple(w.shape) for w in layer.weights]
    paths = [w.path for w in layer.trainable_weights]
    assert len(set(paths)) == len(paths), "two weights of one name"
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(to_numpy(copy(**case.inputs)), to_numpy(eager))


def test_fit_then_save_and_load(case, tmp_path):
    model = functional(case, case.kind(**case.options, name="a"))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = [w.numpy() for w in model.trainable_weights]
    # Of no constant: a last normalisation lets no gradient of one through.
    history = model.fit(case.inputs, stream(*case.shape, seed=2), batch_size=B, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    moved = [np.abs(w.numpy() - old).max() > 0 for w, old in zip(model.trainable_weights, before, strict=True)]
    names = [w.path for w in model.trainable_weights]
    # The softmax does not see a key's bias; the bias of the output layer belongs to `logits`.
    still = {name for name, changed in zip(names, moved, strict=True) if not changed}
    assert all("key/bias" in name or "output_bias" in name for name in still), still
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(*(to_numpy(m.predict(case.inputs, verbose=0)) for m in (model, loaded)))
    assert loaded.get_layer("a").get_config() == model.get_layer("a").get_config()


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float16"])
def test_half_precision(case, dtype):
    keras.utils.set_random_seed(0)
    layer, half = case.kind(**case.options), case.kind(**case.options, dtype=dtype)
    expected, _ = to_numpy(layer(**case.inputs)), half(**case.inputs)
    half.set_weights(layer.get_weights())
    found = half(**case.inputs)
    assert keras.backend.standardize_dtype(found.dtype) == half.compute_dtype
    assert {w.dtype for w in half.trainable_weights} <= {half.variable_dtype}
    # Of the whole: where a normalisation sees a small variance, a single number can be off by more.
    error = np.linalg.norm(to_numpy(found).astype("float64") - expected) / np.linalg.norm(expected)
    assert error < (5e-2 if "bfloat16" in dtype else 5e-3)


def test_unknown_batch_and_length(case):
    layer = case.kind(**case.options)
    expected = layer(**case.inputs)
    free = [(x.shape if x.ndim == 4 else (None, None, *x.shape[2:]), x.dtype.name) for x in case.inputs.values()]
    call = graph(lambda *inputs: layer(**dict(zip(case.inputs, inputs, strict=True))), *free)
    np.testing.assert_allclose(to_numpy(call(*case.inputs.values())), to_numpy(expected), atol=1e-5)
