"""Which samples a step sees: a function of (seed, epoch, step), and nothing that is remembered.

So a run that goes on from a checkpoint, or with another number of workers, sees what an undisturbed
one would have seen.
"""

import numpy as np

_MASK = (1 << 64) - 1


def mixed(*parts: int) -> int:
    """64 well-mixed bits of some numbers (the finaliser of SplitMix64, Steele et al., 2014)."""
    state = 0
    for part in parts:
        state = (state + 0x9E3779B97F4A7C15 + (part & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def held_out(hashes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which groups are held out, bool [n], from their hashes, uint64 [n]: each by itself, so that
    more data moves no group to the other side."""
    state = hashes.astype(np.uint64) + np.uint64(mixed(seed))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    state ^= state >> np.uint64(31)
    # 53 bits are a float's: exact, and never 1.
    held: np.ndarray = (state >> np.uint64(11)) * 2.0**-53 < share
    return held


def steps_of(samples: int, batch_size: int) -> int:
    """Steps of an epoch: whole batches; the few samples left over come up in other epochs. Fewer
    samples than a batch are one batch."""
    return max(1, samples // batch_size)


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation, int64 [samples]."""
    chance = np.random.Generator(np.random.Philox(key=mixed(seed, epoch)))
    return chance.permutation(samples)


def global_batch(order: np.ndarray, batch_size: int, step: int) -> np.ndarray:
    """What all workers together see at `step` of the epoch, from 0."""
    return order[step * batch_size : (step + 1) * batch_size]


def share_of(batch: np.ndarray, rank: int, world: int) -> np.ndarray:
    """A rank's part of a global batch: ranks side by side are the batch again."""
    start, stop = (len(batch) * each // world for each in (rank, rank + 1))
    return batch[start:stop]
