"""Seeded samples that are spread over their groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fd_keras.data.samples import Reservoir, spread_order

GROUPS = st.lists(st.integers(0, 4), min_size=1, max_size=200)


@given(GROUPS, st.integers(1, 40), st.integers(0, 9))
def test_a_reservoir_takes_each_group_by_its_share(groups, limit, seed):
    sample = Reservoir(limit, seed)
    for number, group in enumerate(groups):
        sample.add((number, group), group)
    found = sample.items()
    assert len(found) == len(set(found)) == min(limit, len(groups))
    assert sample.seen == len(groups)
    for group in set(groups):
        share = len(found) * groups.count(group) / len(groups)
        # One for its own place, and one for that of each other group.
        assert abs(sum(g == group for _, g in found) - share) <= 1 + len(set(groups))


def test_a_reservoir_is_uniform_within_a_group():
    """The first images of a sorted stream are as likely as the last."""
    counts = np.zeros(60)
    for seed in range(400):
        sample = Reservoir(6, seed)
        for number in range(60):
            sample.add(number, number // 20)
        counts[sample.items()] += 1
    # Of 400 draws at 1 in 10, four standard deviations are 24.
    assert np.abs(counts - 40).max() < 26


def test_a_reservoir_keeps_no_more_than_it_must():
    sample = Reservoir(5, seed=1)
    for number in range(1000):
        sample.add(number, number % 7)
        assert len(sample._kept) <= 20


def test_orders_depend_on_the_seed_alone():
    groups = np.arange(50) % 3
    assert spread_order(groups, 1).tolist() == spread_order(groups, 1).tolist()
    assert spread_order(groups, 1).tolist() != spread_order(groups, 2).tolist()
    with pytest.raises(ValueError, match="`limit` must be"):
        Reservoir(0, seed=1)
