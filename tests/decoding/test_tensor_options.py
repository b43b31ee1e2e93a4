"""Options as scalar tensors: one graph for all their values, and the same texts as with numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradients import graph
from keras import ops

from mmfusion.decoding import TokenRules, beam_search, greedy, sample
from mmfusion.errors import ConfigError

LENGTH = 6


@pytest.fixture
def model(recurrent_model):
    return recurrent_model(vocabulary=6, batch_size=3, seed=11)


def as_numbers(model, decode, limit: int, min_tokens: int, **options: Any) -> tuple[np.ndarray, ...]:
    """With room for so many tokens alone, filled up with padding."""
    rules = TokenRules(min_tokens=min_tokens)
    output = decode(model.step, model.state(), batch_size=3, max_tokens=limit, rules=rules, **options, **model.ids)
    tokens, scores, lengths = (np.asarray(part) for part in output)
    room = [(0, 0)] * (tokens.ndim - 1) + [(0, LENGTH - limit)]
    return np.pad(tokens, room, constant_values=model.ids["pad_id"]), scores, lengths


def assert_same(output: Any, expected: tuple[np.ndarray, ...]) -> None:
    np.testing.assert_array_equal(output.token_ids, expected[0])
    np.testing.assert_allclose(output.scores, expected[1], rtol=1e-5)
    np.testing.assert_array_equal(output.lengths, expected[2])


def test_greedy(model) -> None:
    def decode(limit, fewest):
        rules = TokenRules(min_tokens=fewest)
        return greedy(model.step, model.state(), batch_size=3, max_tokens=LENGTH, limit=limit, rules=rules, **model.ids)

    compiled = graph(decode, ((), "int32"), ((), "int32"))
    for limit, fewest in ((6, 0), (3, 0), (1, 1), (5, 4)):
        assert_same(compiled(np.int32(limit), np.int32(fewest)), as_numbers(model, greedy, limit, fewest))


def test_sample(model) -> None:
    options = {"num_samples": 4, "seeds": np.arange(3, dtype="int32")}

    def decode(temperature, top_p, limit, fewest):
        return sample(
            model.step, model.state(), batch_size=3, max_tokens=LENGTH, limit=limit, temperature=temperature, top_p=top_p,
            rules=TokenRules(min_tokens=fewest), **options, **model.ids,
        )  # fmt: skip

    compiled = graph(decode, ((), "float32"), ((), "float32"), ((), "int32"), ((), "int32"))
    texts = set()
    for temperature, top_p, limit, fewest in ((1.0, 1.0, 6, 0), (0.5, 0.7, 6, 2), (3.0, 0.9, 4, 0), (2.0, 1.0, 2, 2)):
        output = compiled(np.float32(temperature), np.float32(top_p), np.int32(limit), np.int32(fewest))
        given = {"temperature": temperature, "top_p": top_p, **options}
        assert_same(output, as_numbers(model, sample, limit, fewest, **given))
        texts.add(np.asarray(output.token_ids).tobytes())
    assert len(texts) == 4


@pytest.mark.parametrize("early_stopping", [True, False])
def test_beam_search(model, early_stopping: bool) -> None:
    options = {"beam_size": 3, "early_stopping": early_stopping}

    def decode(penalty, limit, fewest):
        return beam_search(
            model.step, model.state(), batch_size=3, max_tokens=LENGTH, limit=limit, length_penalty=penalty,
            rules=TokenRules(min_tokens=fewest), **options, **model.ids,
        )  # fmt: skip

    compiled = graph(decode, ((), "float32"), ((), "int32"), ((), "int32"))
    for penalty, limit, fewest in ((1.0, 6, 0), (0.0, 6, 0), (2.0, 4, 0), (-1.0, 6, 3), (1.0, 1, 0)):
        output = compiled(np.float32(penalty), np.int32(limit), np.int32(fewest))
        assert_same(output, as_numbers(model, beam_search, limit, fewest, length_penalty=penalty, **options))


def test_numbers_are_still_checked(model) -> None:
    for limit in (0, 7):
        with pytest.raises(ConfigError, match=rf"limit.*1 to max_tokens \(6\), found {limit}"):
            greedy(model.step, model.state(), batch_size=3, max_tokens=LENGTH, limit=limit, **model.ids)
    short = greedy(model.step, model.state(), batch_size=3, max_tokens=LENGTH, limit=2, **model.ids)
    assert short.token_ids.shape[-1] == LENGTH and ops.max(short.lengths) <= 2
