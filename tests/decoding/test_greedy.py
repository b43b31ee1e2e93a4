"""Greedy decoding against an argmax rollout in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from gradients import BACKEND, graph, tensorflow_only
from keras import ops

from mmfusion.decoding import TokenRules, greedy
from mmfusion.errors import ConfigError


def rollout(model, example: int, max_tokens: int, min_tokens: int = 0) -> tuple[list[int], float]:
    """The likeliest token again and again, from scratch each time."""
    tokens, total = [], 0.0
    while len(tokens) < max_tokens and 2 not in tokens:
        scores = model.log_probabilities(example, tuple(tokens))
        scores[0] = -np.inf
        if len(tokens) < min_tokens:
            scores[2] = -np.inf
        tokens.append(int(scores.argmax()))
        total += scores.max()
    return tokens, total / len(tokens)


@pytest.mark.parametrize("min_tokens", [0, 3, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_an_argmax_rollout(recurrent_model, seed: int, min_tokens: int) -> None:
    model = recurrent_model(vocabulary=6, batch_size=8, seed=seed)
    output = greedy(model.step, model.state(), batch_size=8, max_tokens=6, rules=TokenRules(min_tokens=min_tokens), **model.ids)
    for example in range(8):
        tokens, score = rollout(model, example, 6, min_tokens)
        assert np.asarray(output.token_ids[example]).tolist() == tokens + [0] * (6 - len(tokens))
        assert int(output.lengths[example]) == len(tokens)
        assert float(output.scores[example]) == pytest.approx(score, rel=1e-4)
    assert output.token_ids.dtype == output.lengths.dtype == "int32" and output.scores.dtype == "float32"
    if min_tokens == 0:
        # Examples of several lengths are what this is about.
        assert len(set(np.asarray(output.lengths).tolist())) > 1


def test_an_example_does_not_depend_on_its_batch(recurrent_model) -> None:
    model = recurrent_model(vocabulary=6, batch_size=8, seed=3)
    together = greedy(model.step, model.state(), batch_size=8, max_tokens=6, **model.ids)
    for i in range(8):
        alone = greedy(model.step, model.state(slice(i, i + 1)), batch_size=1, max_tokens=6, **model.ids)
        np.testing.assert_array_equal(alone.token_ids[0], together.token_ids[i])
        np.testing.assert_allclose(alone.scores[0], together.scores[i], rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("free", [False, True])
def test_in_graph_equals_eager(recurrent_model, jit_compile: bool, free: bool) -> None:
    model = recurrent_model(vocabulary=6, batch_size=5, seed=4)

    def decode(features):
        state = model.state()._replace(features=features, memory={"hidden": ops.zeros_like(features)})
        size = ops.shape(features)[0] if free else 5
        return greedy(model.step, state, batch_size=size, max_tokens=6, **model.ids)

    compiled = graph(decode, ((None if free else 5, 6), "float32"), jit_compile=jit_compile)
    eager = greedy(model.step, model.state(), batch_size=5, max_tokens=6, **model.ids)
    for rows in (5, 2) if free else (5,):
        output = compiled(model.features[:rows])
        np.testing.assert_array_equal(output.token_ids, eager.token_ids[:rows])
        np.testing.assert_allclose(output.scores, eager.scores[:rows], rtol=1e-5)
        np.testing.assert_array_equal(output.lengths, eager.lengths[:rows])
    if BACKEND == "tensorflow":
        assert compiled.get_concrete_function().structured_outputs.token_ids.shape[1] == 6


@tensorflow_only  # elsewhere a loop is traced, so that its steps cannot be counted
def test_stops_when_all_have_ended() -> None:
    calls = []

    def step(token_ids, state):
        calls.append(1)
        # Example i ends after i + 1 tokens.
        count, last = state
        sign = ops.where(count >= last, 1.0, -1.0)
        return sign[:, None] * np.array([[0, 0, 1, 0]], "float32"), (count + 1, last)

    state = (ops.zeros((3,), "int32"), ops.convert_to_tensor([0, 1, 2], "int32"))
    output = greedy(step, state, batch_size=3, start_id=1, end_id=2, pad_id=0, max_tokens=50)
    assert len(calls) == 3 and np.asarray(output.lengths).tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_scored_in_float32(recurrent_model, dtype: str) -> None:
    model = recurrent_model(vocabulary=6, batch_size=4, seed=5)

    def half(token_ids, state):
        logits, state = model.step(token_ids, state)
        return ops.cast(logits, dtype), state

    def rounded(token_ids, state):
        logits, state = half(token_ids, state)
        return ops.cast(logits, "float32"), state

    outputs = [greedy(step, model.state(), batch_size=4, max_tokens=5, **model.ids) for step in (half, rounded)]
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert outputs[0].scores.dtype == "float32"


def constant_step(logits: list[float]):
    row = np.array([logits], "float32")
    return lambda token_ids, state: (ops.ones_like(token_ids, "float32")[:, None] * row, state)


def test_padding_is_never_written() -> None:
    output = greedy(constant_step([99, 0, 0, 1]), (), batch_size=2, start_id=1, end_id=2, pad_id=0, max_tokens=3)
    assert np.asarray(output.token_ids).tolist() == [[3, 3, 3]] * 2


def test_padding_may_be_the_end_token() -> None:
    limits = {"max_tokens": 3, "rules": TokenRules(min_tokens=1)}
    output = greedy(constant_step([9, 0, 0, 1]), (), batch_size=2, start_id=1, end_id=0, pad_id=0, **limits)
    assert np.asarray(output.token_ids).tolist() == [[3, 0, 0]] * 2
    assert np.asarray(output.lengths).tolist() == [2, 2]


@pytest.mark.parametrize("hopeless", [-np.inf, np.nan])
def test_where_nothing_is_possible_the_text_ends(hopeless: float) -> None:
    output = greedy(constant_step([hopeless] * 4), (), batch_size=2, start_id=1, end_id=2, pad_id=0, max_tokens=3)
    assert np.asarray(output.token_ids).tolist() == [[2, 0, 0]] * 2
    assert np.asarray(output.scores).tolist() == [-np.inf] * 2


def test_forbidden_by_minus_infinity() -> None:
    step = constant_step([-np.inf, -np.inf, -np.inf, 5.0])
    output = greedy(step, (), batch_size=1, start_id=1, end_id=2, pad_id=0, max_tokens=3)
    assert np.asarray(output.token_ids).tolist() == [[3, 3, 3]] and np.asarray(output.scores).tolist() == [0.0]


def test_says_what_is_wrong(recurrent_model) -> None:
    model = recurrent_model()
    for options, message in (
        ({"max_tokens": 0}, "max_tokens.*expected at least 1, found 0"),
        ({"max_tokens": 3, "rules": TokenRules(min_tokens=4)}, r"min_tokens.*expected 0 to max_tokens \(3\), found 4"),
        ({"max_tokens": 3, "rules": TokenRules(min_tokens=-1)}, "min_tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            greedy(model.step, model.state(), batch_size=3, **options, **model.ids)

    def growing(token_ids, state):
        return ops.zeros((3, 5)), ops.concatenate([state, state], axis=1)

    def promoting(token_ids, state):
        return ops.zeros((3, 5)), ops.cast(state, "bfloat16")

    def losing(token_ids, state):
        return ops.zeros((3, 5)), None

    for step in (growing, promoting, losing):
        with pytest.raises(ConfigError, match="must return a state like the one it was given"):
            greedy(step, ops.zeros((3, 2)), batch_size=3, max_tokens=3, **model.ids)
    with pytest.raises(ConfigError, match=r"one row of logits.*found shape \(3, 1, 5\)"):
        greedy(lambda token_ids, state: (ops.zeros((3, 1, 5)), state), (), batch_size=3, max_tokens=3, **model.ids)
