"""Masked language modelling: what is hidden, how often, and what it costs."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from gradients import value_and_gradients

from mmfusion.errors import ConfigError
from mmfusion.losses import mask_tokens, masked_language_loss

MASK, SPECIAL, VOCABULARY = 4, (0, 1, 2, 3), 40


def texts(rows: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    lengths = random.integers(3, length + 1, rows)
    mask = np.arange(length) < lengths[:, None]
    ids = np.where(mask, random.integers(5, VOCABULARY, (rows, length)), 0)
    ids[:, 0] = 2
    ids[np.arange(rows), lengths - 1] = 3
    return ids.astype("int32"), mask


def hide(ids, mask, **options):
    options = {"vocabulary_size": VOCABULARY, "mask_id": MASK, "special_ids": SPECIAL, "seed": 1, **options}
    return tuple(np.asarray(part) for part in mask_tokens(ids, mask, **options))


@pytest.mark.parametrize("rate", [0.15, 0.6])
def test_shares_are_those_of_bert(rate: float) -> None:
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (400, 100)).astype("int32")
    hidden, chosen = hide(ids, np.ones_like(ids, bool), rate=rate)
    assert chosen.mean() == pytest.approx(rate, abs=0.01)
    np.testing.assert_array_equal(hidden[~chosen], ids[~chosen])
    masked = (hidden == MASK)[chosen].mean()
    kept = (hidden == ids)[chosen].mean()
    words = VOCABULARY - 5
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1 + 0.1 / words, abs=0.015)
    # A random word is any ordinary one, each as likely as the others.
    others = hidden[chosen & (hidden != MASK) & (hidden != ids)]
    counts = np.bincount(others, minlength=VOCABULARY)
    assert counts[:5].sum() == 0 and (counts[5:] > 0).all()
    assert counts[5:].std() < 2.0 * math.sqrt(counts[5:].mean())


def test_special_tokens_and_padding_are_never_hidden() -> None:
    ids, mask = texts(50, 9)
    ids[:, 1] = 1
    hidden, chosen = hide(ids, mask, rate=1.0)
    np.testing.assert_array_equal(chosen, mask & ~np.isin(ids, (*SPECIAL, MASK)))
    np.testing.assert_array_equal(hidden[~chosen], ids[~chosen])
    assert not np.isin(hidden[chosen], SPECIAL).any()


def test_special_ids_anywhere_in_the_vocabulary() -> None:
    ids = np.full((200, 50), 6, "int32")
    special = (0, 3, 7, 11)
    hidden, _ = hide(ids, ids > 0, vocabulary_size=12, mask_id=11, special_ids=special, rate=1.0)
    assert set(np.unique(hidden)) == {1, 2, 4, 5, 6, 8, 9, 10, 11}


def test_each_text_loses_at_least_one_word() -> None:
    ids, mask = texts(300, 9)
    _, chosen = hide(ids, mask, rate=1e-6)
    words = (mask & ~np.isin(ids, SPECIAL)).sum(axis=1)
    np.testing.assert_array_equal(chosen.sum(axis=1), np.minimum(words, 1))
    # No place is preferred.
    long = words == 7
    assert (chosen[long].sum(axis=0)[1:8] > 0).all()


def test_a_text_without_words_stays_as_it_is() -> None:
    ids, mask = np.array([[2, 3, 0], [0, 0, 0]]), np.array([[True, True, False], [False] * 3])
    hidden, chosen = hide(ids, mask)
    np.testing.assert_array_equal(hidden, ids)
    assert not chosen.any()


def test_seeds() -> None:
    ids, mask = texts(40, 9)
    generator = keras.random.SeedGenerator(3)
    first, second = (hide(ids, mask, seed=generator)[1] for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(hide(ids, mask, seed=5)[1], hide(ids, mask, seed=5)[1])


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"rate": 1.5}, {"vocabulary_size": 5}])
def test_what_cannot_be_hidden(options: dict) -> None:
    ids, mask = texts(2, 5)
    with pytest.raises(ConfigError, match="no tokens can be hidden"):
        hide(ids, mask, **options)


def reference(logits, targets, chosen, teacher, alpha, z_loss) -> tuple[np.ndarray, np.ndarray]:
    """By loops, in float64."""
    sums = np.zeros(len(logits))
    for row, place in np.argwhere(chosen):
        x = np.asarray(logits[row, place], "float64")
        log_partition = np.log(np.exp(x - x.max()).sum()) + x.max()
        q = np.exp(np.asarray(teacher[row, place], "float64"))
        target = alpha * q / q.sum() + (1 - alpha) * np.eye(len(x))[targets[row, place]]
        sums[row] += -(target * (x - log_partition)).sum() + z_loss * log_partition**2
    return sums, chosen.sum(axis=1)


@pytest.mark.parametrize(("alpha", "z_loss"), [(0.0, 0.0), (0.4, 0.0), (1.0, 0.3)])
def test_equals_loops_in_numpy(alpha: float, z_loss: float) -> None:
    random = np.random.default_rng(1)
    logits, teacher = random.normal(size=(2, 5, 6, 11)).astype("float32") * 3
    targets, chosen = random.integers(11, size=(5, 6)), random.uniform(size=(5, 6)) < 0.5
    loss = masked_language_loss(logits, targets, chosen, teacher_logits=teacher, alpha=alpha, z_loss=z_loss)
    sums, tokens = reference(logits, targets, chosen, teacher, alpha, z_loss)
    np.testing.assert_allclose(loss.loss_sum, sums, rtol=1e-5)
    np.testing.assert_array_equal(loss.tokens, tokens)


def test_anchors() -> None:
    zeros, targets, chosen = np.zeros((2, 3, 7)), np.ones((2, 3), int), np.ones((2, 3), bool)
    for teacher in (None, zeros):
        loss = masked_language_loss(zeros, targets, chosen, teacher_logits=teacher, alpha=0.4)
        np.testing.assert_allclose(loss.loss_sum, 3 * math.log(7), rtol=1e-6)
    loss = masked_language_loss(zeros, targets, chosen, z_loss=0.5)
    np.testing.assert_allclose(loss.loss_sum, 3 * (math.log(7) + 0.5 * math.log(7) ** 2), rtol=1e-6)


def test_gradient_by_hand_and_behind_the_mask() -> None:
    random = np.random.default_rng(2)
    logits, teacher = random.normal(size=(2, 1, 4, 6)).astype("float32")
    targets, chosen = random.integers(6, size=(1, 4)), np.array([[True, False, True, False]])
    logits[0, 1], teacher[0, 3] = np.nan, np.inf

    def total(x, t):
        return keras.ops.sum(masked_language_loss(x, targets, chosen, teacher_logits=t, alpha=0.3, z_loss=0.2).loss_sum)

    value, (gradient, nothing) = value_and_gradients(total, [logits, teacher])
    x = logits[chosen].astype("float64")
    p = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    q = np.exp(teacher[chosen]) / np.exp(teacher[chosen]).sum(axis=-1, keepdims=True)
    log_partition = np.log(np.exp(x).sum(axis=-1, keepdims=True))
    expected = p - 0.3 * q - 0.7 * np.eye(6)[targets[chosen]] + 0.4 * log_partition * p
    np.testing.assert_allclose(np.asarray(gradient)[chosen], expected, atol=1e-5)
    assert np.isfinite(value) and not np.asarray(gradient)[~chosen].any() and not np.asarray(nothing).any()
