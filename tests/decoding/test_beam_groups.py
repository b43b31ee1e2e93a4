"""Groups of beams against a plain version, and states that belong to an example."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from gradients import to_numpy
from keras import ops

from mmfusion.decoding import beam_search, greedy, sample
from mmfusion.errors import ConfigError

START, END, PAD = 1, 2, 0


def plain_groups(model, example: int, *, size: int, groups: int, penalty: float, length: int, length_penalty: float) -> list:
    """Every group's ended and cut off texts, by lists: group after group at each token."""
    live = [[((), 0.0)] for _ in range(groups)]
    ended: list[list] = [[] for _ in range(groups)]
    done = [False] * groups
    for step in range(1, length + 1):
        taken = np.zeros(model.vocabulary)
        for group in range(groups):
            grown = []
            for text, total in live[group]:
                scores = model.log_probabilities(example, text)
                for token in range(model.vocabulary):
                    if token != PAD:
                        own = total + scores[token]
                        grown.append(((*text, token), own, own - penalty * taken[token]))
            grown = sorted(grown, key=lambda item: -item[2])[: 2 * size]
            if not done[group]:
                ended[group] += [(text, own / step**length_penalty) for text, own, _ in grown[:size] if text[-1] == END]
                ended[group] = sorted(ended[group], key=lambda item: -item[1])[:size]
            live[group] = [(text, own) for text, own, _ in grown if text[-1] != END][:size]
            for text, _ in live[group]:
                taken[text[-1]] += 1
            done[group] = done[group] or len(ended[group]) == size
    found = []
    for group in range(groups):
        cut_off = [] if done[group] else [(text, total / length**length_penalty) for text, total in live[group]]
        found += sorted(ended[group] + cut_off, key=lambda item: -item[1])[:size]
    return sorted(found, key=lambda item: -item[1])


@pytest.mark.parametrize(("size", "groups"), [(1, 3), (2, 2), (3, 2)])
@pytest.mark.parametrize("penalty", [0.0, 0.4, 5.0])
def test_groups_equal_a_plain_search(recurrent_model, size: int, groups: int, penalty: float) -> None:
    model = recurrent_model(vocabulary=7, batch_size=4, seed=size)
    output = beam_search(
        model.step, model.state(), batch_size=4, beam_size=size * groups, num_groups=groups, diversity_penalty=penalty,
        max_tokens=6, length_penalty=0.7, **model.ids,
    )  # fmt: skip
    assert output.token_ids.shape == (4, size * groups, 6)
    for example in range(4):
        expected = plain_groups(model, example, size=size, groups=groups, penalty=penalty, length=6, length_penalty=0.7)
        np.testing.assert_allclose(output.scores[example], [score for _, score in expected], rtol=1e-4)
        found = [
            tuple(tokens[:length].tolist())
            for tokens, length in zip(np.asarray(output.token_ids[example]), np.asarray(output.lengths[example]), strict=True)
        ]
        assert sorted(found) == sorted(text for text, _ in expected)


def test_a_penalty_makes_texts_differ(recurrent_model) -> None:
    model = recurrent_model(vocabulary=7, batch_size=6, seed=5)

    def distinct(penalty: float) -> int:
        output = beam_search(
            model.step, model.state(), batch_size=6, beam_size=4, num_groups=4, diversity_penalty=penalty, max_tokens=6,
            **model.ids,
        )  # fmt: skip
        return sum(len({tuple(tokens.tolist()) for tokens in np.asarray(texts)}) for texts in output.token_ids)

    assert distinct(0.0) == 6 < distinct(5.0)


@pytest.mark.parametrize(("penalty", "searched"), [(0.0, 2), (0.5, 6)])
def test_groups_that_do_not_avoid_each_other_are_searched_once(recurrent_model, penalty: float, searched: int) -> None:
    model, rows = recurrent_model(vocabulary=7, batch_size=4, seed=2), set()

    def step(token_ids, state):
        rows.add(int(token_ids.shape[0]))
        return model.step(token_ids, state)

    output = beam_search(
        step, model.state(), batch_size=4, beam_size=6, num_groups=3, diversity_penalty=penalty, max_tokens=5, **model.ids
    )
    assert rows == {4 * searched} and output.token_ids.shape == (4, 6, 5)


def test_what_belongs_to_the_example_is_not_repeated(recurrent_model) -> None:
    model = recurrent_model(vocabulary=6, batch_size=4, seed=6)
    options = {"batch_size": 4, "max_tokens": 6, **model.ids}
    shared = model.state()._replace(memory={"hidden": False}, features=True, position=False, unused=None)
    rows = []

    def step(token_ids, state):
        rows.append(int(state.features.shape[0]))
        times = token_ids.shape[0] // state.features.shape[0]
        logits, new = model.step(token_ids, state._replace(features=ops.repeat(state.features, times, axis=0)))
        return logits, new._replace(features=state.features)

    for decode, more in (
        (beam_search, {"beam_size": 4}),
        (beam_search, {"beam_size": 4, "num_groups": 2}),
        (sample, {"num_samples": 3}),
        (greedy, {}),
    ):
        plain = decode(model.step, model.state(), **options, **more)
        sparing = decode(step, model.state(), shared=shared, **options, **more)
        np.testing.assert_array_equal(plain.token_ids, sparing.token_ids)
        np.testing.assert_allclose(to_numpy(plain.scores), to_numpy(sparing.scores), rtol=1e-6)
    assert set(rows) == {4}


def test_says_what_is_wrong(recurrent_model) -> None:
    model = recurrent_model()
    options = {"batch_size": 3, "max_tokens": 3, "beam_size": 4, **model.ids}
    with pytest.raises(ConfigError, match=r"num_groups.*divisor of beam_size \(4\).*num_groups=3"):
        beam_search(model.step, model.state(), num_groups=3, **options)
    with pytest.raises(ConfigError, match=r"diversity_penalty=-1"):
        beam_search(model.step, model.state(), num_groups=2, diversity_penalty=-1, **options)
    with pytest.raises(ConfigError, match="shared has another structure.*expected 4 leaves, found 1"):
        beam_search(model.step, model.state(), shared=True, **options)


class TestRequired:
    """Phrases that every text has."""

    @pytest.mark.parametrize("required", [[[3]], [[4], [5]], [[3, 4]], [[3, 3, 4], [5]], [[3, 4], [4, 3]]], ids=str)
    def test_with_beams_for_all_texts_it_equals_brute_force(self, recurrent_model, required) -> None:
        model, length = recurrent_model(vocabulary=6, batch_size=3, seed=7), 4
        output = beam_search(
            model.step, model.state(), batch_size=3, beam_size=300, required=required, max_tokens=length, **model.ids
        )

        def has_all(text: tuple[int, ...]) -> bool:
            return all(any(list(text[i : i + len(phrase)]) == phrase for i in range(len(text))) for phrase in required)

        texts = [text for text in model.all_texts(length) if has_all(text)]
        for example in range(3):
            scores = {text: model.total(example, text) / len(text) for text in texts}
            ranking = sorted(texts, key=lambda text: -scores[text])
            found = [
                tuple(tokens[:size].tolist())
                for tokens, size in zip(np.asarray(output.token_ids[example]), np.asarray(output.lengths[example]), strict=True)
                if size
            ]
            assert sorted(found) == sorted(texts)
            np.testing.assert_allclose(
                output.scores[example, : len(texts)], [scores[text] for text in ranking], rtol=1e-4, atol=1e-5
            )

    def test_few_beams_keep_the_promise_in_a_batch(self, recurrent_model) -> None:
        model = recurrent_model(vocabulary=7, batch_size=5, seed=8, sharpness=3.0)
        options = {"batch_size": 5, "beam_size": 2, "max_tokens": 9, **model.ids}
        output = beam_search(model.step, model.state(), required=[[4, 6], [5]], early_stopping=False, **options)
        plain = beam_search(model.step, model.state(), early_stopping=False, **options)
        for example in range(5):
            for tokens, score, length in zip(*(np.asarray(part[example]) for part in output), strict=True):
                text = tuple(tokens[:length].tolist())
                assert 5 in text and (4, 6) in itertools.pairwise(text)
                assert score == pytest.approx(model.total(example, text) / length, rel=1e-4)
            assert float(output.scores[example, 0]) <= float(plain.scores[example, 0]) + 1e-5

    def test_what_cannot_be_has_no_text(self, recurrent_model) -> None:
        model = recurrent_model(batch_size=2)
        output = beam_search(
            model.step, model.state(), batch_size=2, beam_size=2, required=[[3, 4, 3]], max_tokens=2, **model.ids
        )
        assert (np.asarray(output.scores) == -np.inf).all() and (np.asarray(output.lengths) == 0).all()

    def test_says_what_is_wrong(self, recurrent_model) -> None:
        model = recurrent_model()
        options = {"batch_size": 3, "max_tokens": 3, "beam_size": 4, **model.ids}
        for required, more, message in (
            ([[3]], {"num_groups": 2}, "do not go together"),
            ([[]], {}, r"empty phrase \[required\[0\]\]"),
            ([[99]], {}, r"no such token.*ids from 0 to 4, found \[99\]"),
            ([[3, 4] * 3, [4, 3] * 4, [3] * 9], {}, "too many required phrases"),
        ):
            with pytest.raises(ConfigError, match=message):
                beam_search(model.step, model.state(), required=required, **options, **more)
