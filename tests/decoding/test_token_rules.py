"""The rules of what may be written, for every decoder and several texts at once, against plain loops over lists."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from mmfusion.decoding import TokenRules, beam_search, greedy, sample
from mmfusion.errors import ConfigError

START, END, PAD = 1, 2, 0
VOCABULARY, LENGTH = 7, 8
RULES = {
    "none": TokenRules(),
    "minimum": TokenRules(min_tokens=5),
    "forbidden": TokenRules(forbidden_ids=(3, 99)),
    "allowed": TokenRules(allowed_ids=(3, 5)),
    "penalty": TokenRules(repetition_penalty=2.5),
    "no token twice": TokenRules(no_repeat_ngram=1),
    "no pair twice": TokenRules(no_repeat_ngram=2),
    "no three twice": TokenRules(no_repeat_ngram=3),
    "prefix": TokenRules(prefix_ids=np.array([[4, 4, PAD], [5, PAD, PAD], [PAD, PAD, PAD], [6, 3, 4]])),
    "together": TokenRules(
        min_tokens=3, forbidden_ids=(6,), repetition_penalty=1.5, no_repeat_ngram=2,
        prefix_ids=np.array([[6], [6], [PAD], [5]]),
    ),
}  # fmt: skip
each_rule = pytest.mark.parametrize("rules", RULES.values(), ids=RULES)


def plain_scores(own: np.ndarray, text: tuple[int, ...], rules: TokenRules, prefix: list[int]) -> np.ndarray:
    """``float64[V]``: log-probabilities after the rules, by loops."""
    if len(text) < len(prefix) and prefix[len(text)] != PAD:
        return np.where(np.arange(len(own)) == prefix[len(text)], own, -np.inf)
    scores = own.copy()
    for token in set(text):
        scores[token] *= rules.repetition_penalty
    for token in range(len(own)):
        grown, n = (*text, token), rules.no_repeat_ngram
        runs = [grown[i : i + n] for i in range(len(grown) - n + 1)] if n else []
        if (
            token in ({PAD} | set(rules.forbidden_ids))
            or (rules.allowed_ids is not None and token not in (*rules.allowed_ids, END))
            or (token == END and len(text) < rules.min_tokens)
            or (runs and runs[-1] in runs[:-1])
        ):
            scores[token] = -np.inf
    return scores


def prefix_of(rules: TokenRules, example: int) -> list[int]:
    return [] if rules.prefix_ids is None else np.asarray(rules.prefix_ids)[example].tolist()


@each_rule
def test_greedy_keeps_them(recurrent_model, rules: TokenRules) -> None:
    model = recurrent_model(vocabulary=VOCABULARY, batch_size=4, seed=3)
    output = greedy(model.step, model.state(), batch_size=4, max_tokens=LENGTH, rules=rules, **model.ids)
    for example in range(4):
        text, total = (), 0.0
        while len(text) < LENGTH and END not in text:
            scores = plain_scores(model.log_probabilities(example, text), text, rules, prefix_of(rules, example))
            token = int(np.argmax(scores))
            text, total = (*text, token if scores[token] > -np.inf else END), total + scores[token]
        found = np.asarray(output.token_ids[example]).tolist()
        assert found == [*text, *[PAD] * (LENGTH - len(text))]
        np.testing.assert_allclose(output.scores[example], total / len(text), rtol=1e-4)


def test_the_rules_change_something(recurrent_model) -> None:
    model = recurrent_model(vocabulary=VOCABULARY, batch_size=4, seed=3)
    found = {
        name: np.asarray(greedy(model.step, model.state(), batch_size=4, max_tokens=LENGTH, rules=rules, **model.ids).token_ids)
        for name, rules in RULES.items()
    }
    assert all((found[name] != found["none"]).any() for name in RULES if name != "none")


@each_rule
def test_beams_keep_them(recurrent_model, rules: TokenRules) -> None:
    """With beams for all texts the search is exact: the best text by brute force over the plain scores."""
    model, length = recurrent_model(vocabulary=6, batch_size=4, seed=4), 4
    rules = rules._replace(min_tokens=min(rules.min_tokens, length - 1))
    output = beam_search(
        model.step, model.state(), batch_size=4, beam_size=400, max_tokens=length, rules=_below(rules, 6), **model.ids
    )
    for example in range(4):
        best = max(_all_texts(model, example, _below(rules, 6), length), key=lambda item: item[1], default=((), -np.inf))
        text, score = best
        assert np.asarray(output.token_ids[example, 0]).tolist() == [*text, *[PAD] * (length - len(text))]
        np.testing.assert_allclose(output.scores[example, 0], score, rtol=1e-4)


def _below(rules: TokenRules, vocabulary: int) -> TokenRules:
    if rules.prefix_ids is None:
        return rules
    prefix = np.asarray(rules.prefix_ids)
    return rules._replace(prefix_ids=np.where(prefix < vocabulary, prefix, PAD))


def _all_texts(model, example: int, rules: TokenRules, length: int) -> list[tuple[tuple[int, ...], float]]:
    ended, live = [], [((), 0.0)]
    for size in range(1, length + 1):
        grown = []
        for text, total in live:
            scores = plain_scores(model.log_probabilities(example, text), text, rules, prefix_of(rules, example))
            grown += [((*text, token), total + score) for token, score in enumerate(scores) if score > -np.inf]
        ended += [(text, total / size) for text, total in grown if text[-1] == END or size == length]
        live = [(text, total) for text, total in grown if text[-1] != END]
    return ended


@each_rule
def test_samples_keep_them(recurrent_model, rules: TokenRules) -> None:
    model = recurrent_model(vocabulary=VOCABULARY, batch_size=4, seed=5)
    output = sample(
        model.step, model.state(), batch_size=4, num_samples=5, max_tokens=LENGTH, rules=rules, temperature=2.0, **model.ids
    )
    for example in range(4):
        for tokens, length in zip(np.asarray(output.token_ids[example]), np.asarray(output.lengths[example]), strict=True):
            text = tuple(tokens[:length].tolist())
            for size in range(length):
                own = model.log_probabilities(example, text[:size])
                scores = plain_scores(own, text[:size], rules, prefix_of(rules, example))
                assert scores[text[size]] > -np.inf or (np.isneginf(scores).all() and text[size] == END)


def test_a_prefix_may_hold_what_the_rules_forbid() -> None:
    rules = TokenRules(forbidden_ids=(3,), no_repeat_ngram=1, prefix_ids=ops.convert_to_tensor([[3, 3]]))
    logits = np.array([[0, 0, 0, 0, 5]], "float32")
    output = greedy(
        lambda token_ids, state: (logits, state), (), batch_size=1, start_id=1, end_id=2, pad_id=0, max_tokens=4, rules=rules
    )
    assert np.asarray(output.token_ids).tolist() == [[3, 3, 4, 1]]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (TokenRules(repetition_penalty=0.5), "repetition_penalty.*at least 1, found 0.5"),
        (TokenRules(no_repeat_ngram=-1), "no_repeat_ngram.*at least 0"),
        (TokenRules(allowed_ids=()), "allowed_ids.*at least one token"),
        (TokenRules(prefix_ids=[3]), r"prefix_ids.*int\[B, P\].*found \[1\]"),
        (TokenRules(prefix_ids=[[3] * 9]), r"prefix_ids.*up to max_tokens \(8\).*found \[1, 9\]"),
    ],
)
def test_says_what_is_wrong(recurrent_model, rules: TokenRules, message: str) -> None:
    model = recurrent_model()
    for decode in (greedy, sample):
        with pytest.raises(ConfigError, match=message):
            decode(model.step, model.state(), batch_size=3, max_tokens=LENGTH, rules=rules, **model.ids)
    with pytest.raises(ConfigError, match=message):
        beam_search(model.step, model.state(), batch_size=3, beam_size=2, max_tokens=LENGTH, rules=rules, **model.ids)
