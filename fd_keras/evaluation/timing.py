"""Time per image of defences, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fd_keras.evaluation.defences import Defence

_ROUNDS = 5
_SLOW = 0.5  # seconds for one image, from which one image and round must do


def milliseconds_per_image(
    defences: Sequence[Defence], images: npt.NDArray[np.float32]
) -> Mapping[str, float]:
    """Median time of each defence, all measured in turn in each round.

    Args:
        defences: With different names.
        images: Batch ``(n, height, width, channels)``, pixels 0..255; slow defences get its
            first image only.

    Returns:
        Milliseconds by name.

    Example:
        >>> from fd_keras.evaluation.defences import no_defence
        >>> list(milliseconds_per_image([no_defence()], np.zeros((2, 8, 8, 3), np.float32)))
        ['none']
    """
    batches, times = {}, {}
    for defence in defences:
        first = _seconds(defence, images[:1])  # the first call may compile
        slow = first > _SLOW and _seconds(defence, images[:1]) > _SLOW
        batches[defence.name] = images[:1] if slow else images
        times[defence.name] = [] if slow else [_seconds(defence, images) / len(images)]
    for _ in range(_ROUNDS):
        for defence in defences:
            batch = batches[defence.name]
            if len(batch) == len(images) or not times[defence.name]:
                times[defence.name].append(_seconds(defence, batch) / len(batch))
    return {name: 1000 * statistics.median(measured) for name, measured in times.items()}


def _seconds(defence: Defence, images: npt.NDArray[np.float32]) -> float:
    start = time.perf_counter()
    defence(images)
    return time.perf_counter() - start
