"""Beam search against brute force and against a plain version of the same search."""

from __future__ import annotations

import numpy as np
import pytest
from gradients import BACKEND, graph, tensorflow_only, to_numpy
from keras import ops

from mmfusion.decoding import TokenRules, beam_search, greedy
from mmfusion.errors import ConfigError

START, END, PAD = 1, 2, 0
PENALTIES = [-0.5, 0.0, 0.6, 1.0, 2.0]


def plain_search(model, example, *, beam_size, max_tokens, min_tokens=0, length_penalty=1.0, early_stopping=True):
    """The search for one example with lists, recomputing every text from scratch."""
    live, ended = [((), 0.0)], []
    for length in range(1, max_tokens + 1):
        grown = []
        for text, total in live:
            scores = model.log_probabilities(example, text)
            for token in range(model.vocabulary):
                if token != PAD and (token != END or len(text) >= min_tokens):
                    grown.append(((*text, token), total + scores[token]))
        grown.sort(key=lambda item: -item[1])
        for text, total in grown[:beam_size]:
            if text[-1] == END:
                ended.append((text, total / length**length_penalty))
        ended = sorted(ended, key=lambda item: -item[1])[:beam_size]
        live = [item for item in grown if item[0][-1] != END][:beam_size]
        if len(ended) == beam_size:
            kindest = max_tokens if length_penalty > 0 else length + 1
            if early_stopping or ended[-1][1] >= live[0][1] / kindest**length_penalty:
                return ended
    cut_off = [(text, total / max_tokens**length_penalty) for text, total in live]
    return sorted(ended + cut_off, key=lambda item: -item[1])[:beam_size]


def texts_of(output, example: int) -> list[tuple[int, ...]]:
    return [
        tuple(tokens[:length].tolist())
        for tokens, length in zip(np.asarray(output.token_ids[example]), np.asarray(output.lengths[example]), strict=True)
        if length
    ]


@pytest.mark.parametrize("length_penalty", PENALTIES)
@pytest.mark.parametrize("min_tokens", [0, 2])
@pytest.mark.parametrize("early_stopping", [True, False])
def test_with_beams_for_all_texts_it_equals_brute_force(
    recurrent_model, length_penalty: float, min_tokens: int, early_stopping: bool
) -> None:
    model = recurrent_model(vocabulary=5, batch_size=3)
    texts = model.all_texts(4, min_tokens)
    beam_size = len(texts) + 4
    output = beam_search(
        model.step, model.state(), batch_size=3, beam_size=beam_size, max_tokens=4, rules=TokenRules(min_tokens=min_tokens),
        length_penalty=length_penalty, early_stopping=early_stopping, **model.ids,
    )  # fmt: skip
    for example in range(3):
        scores = {text: model.total(example, text) / len(text) ** length_penalty for text in texts}
        ranking = sorted(texts, key=lambda text: -scores[text])
        found = texts_of(output, example)
        assert found[0] == ranking[0]
        assert sorted(found) == sorted(texts)
        np.testing.assert_allclose(output.scores[example, : len(texts)], [scores[text] for text in ranking], rtol=1e-4, atol=1e-5)
        # There is nothing left for the last beams.
        assert (np.asarray(output.scores[example, len(texts) :]) == -np.inf).all()
        assert (np.asarray(output.token_ids[example, len(texts) :]) == PAD).all()
    if min_tokens == 0:
        # The penalties are told apart only if they do not all choose the same text.
        chosen = {max(texts, key=lambda text, p=penalty: model.total(0, text) / len(text) ** p) for penalty in PENALTIES}
        assert len(chosen) > 1


@pytest.mark.parametrize("beam_size", [1, 2, 4])
@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize(("length_penalty", "min_tokens"), [(0.0, 0), (1.0, 0), (1.0, 3), (2.0, 1), (-0.5, 0)])
def test_equals_a_plain_search(
    recurrent_model, beam_size: int, early_stopping: bool, length_penalty: float, min_tokens: int
) -> None:
    model = recurrent_model(vocabulary=7, batch_size=6, seed=beam_size)
    options = {"beam_size": beam_size, "max_tokens": 7, "length_penalty": length_penalty, "early_stopping": early_stopping}
    rules = TokenRules(min_tokens=min_tokens)
    output = beam_search(model.step, model.state(), batch_size=6, rules=rules, **options, **model.ids)
    for example in range(6):
        expected = plain_search(model, example, min_tokens=min_tokens, **options)
        assert texts_of(output, example) == [text for text, _ in expected]
        np.testing.assert_allclose(output.scores[example], [score for _, score in expected], rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_one_beam_is_greedy(recurrent_model, seed: int) -> None:
    model = recurrent_model(vocabulary=6, batch_size=8, seed=seed)
    options = {"batch_size": 8, "max_tokens": 6, "rules": TokenRules(min_tokens=seed), **model.ids}
    beams = beam_search(model.step, model.state(), beam_size=1, **options)
    likeliest = greedy(model.step, model.state(), **options)
    np.testing.assert_array_equal(beams.token_ids[:, 0], likeliest.token_ids)
    np.testing.assert_array_equal(beams.lengths[:, 0], likeliest.lengths)
    np.testing.assert_allclose(beams.scores[:, 0], likeliest.scores, rtol=1e-5)


@pytest.mark.parametrize("length_penalty", PENALTIES)
def test_every_beam_is_a_text_with_its_own_score(recurrent_model, length_penalty: float) -> None:
    model = recurrent_model(vocabulary=6, batch_size=4, seed=6)
    output = beam_search(
        model.step, model.state(), batch_size=4, beam_size=3, max_tokens=6, length_penalty=length_penalty, **model.ids
    )
    assert output.token_ids.shape == (4, 3, 6) and output.token_ids.dtype == output.lengths.dtype == "int32"
    for example in range(4):
        texts = texts_of(output, example)
        assert len(set(texts)) == 3
        for beam, text in enumerate(texts):
            assert PAD not in text and END not in text[:-1]
            assert text[-1] == END or len(text) == 6
            assert np.asarray(output.token_ids[example, beam, len(text) :]).tolist() == [PAD] * (6 - len(text))
            score = model.total(example, text) / len(text) ** length_penalty
            assert float(output.scores[example, beam]) == pytest.approx(score, rel=1e-4)
        assert (np.diff(output.scores[example]) <= 0).all()


@pytest.mark.parametrize("early_stopping", [True, False])
def test_an_example_does_not_depend_on_its_batch(recurrent_model, early_stopping: bool) -> None:
    model = recurrent_model(vocabulary=6, batch_size=8, seed=7, sharpness=3.0)
    options = {"beam_size": 3, "max_tokens": 8, "early_stopping": early_stopping, **model.ids}
    together = beam_search(model.step, model.state(), batch_size=8, **options)
    for i in range(8):
        alone = beam_search(model.step, model.state(slice(i, i + 1)), batch_size=1, **options)
        np.testing.assert_array_equal(alone.token_ids[0], together.token_ids[i])
        np.testing.assert_allclose(alone.scores[0], together.scores[i], rtol=1e-5)


def test_searching_longer_never_finds_a_worse_best_text(recurrent_model) -> None:
    better = 0
    for seed in range(6):
        model = recurrent_model(vocabulary=6, batch_size=8, seed=seed)
        early, late = (
            beam_search(model.step, model.state(), batch_size=8, beam_size=2, max_tokens=8, early_stopping=stop, **model.ids)
            for stop in (True, False)
        )
        assert (to_numpy(late.scores)[:, 0] >= to_numpy(early.scores)[:, 0] - 1e-6).all()
        better += int((to_numpy(late.scores)[:, 0] > to_numpy(early.scores)[:, 0] + 1e-6).sum())
    assert better > 0


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("free", [False, True])
def test_in_graph_equals_eager(recurrent_model, jit_compile: bool, free: bool) -> None:
    model = recurrent_model(vocabulary=6, batch_size=5, seed=8)
    options = {"beam_size": 3, "max_tokens": 6, "early_stopping": False, **model.ids}

    def decode(features):
        state = model.state()._replace(features=features, memory={"hidden": ops.zeros_like(features)})
        return beam_search(model.step, state, batch_size=ops.shape(features)[0] if free else 5, **options)

    compiled = graph(decode, ((None if free else 5, 6), "float32"), jit_compile=jit_compile)
    eager = beam_search(model.step, model.state(), batch_size=5, **options)
    for rows in (5, 2) if free else (5,):
        output = compiled(model.features[:rows])
        np.testing.assert_array_equal(output.token_ids, eager.token_ids[:rows])
        np.testing.assert_allclose(output.scores, eager.scores[:rows], rtol=1e-5)
        np.testing.assert_array_equal(output.lengths, eager.lengths[:rows])
    if BACKEND == "tensorflow":
        assert compiled.get_concrete_function().structured_outputs.token_ids.shape[1:] == (3, 6)


@tensorflow_only
def test_a_step_that_forgets_static_shapes_runs_in_graph(recurrent_model) -> None:
    import tensorflow as tf

    model = recurrent_model(vocabulary=6, batch_size=4, seed=9)

    def forgetful(token_ids, state):
        logits, state = model.step(token_ids, state)
        hidden = tf.numpy_function(lambda x: x, [state.memory["hidden"]], tf.float32)
        return logits, state._replace(memory={"hidden": tf.ensure_shape(hidden, [None, None])})

    options = {"batch_size": 4, "beam_size": 2, "max_tokens": 5, **model.ids}
    output = tf.function(lambda: beam_search(forgetful, model.state(), **options))()
    np.testing.assert_array_equal(output.token_ids, beam_search(model.step, model.state(), **options).token_ids)


class TestState:
    """The state follows its beam."""

    @tensorflow_only
    def test_carried_equals_recomputed(self, recurrent_model) -> None:
        model = recurrent_model(vocabulary=7, batch_size=6, seed=10)
        options = {"batch_size": 6, "beam_size": 4, "max_tokens": 7, **model.ids}

        def from_scratch(token_ids, state):
            """Keeps nothing but the tokens read, and runs over all of them at each step."""
            tokens, features, position = state
            tokens = ops.slice_update(tokens, (0, position), token_ids[:, None])
            inner = model.state()._replace(memory={"hidden": ops.zeros_like(features)}, features=features)
            logits = ops.zeros((24, 7))
            for column in range(int(position) + 1):
                logits, inner = model.step(tokens[:, column], inner)
            return logits, (tokens, features, position + 1)

        state = (ops.zeros((6, 7), "int32"), ops.convert_to_tensor(model.features), ops.zeros((), "int32"))
        carried = beam_search(model.step, model.state(), **options)
        recomputed = beam_search(from_scratch, state, **options)
        np.testing.assert_array_equal(carried.token_ids, recomputed.token_ids)
        np.testing.assert_allclose(carried.scores, recomputed.scores, rtol=1e-5)

    @tensorflow_only
    def test_what_the_step_hands_back_untouched_is_not_moved(self, recurrent_model) -> None:
        model = recurrent_model(batch_size=2, seed=11)
        seen = []

        def step(token_ids, state):
            seen.append(state.features)
            return model.step(token_ids, state)

        beam_search(step, model.state(), batch_size=2, beam_size=3, max_tokens=4, **model.ids)
        assert len(seen) > 1 and all(features is seen[0] for features in seen)

    def test_what_was_moved_once_is_moved_for_good(self, recurrent_model) -> None:
        model = recurrent_model(vocabulary=7, batch_size=6, seed=12)

        def run(keep_identity: bool):
            steps = iter(range(99))

            def step(token_ids, state):
                # Two tokens long the features take up what was read, then they come back as they are.
                if next(steps) < 2:
                    embedded = ops.take(ops.convert_to_tensor(model.embedding), token_ids, axis=0)
                    state = state._replace(features=state.features + embedded)
                elif not keep_identity:
                    state = state._replace(features=state.features + 0.0)
                return model.step(token_ids, state)

            return beam_search(step, model.state(), batch_size=6, beam_size=4, max_tokens=7, **model.ids)

        for one, other in zip(run(True), run(False), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_python_numbers_and_bools_are_fine(self, recurrent_model) -> None:
        model = recurrent_model(batch_size=2, seed=13)

        def step(token_ids, state):
            logits, inner = model.step(token_ids, state["model"])
            return logits, {"model": inner, "count": state["count"] + 1, "mask": state["mask"]}

        options = {"batch_size": 2, "beam_size": 2, "max_tokens": 4, **model.ids}
        wrapped = beam_search(step, {"model": model.state(), "count": 0, "mask": np.ones((2, 3), bool)}, **options)
        np.testing.assert_array_equal(wrapped.token_ids, beam_search(model.step, model.state(), **options).token_ids)


@tensorflow_only  # elsewhere a loop is traced, so that its steps cannot be counted
class TestStopping:
    """No step is computed for nothing, and what has ended stays."""

    @staticmethod
    def count_steps(logits_at, beam_size: int, **options) -> tuple[int, object]:
        calls = []

        def step(token_ids, position):
            calls.append(1)
            row = np.array(logits_at(len(calls) - 1), "float32")
            return ops.ones_like(token_ids, "float32")[:, None] * row[None], position + 1

        state = ops.zeros((), "int32")
        output = beam_search(step, state, batch_size=2, beam_size=beam_size, start_id=1, end_id=END, pad_id=PAD, **options)
        return len(calls), output

    def test_stops_when_all_beams_have_ended(self) -> None:
        # At first all are alike, then all texts end: three have ended after two steps, and a fourth that was worse.
        steps, output = self.count_steps(lambda t: [0, 0, 0, 0, 0] if t == 0 else [0, 0, 20, 0, 0], 3, max_tokens=30)
        assert steps == 2
        assert np.asarray(output.lengths).tolist() == [[2, 2, 2]] * 2

    @pytest.mark.parametrize(("early_stopping", "expected"), [(True, [2]), (False, [3, 3, 3, 3, 3, 2])])
    def test_goes_on_while_better_is_possible(self, early_stopping: bool, expected: list[int]) -> None:
        # To end at once is likeliest, but a penalty of 2 favours the long text, which ends after six tokens.
        def logits_at(t: int) -> list[float]:
            if t == 0:
                return [-99, -99, 1, 0, -99]
            return [-99, -99, 0, 40, -99] if t < 5 else [-99, -99, 40, 0, -99]

        steps, output = self.count_steps(logits_at, 1, max_tokens=30, early_stopping=early_stopping, length_penalty=2.0)
        assert steps == len(expected)
        assert texts_of(output, 0) == [tuple(expected)]

    def test_stops_by_the_bound_before_the_limit(self) -> None:
        steps, _ = self.count_steps(lambda t: [-99, 0, 3, 0, 0], 2, max_tokens=30, early_stopping=False, length_penalty=0.0)
        assert steps < 5

    def test_what_ended_never_changes(self, recurrent_model) -> None:
        """The longer the limit, the more there may be beside them, but an ended text keeps its score."""
        model = recurrent_model(vocabulary=6, batch_size=8, seed=14)
        scores: dict[tuple[int, tuple[int, ...]], float] = {}
        for max_tokens in (3, 4, 5, 6):
            output = beam_search(
                model.step, model.state(), batch_size=8, beam_size=3, max_tokens=max_tokens, early_stopping=False,
                **model.ids,
            )  # fmt: skip
            for example in range(8):
                for text, score in zip(texts_of(output, example), np.asarray(output.scores[example]), strict=True):
                    if text[-1] == END:
                        assert scores.setdefault((example, text), score) == pytest.approx(score, rel=1e-6)
        assert len(scores) > 8


class TestLogits:
    """Odd logits."""

    @staticmethod
    def search(logits: list[float], dtype: str = "float32", **options):
        def step(token_ids, state):
            return ops.cast(ops.ones_like(token_ids, "float32")[:, None] * np.array([logits], "float32"), dtype), state

        options = {"beam_size": 2, "max_tokens": 3, "end_id": END, "pad_id": PAD, **options}
        return beam_search(step, (), batch_size=2, start_id=1, **options)

    def test_padding_is_never_written(self) -> None:
        output = self.search([99, -50, -50, 1, 0])
        assert (np.asarray(output.token_ids) != PAD).all()

    def test_padding_may_be_the_end_token(self) -> None:
        output = self.search([9, -50, -50, 1, 0], end_id=PAD, rules=TokenRules(min_tokens=1))
        assert np.asarray(output.token_ids[0]).tolist() == [[3, 0, 0], [4, 0, 0]]
        assert np.asarray(output.lengths[0]).tolist() == [2, 2]

    def test_minus_infinity_is_never_written(self) -> None:
        output = self.search([-np.inf, -np.inf, -np.inf, 0.0, -np.inf])
        assert texts_of(output, 0) == [(3, 3, 3)]
        np.testing.assert_array_equal(output.scores[0], [0.0, -np.inf])
        assert np.asarray(output.token_ids[0, 1]).tolist() == [PAD] * 3 and int(output.lengths[0, 1]) == 0

    @pytest.mark.parametrize("hopeless", [-np.inf, np.nan])
    def test_where_nothing_is_possible_there_is_no_text(self, hopeless: float) -> None:
        output = self.search([hopeless] * 5)
        assert (np.asarray(output.scores) == -np.inf).all() and (np.asarray(output.lengths) == 0).all()

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision_is_scored_in_float32(self, dtype: str) -> None:
        logits = [-9.0, 0.3, 1.7, 1.1, 0.25]
        output = self.search(logits, dtype=dtype)
        rounded = to_numpy(ops.cast(logits, dtype)).tolist()
        assert output.scores.dtype == "float32"
        np.testing.assert_array_equal(output.scores, self.search(rounded).scores)

    def test_extreme_logits(self) -> None:
        output = self.search([-3e38, 3e38, -3e38, 3e38, 0.0])
        assert np.isfinite(np.asarray(output.scores)).all()


def test_says_what_is_wrong(recurrent_model) -> None:
    model = recurrent_model()
    options = {"batch_size": 3, "max_tokens": 3, **model.ids}
    with pytest.raises(ConfigError, match="beam_size.*expected at least 1, found 0"):
        beam_search(model.step, model.state(), beam_size=0, **options)
    with pytest.raises(ConfigError, match="known vocabulary"):
        beam_search(lambda token_ids, state: (ops.zeros((6, 1)), state), (), beam_size=2, **options)
    with pytest.raises(ConfigError, match=r"first axis.*expected \[3, ...\], found \[7, 2\]"):
        beam_search(model.step, ops.zeros((7, 2)), beam_size=2, **options)


@pytest.mark.parametrize("beam_size", [1, 3, 200])
def test_a_forbidden_token_is_never_written_and_nothing_else_changes(recurrent_model, beam_size: int) -> None:
    model = recurrent_model(vocabulary=6, batch_size=3)
    options = {"batch_size": 3, "beam_size": beam_size, "max_tokens": 4, **model.ids}

    found = beam_search(model.step, model.state(), rules=TokenRules(forbidden_ids=(4, START)), **options)
    plain = beam_search(model.step, model.state(), **options)
    assert not np.isin(found.token_ids, (4, START)).any() and np.isin(plain.token_ids, (4, START)).any()
    if beam_size == 200:
        for example in range(3):
            allowed = [text for text in model.all_texts(4, 0) if not {4, START} & set(text)]
            best = max(allowed, key=lambda text, e=example: model.total(e, text) / len(text))
            assert texts_of(found, example)[0] == best
            np.testing.assert_allclose(found.scores[example, 0], model.total(example, best) / len(best), rtol=1e-4)
