"""The order of samples: a function of seed, epoch and step, for any number of workers."""

from __future__ import annotations

import numpy as np

from mmray.train.order import (
    epoch_order,
    global_batch,
    held_out,
    mixed,
    share_of,
    steps_of,
)


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    first, again = epoch_order(100, 7, 0), epoch_order(100, 7, 0)
    assert np.array_equal(first, again)
    assert np.array_equal(np.sort(first), np.arange(100))
    others = [epoch_order(100, 7, 1), epoch_order(100, 8, 0)]
    assert not any(np.array_equal(first, other) for other in others)


def test_workers_side_by_side_have_the_global_batch() -> None:
    order = epoch_order(50, 0, 3)
    for step in range(steps_of(50, 16)):
        batch = global_batch(order, 16, step)
        for world in (1, 2, 3):
            shares = [share_of(batch, rank, world) for rank in range(world)]
            assert np.array_equal(np.concatenate(shares), batch)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_steps_are_whole_batches_and_at_least_one() -> None:
    assert [steps_of(n, 8) for n in (3, 8, 15, 16)] == [1, 1, 1, 2]


def test_more_data_moves_no_group() -> None:
    hashes = np.array([mixed(each) >> 1 for each in range(20_000)], np.int64)
    small, large = held_out(hashes[:50], 0.2, 1), held_out(hashes, 0.2, 1)
    assert np.array_equal(small, large[:50])
    assert abs(large.mean() - 0.2) < 0.01
    assert not np.array_equal(large, held_out(hashes, 0.2, 2))
    assert not held_out(hashes, 0.0, 1).any()
    more = held_out(hashes, 0.3, 1)
    assert more[large].all()
