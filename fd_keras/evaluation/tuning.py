"""Choosing the setting of a defence on images that take no part in the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fd_keras.evaluation.defences import Defence
from fd_keras.evaluation.workbench import ImageSet, Workbench, correct


@dataclass(frozen=True)
class Contestant:
    """A defence of the evaluation, and the settings it was chosen from.

    Args:
        defence: The chosen one.
        chosen_from: Names of all that were tried on the tuning split; empty if none were.

    Example:
        >>> from fd_keras.evaluation.defences import no_defence
        >>> Contestant(no_defence()).chosen_from
        ()
    """

    defence: Defence
    chosen_from: tuple[str, ...] = ()


def best_setting(
    candidates: Sequence[Defence],
    benign: ImageSet,
    attacked: Sequence[ImageSet],
    workbench: Workbench,
    count: int | None,
) -> Contestant:
    """The candidate with the best mean of benign and gray-box accuracy on the tuning split.

    Args:
        candidates: Settings of one defence.
        benign: Benign images of the tuning split.
        attacked: The same images under gray-box attacks.
        workbench: Classifies them.
        count: Use so many of the images; ``None``: all.

    Returns:
        The best; the first of several.
    """
    sets = [images.first(count) for images in (benign, *attacked)]
    total = len(candidates) * sum(len(images.images) for images in sets)
    with workbench.bar(f"Tuning: {candidates[0].family}", total) as advance:

        def accuracy(images: ImageSet, defence: Defence) -> float:
            logits = workbench.logits(images, defence, on_batch=advance)
            return float(correct(logits, images.images.labels).mean())

        def score(defence: Defence) -> float:
            under_attack = [accuracy(images, defence) for images in sets[1:]]
            return accuracy(sets[0], defence) + float(np.mean(under_attack))

        best = max(candidates, key=score)
    return Contestant(best, tuple(candidate.name for candidate in candidates))
