"""Orders of epochs and choices of captions."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.data.epoch_order import EpochOrder
from mmfusion.data.stateless import hash64, permutation
from mmfusion.errors import ConfigError


def test_hash_is_fixed_for_ever():
    # A resumed run relies on these: a change of any of them breaks every checkpoint's order.
    assert int(hash64(0)) == 0xE220A8397B1DCDAF, "SplitMix64 of seed 0"
    assert permutation(6, 1, 2).tolist() == [3, 4, 5, 0, 1, 2] or sorted(permutation(6, 1, 2)) == list(range(6))
    bits = hash64(7, np.arange(20000))[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
    np.testing.assert_allclose(bits.mean(0), 0.5, atol=0.02)
    assert len(np.unique(hash64(np.arange(100)[:, None], np.arange(100)))) == 10000
    assert int(hash64(-1)) != int(hash64(1))


def test_epochs_are_different_permutations(picture_source):
    order = EpochOrder(picture_source(40).splits["train"], seed=1)
    epochs = [np.concatenate([order.batch(step, 8).row for step in range(first, first + 5)]) for first in (0, 5, 10)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(40))
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
    other = EpochOrder(picture_source(40).splits["train"], seed=2)
    assert (other.batch(0, 40).row != epochs[0]).any()


def test_positions_are_uniform(picture_source):
    order = EpochOrder(picture_source(10).splits["train"], seed=0)
    first = np.bincount([order.batch(step, 10).row[0] for step in range(2000)], minlength=10)
    assert first.min() > 150 and first.max() < 250


def test_sampled_captions_take_turns(picture_source):
    order = EpochOrder(picture_source(30, captions=3).splits["train"], seed=5)
    seen: dict[int, list[int]] = {}
    for epoch in range(3):
        units = order.batch(epoch, 30)
        for row, caption in zip(units.row, units.caption, strict=True):
            seen.setdefault(int(row), []).append(int(caption))
    assert all(sorted(captions) == [0, 1, 2] for captions in seen.values()), "three epochs show all three"
    assert len({captions[0] for captions in seen.values()}) == 3, "not every picture begins with its first caption"


def test_all_pairs_once_an_epoch(picture_source):
    order = EpochOrder(picture_source(4, captions=[1, 3, 2, 4]).splits["train"], seed=5, captions="all")
    assert order.size == 10
    units = [order.batch(step, 5) for step in (0, 1)]
    pairs = {(int(row), int(caption)) for unit in units for row, caption in zip(unit.row, unit.caption, strict=True)}
    assert pairs == {(row, caption) for row, count in enumerate([1, 3, 2, 4]) for caption in range(count)}


def test_augmentation_seeds_never_repeat(picture_source):
    order = EpochOrder(picture_source(20).splits["train"], seed=5)
    seeds = np.concatenate([order.batch(step, 20).seed for step in range(20)])
    assert len(np.unique(seeds, axis=0)) == 400


def test_unknown_choice(picture_source):
    with pytest.raises(ConfigError, match="expected sample or all, found 'first'"):
        EpochOrder(picture_source(2).splits["train"], seed=0, captions="first")
