"""Pairs in groups, each about one image, and none lost."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.evaluation.grouping import grouped


@pytest.mark.parametrize("size", [1, 3, 16])
def test_every_pair_is_in_a_group_of_its_image(size: int):
    images = np.random.default_rng(size).integers(0, 9, 100)
    owners, members = grouped(images, size)
    assert members.shape == (len(owners), size)
    assert (images[members] == owners[:, None]).all()
    assert set(members.ravel().tolist()) == set(range(100))
    counts = np.bincount(images, minlength=9)
    assert len(owners) == sum(-(-count // size) for count in counts)
