"""Contrastive search against a plain version of its equation, and streaming against greedy."""

from __future__ import annotations

import numpy as np
import pytest
from gradients import graph
from keras import ops

from mmfusion.decoding import TokenRules, contrastive_search, greedy, stream
from mmfusion.errors import ConfigError

END, PAD = 2, 0


def hidden_of(model, example: int, tokens: tuple[int, ...]) -> np.ndarray:
    """The model's vector after the start token and `tokens`, by NumPy from scratch, of length 1."""
    hidden = np.zeros(model.dim)
    for token in (1, *tokens):
        hidden = np.tanh(hidden @ model.recurrent + model.embedding[token] + model.features[example])
    return hidden / np.linalg.norm(hidden)


def plain_search(model, example: int, *, top_k: int, alpha: float, length: int, ngram: int = 0) -> tuple[tuple[int, ...], float]:
    text, total = (), 0.0
    while len(text) < length and END not in text:
        scores = model.log_probabilities(example, text)
        scores[PAD] = -np.inf
        if ngram == 1:
            scores[list(text)] = -np.inf
        before = np.stack([hidden_of(model, example, text[:size]) for size in range(len(text) + 1)])
        candidates = np.argsort(-scores)[:top_k]
        worth = [
            (1 - alpha) * np.exp(scores[token]) - alpha * (before @ hidden_of(model, example, (*text, int(token)))).max()
            if scores[token] > -np.inf
            else -np.inf
            for token in candidates
        ]
        token = int(candidates[np.argmax(worth)])
        text, total = (*text, token), total + scores[token]
    return text, total / len(text)


def search(model, rows: slice = slice(None), **options):
    size = len(range(*rows.indices(model.batch_size)))
    return contrastive_search(
        model.step, model.state(rows), hidden=lambda state: state.memory["hidden"], batch_size=size, **options, **model.ids
    )


@pytest.mark.parametrize(("top_k", "alpha"), [(2, 0.6), (4, 0.6), (4, 0.2), (9, 0.9)])
def test_equals_the_equation(recurrent_model, top_k: int, alpha: float) -> None:
    model = recurrent_model(vocabulary=7, batch_size=5, seed=top_k)
    output, differs = search(model, top_k=top_k, alpha=alpha, max_tokens=7), False
    for example in range(5):
        text, score = plain_search(model, example, top_k=top_k, alpha=alpha, length=7)
        assert np.asarray(output.token_ids[example]).tolist() == [*text, *[PAD] * (7 - len(text))]
        np.testing.assert_allclose(output.scores[example], score, rtol=1e-4)
        assert int(output.lengths[example]) == len(text)
    likeliest = greedy(model.step, model.state(), batch_size=5, max_tokens=7, **model.ids)
    differs = (np.asarray(likeliest.token_ids) != np.asarray(output.token_ids)).any()
    assert differs


@pytest.mark.parametrize("options", [{"top_k": 1}, {"alpha": 0.0}])
def test_without_a_choice_it_is_greedy(recurrent_model, options: dict) -> None:
    model = recurrent_model(vocabulary=6, batch_size=4, seed=3)
    likeliest = greedy(model.step, model.state(), batch_size=4, max_tokens=6, **model.ids)
    output = search(model, max_tokens=6, **options)
    np.testing.assert_array_equal(output.token_ids, likeliest.token_ids)
    np.testing.assert_allclose(output.scores, likeliest.scores, rtol=1e-5)


def test_keeps_the_rules(recurrent_model) -> None:
    model = recurrent_model(vocabulary=7, batch_size=4, seed=5)
    output = search(model, top_k=3, alpha=0.5, max_tokens=5, rules=TokenRules(no_repeat_ngram=1))
    for example in range(4):
        text, _ = plain_search(model, example, top_k=3, alpha=0.5, length=5, ngram=1)
        assert np.asarray(output.token_ids[example]).tolist() == [*text, *[PAD] * (5 - len(text))]


def test_in_graph_equals_eager_and_does_not_depend_on_the_batch(recurrent_model) -> None:
    model = recurrent_model(vocabulary=6, batch_size=5, seed=8)

    def decode(features):
        state = model.state()._replace(features=features, memory={"hidden": ops.zeros_like(features)})
        return contrastive_search(
            model.step, state, hidden=lambda state: state.memory["hidden"], batch_size=ops.shape(features)[0],
            max_tokens=6, **model.ids,
        )  # fmt: skip

    compiled, eager = graph(decode, ((None, 6), "float32")), search(model, max_tokens=6)
    for rows in (5, 2):
        output = compiled(model.features[:rows])
        np.testing.assert_array_equal(output.token_ids, eager.token_ids[:rows])
        np.testing.assert_allclose(output.scores, eager.scores[:rows], rtol=1e-5)


@pytest.mark.parametrize(("options", "message"), [({"alpha": 1.5}, "alpha.*0 to 1"), ({"top_k": 0}, "top_k")])
def test_says_what_is_wrong(recurrent_model, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(recurrent_model(), max_tokens=3, **options)


@pytest.mark.parametrize("rules", [TokenRules(), TokenRules(min_tokens=4, no_repeat_ngram=2)])
def test_a_stream_is_greedy_place_by_place(recurrent_model, rules: TokenRules) -> None:
    model = recurrent_model(vocabulary=6, batch_size=4, seed=9)
    options = {"batch_size": 4, "max_tokens": 8, "rules": rules, **model.ids}
    likeliest = greedy(model.step, model.state(), **options)
    places = [np.asarray(tokens) for tokens in stream(model.step, model.state(), compile_step=graph, **options)]
    assert len(places) == int(np.max(likeliest.lengths))
    np.testing.assert_array_equal(np.stack(places, axis=1), np.asarray(likeliest.token_ids)[:, : len(places)])


def test_a_stream_begins_before_it_ends(recurrent_model) -> None:
    model, calls = recurrent_model(batch_size=2), []

    def step(token_ids, state):
        calls.append(1)
        return model.step(token_ids, state)

    rules = TokenRules(min_tokens=5)
    places = stream(step, model.state(), batch_size=2, max_tokens=6, rules=rules, **model.ids)
    for number in range(1, 4):
        next(places)
        assert len(calls) == number
