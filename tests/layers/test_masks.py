"""Masks in parts equal masks made whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfusion.layers.masks import AttentionMask, causal_last, real_keys, real_queries, real_tokens, without_masked


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=shape) < 0.5


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 5), length=st.integers(1, 6), keys=st.booleans(), pattern=st.booleans(), causal=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_parts_equal_the_whole(rows, length, keys, pattern, causal, seed):
    flat, full = draw(seed, 2, length), draw(seed + 1, 2, rows, length)
    whole = np.ones((2, rows, length), bool)
    whole &= flat[:, None] if keys else True
    whole &= full if pattern else True
    whole &= np.tri(rows, length, length - rows, dtype=bool) if causal else True
    mask = AttentionMask.of(flat if keys else None, full if pattern else None, last=causal_last(rows, length) if causal else None)
    for places in (np.arange(length), np.arange(length)[length // 2 :]):
        found = mask.allowed(places)
        found = True if found is None else np.asarray(found)[:, 0]
        np.testing.assert_array_equal(np.broadcast_to(found, (2, rows, len(places))), whole[:, :, places])
    seen = mask.sees_any(length)
    np.testing.assert_array_equal(np.broadcast_to(True if seen is None else seen, (2, rows)), whole.any(-1))


def test_masks_of_both_ranks_combine():
    flat, full = draw(0, 2, 4), draw(1, 2, 3, 4)
    mask = AttentionMask.of(flat, full, None, full[:, :1])
    np.testing.assert_array_equal(mask.keys, flat & full[:, 0])
    np.testing.assert_array_equal(mask.pattern, full)
    assert AttentionMask.of(None).allowed(np.arange(4)) is None


def test_what_is_real():
    full = draw(1, 2, 3, 4)
    np.testing.assert_array_equal(real_keys(full), full.any(1))
    np.testing.assert_array_equal(real_queries(full), full.any(2))
    square = np.array([[[False, True, False], [False, False, False], [False, False, False]]])
    np.testing.assert_array_equal(real_tokens(square), [[True, True, False]])
    np.testing.assert_array_equal(real_tokens(full[:, 0]), full[:, 0])
    assert real_keys(None) is None and real_tokens(None) is None and real_queries(full[:, 0]) is not None


def test_without_masked_replaces_and_never_multiplies():
    x = np.array([[[1.0], [np.nan]]], "float32")
    np.testing.assert_array_equal(without_masked(x, np.array([[True, False]])), [[[1.0], [0.0]]])
    assert without_masked(x, None) is x
