"""Sampling: the chances of whole texts against the model's own, and seeds that belong to their text."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from gradients import graph, to_numpy
from keras import ops

from mmfusion.decoding import sample
from mmfusion.errors import ConfigError

START, END, PAD = 1, 2, 0


def chances(model, example: int, length: int, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> dict:
    """The probability of every text by NumPy: sorted, cut, spread anew."""
    texts = {(): 1.0}
    for _ in range(length):
        grown: dict = {}
        for text, chance in texts.items():
            if text and text[-1] == END:
                grown[text] = grown.get(text, 0.0) + chance
                continue
            scores = model.log_probabilities(example, text) / temperature
            scores[PAD] = -np.inf
            order = np.argsort(-scores)
            weights = np.exp(scores[order])
            if top_k is not None:
                weights[top_k:] = 0
            weights /= weights.sum()
            keep = np.cumsum(weights) - weights < top_p
            weights = np.where(keep, weights, 0) / weights[keep].sum()
            for token, weight in zip(order, weights, strict=True):
                if weight > 0:
                    grown[(*text, int(token))] = grown.get((*text, int(token)), 0.0) + chance * weight
        texts = grown
    return texts


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"top_k": 2}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 3, "top_p": 0.8}],
    ids=lambda options: ", ".join(map(str, options.items())) or "plain",
)
def test_texts_come_as_often_as_they_should(recurrent_model, options: dict) -> None:
    """A chi-square test of the counts of all texts."""
    from scipy.stats import chi2

    model, draws = recurrent_model(vocabulary=5, batch_size=2, seed=2), 3000
    output = sample(model.step, model.state(), batch_size=2, num_samples=draws, max_tokens=2, seeds=7, **options, **model.ids)
    for example in range(2):
        expected = chances(model, example, 2, **options)
        found = Counter(
            tuple(tokens[:length].tolist())
            for tokens, length in zip(np.asarray(output.token_ids[example]), np.asarray(output.lengths[example]), strict=True)
        )
        assert set(found) <= set(expected)
        often = {text: chance for text, chance in expected.items() if chance * draws >= 5}
        statistic = sum((found[text] - chance * draws) ** 2 / (chance * draws) for text, chance in often.items())
        assert statistic < chi2.ppf(0.9999, max(len(often) - 1, 1))


def test_a_score_is_what_the_model_says(recurrent_model) -> None:
    model = recurrent_model(vocabulary=6, batch_size=3, seed=3)
    output = sample(model.step, model.state(), batch_size=3, num_samples=4, max_tokens=6, temperature=2.0, **model.ids)
    assert (np.diff(to_numpy(output.scores), axis=1) <= 0).all()
    for example in range(3):
        for tokens, score, length in zip(*(np.asarray(part[example]) for part in output), strict=True):
            text = tuple(tokens[:length].tolist())
            assert score == pytest.approx(model.total(example, text) / length, rel=1e-4)
            assert END not in text[:-1] and (tokens[length:] == PAD).all()


def test_a_text_depends_on_its_own_seed_alone(recurrent_model) -> None:
    model = recurrent_model(vocabulary=6, batch_size=4, seed=4)
    seeds = np.array([5, 6, 7, 8])
    together = sample(model.step, model.state(), batch_size=4, seeds=seeds, num_samples=2, max_tokens=6, **model.ids)
    for row in range(4):
        rows = slice(row, row + 1)
        alone = sample(model.step, model.state(rows), batch_size=1, seeds=seeds[rows], num_samples=2, max_tokens=6, **model.ids)
        np.testing.assert_array_equal(alone.token_ids[0], together.token_ids[row])
    again = sample(model.step, model.state(), batch_size=4, seeds=seeds + 1, num_samples=2, max_tokens=6, **model.ids)
    assert (np.asarray(again.token_ids) != np.asarray(together.token_ids)).any()


def test_equal_examples_with_one_seed_for_all_differ() -> None:
    logits = np.zeros((1, 50), "float32")

    def step(token_ids, state):
        return ops.broadcast_to(ops.convert_to_tensor(logits), (len(token_ids), 50)), state

    output = sample(step, (), batch_size=6, num_samples=2, max_tokens=9, start_id=START, end_id=END, pad_id=PAD)
    texts = {tuple(tokens.tolist()) for tokens in np.asarray(output.token_ids).reshape(12, 9)}
    assert len(texts) == 12


def test_a_draw_falls_in_the_smallest_nucleus() -> None:
    logits = np.log(np.array([[1e-9, 1e-9, 0.3, 0.3, 0.2, 0.2]], "float32"))

    def drawn(**options) -> set[int]:
        output = sample(
            lambda token_ids, state: (ops.repeat(ops.convert_to_tensor(logits), len(token_ids), axis=0), state),
            (), batch_size=1, num_samples=400, max_tokens=1, start_id=START, end_id=END, pad_id=PAD, **options,
        )  # fmt: skip
        return set(np.asarray(output.token_ids).ravel().tolist())

    assert drawn(top_p=1e-6) == {2, 3}
    assert drawn(top_p=0.59) == {2, 3}
    assert drawn(top_p=0.61) == {2, 3, 4, 5}
    assert drawn(top_k=1) == {2, 3}
    assert len(drawn(top_k=1, temperature=0.01)) == 2


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_graph_equals_eager(recurrent_model, jit_compile: bool) -> None:
    model = recurrent_model(vocabulary=6, batch_size=5, seed=8)
    options = {"num_samples": 3, "max_tokens": 6, "top_p": 0.8, "top_k": 4, **model.ids}

    def decode(features, seeds):
        state = model.state()._replace(features=features, memory={"hidden": ops.zeros_like(features)})
        return sample(model.step, state, batch_size=ops.shape(features)[0], seeds=seeds, **options)

    compiled = graph(decode, ((None, 6), "float32"), ((None,), "int32"), jit_compile=jit_compile)
    seeds = np.arange(5, dtype="int32")
    eager = sample(model.step, model.state(), batch_size=5, seeds=seeds, **options)
    for rows in (5, 2):
        output = compiled(model.features[:rows], seeds[:rows])
        np.testing.assert_array_equal(output.token_ids, eager.token_ids[:rows])
        np.testing.assert_allclose(output.scores, eager.scores[:rows], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature.*above 0.*found 0.0"),
        ({"top_p": 0.0}, "top_p.*found 0.0"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 0}, "top_k.*at least 1"),
        ({"num_samples": 0}, "num_samples"),
        ({"seeds": [1, 2]}, r"seeds.*one, or int\[3\], found \[2\]"),
    ],
)
def test_says_what_is_wrong(recurrent_model, options: dict, message: str) -> None:
    model = recurrent_model()
    with pytest.raises(ConfigError, match=message):
        sample(model.step, model.state(), batch_size=3, max_tokens=3, **options, **model.ids)
