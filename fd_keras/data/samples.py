"""Seeded samples of images, spread over their classes or folders."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fd_keras._checks import checked_whole

Item = TypeVar("Item")


def spread_order(groups: npt.NDArray[np.integer], seed: int) -> npt.NDArray[np.integer]:
    """Positions in a random order, each group spread evenly over the whole.

    Of any number of positions from the start, each group has its share, but for about one.

    Args:
        groups: Class or folder of each image, ``(n,)``.
        seed: Of the order.

    Returns:
        The numbers from 0 to ``n - 1``, ``(n,)``.

    Example:
        >>> groups = np.repeat([0, 1], [10, 30])
        >>> order = spread_order(groups, seed=1)
        >>> groups[order[:8]].tolist().count(0), sorted(order) == list(range(40))
        (2, True)
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(groups))
    place = np.empty(len(groups))
    for group in np.unique(groups):
        members = shuffled[groups[shuffled] == group]
        # Each has a stretch of its own, in which its place is random.
        place[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(place, kind="stable")


class Reservoir(Generic[Item]):
    """A sample of a stream whose length and groups are only known at its end.

    It is random, and spread over the groups as ``spread_order`` does it. No more than four times
    as many items as are wanted are kept at any time.

    Args:
        limit: Number of items that are wanted.
        seed: Of the sample.

    Raises:
        ValueError: ``limit`` is not positive.

    Example:
        >>> sample = Reservoir(6, seed=1)
        >>> for number in range(300):
        ...     sample.add(number, group=number // 100)
        >>> sorted(number // 100 for number in sample.items()), sample.seen
        ([0, 0, 1, 1, 2, 2], 300)
    """

    def __init__(self, limit: int, seed: int) -> None:
        self.limit = checked_whole("limit", limit, 1)
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._counts: Counter[int] = Counter()
        self._kept: list[tuple[float, int, Any]] = []

    @property
    def seen(self) -> int:
        """Number of items that were added."""
        return self._counts.total()

    def add(self, item: Item, group: int = 0) -> None:
        """Take an item into account.

        Args:
            item: Any object.
            group: Its class or folder.
        """
        self._counts[group] += 1
        self._kept.append((self._rng.random(), group, item))
        if len(self._kept) > 4 * self.limit:
            # Twice as many as are wanted: the share of a group that still comes in may grow.
            self._kept = self._first(2 * self.limit)

    def items(self) -> list[Item]:
        """The sample, in an order from whose start fewer are a sample, too."""
        chosen = self._first(self.limit)
        order = spread_order(np.array([group for _, group, _ in chosen], np.int64), self._seed)
        return [chosen[index][2] for index in order]

    def _first(self, count: int) -> list[tuple[float, int, Any]]:
        """Those whose places, of all that were seen of their groups, come first."""
        placed = []
        by_group = sorted(self._kept, key=lambda entry: entry[1::-1])
        for group, members in itertools.groupby(by_group, key=lambda entry: entry[1]):
            size = self._counts[group]
            # Groups in turn where their places are equal.
            placed += [((rank + entry[0]) / size, entry) for rank, entry in enumerate(members)]
        placed.sort(key=lambda pair: pair[0])
        return [entry for _, entry in placed[:count]]
