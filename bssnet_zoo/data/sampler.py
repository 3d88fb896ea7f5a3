"""The order of training samples."""
from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np
from torch.utils.data import Sampler

__all__ = ["TrainSampler"]


class TrainSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of ``(epoch, index)`` keys for ``SegmentationDataset``, shuffled anew in each epoch.

    It is a batch sampler: ``DataLoader(dataset, batch_sampler=TrainSampler(len(dataset), 8))``. All epochs form one
    stream of samples, which is dealt out to batches with nothing dropped: a batch may hold the end of one epoch and the
    start of the next. Batch ``i`` is a pure function of ``(seed, i)``, so training resumes with ``start=i``, and the
    batches number ``i`` of all processes together are the batch of one process with ``world_size`` times the size.

    Args:
        length: Number of samples in the data set.
        batch_size: Samples per batch and process.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes.
        start: Number of batches to skip: those this process has trained on already.

    Example:
        >>> batches = iter(TrainSampler(length=4, batch_size=2))
        >>> sorted(next(batches) + next(batches))  # (epoch, index)
        [(0, 0), (0, 1), (0, 2), (0, 3)]
    """

    def __init__(
            self,
            length: int,
            batch_size: int,
            seed: int = 0,
            rank: int = 0,
            world_size: int = 1,
            start: int = 0,
    ):
        if length < 1 or batch_size < 1:
            raise ValueError(f"length is {length}, batch_size {batch_size}; both must be 1 or more")
        if not 0 <= rank < world_size or start < 0:
            raise ValueError(f"rank is {rank} of {world_size}, start {start}; need 0 <= rank < world_size, start >= 0")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.batch, count(self.start))

    def batch(self, iteration: int) -> list[tuple[int, int]]:
        """The keys of one batch, for instance to name its files: ``dataset.files[index]``."""
        first = (iteration * self.world_size + self.rank) * self.batch_size
        places = (divmod(position, self.length) for position in range(first, first + self.batch_size))
        return [(epoch, int(_order(self.length, self.seed, epoch)[place])) for epoch, place in places]


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)
