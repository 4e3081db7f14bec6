"""The images of a search: those that select a table, and those that are held back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras.data import described
from fd_keras.evaluation.attacks import Attack
from fd_keras.evaluation.classifiers import EvaluatedClassifier
from fd_keras.evaluation.protocols import Protocol
from fd_keras.evaluation.selection import Selection, select, unit_images
from fd_keras.evaluation.store import array_hash
from fd_keras.evaluation.workbench import ImageSet, Workbench
from fd_keras.refinement.scoring import BENIGN, FloatArray, ScoredImages
from fd_keras.value_range import check_pixels


@dataclass(frozen=True, eq=False)
class Half:
    """Half of the images that the classifier alone gets right, and how they are attacked.

    Args:
        images: The benign images.
        attacks: Attacks on the classifier alone, each with the number of its images; they are
            generated, or read from the cache, when they are asked for.
        given: Attacked images that were brought along, by name, pixels from 0 to 1.
    """

    images: Selection
    attacks: Sequence[tuple[Attack, int]]
    given: Mapping[str, FloatArray]

    def generate(self, bench: Workbench) -> None:
        """Attack the images, unless that was done before."""
        for images in self._image_sets().values():
            bench.generate(images)

    def load(self, bench: Workbench) -> ScoredImages:
        """All images in memory."""
        sets = {BENIGN: self.images.unit_images(), **self.given}
        sets.update({n: bench.pixels(images) for n, images in self._image_sets().items()})
        return ScoredImages(self.images.labels, sets)

    def _image_sets(self) -> dict[str, ImageSet]:
        return {
            attack.name: ImageSet(self.images, attack).first(count)
            for attack, count in self.attacks
        }


def halved(
    classifier: EvaluatedClassifier,
    data: Any,
    attacks: Protocol | Mapping[str, npt.ArrayLike],
    *,
    max_images: int,
    limits: Mapping[str, int],
) -> tuple[Half, Half]:
    """Choose images and split them: even ones select a table, odd ones are held back.

    Args:
        classifier: The classifier alone; only images that it gets right are used.
        data: What ``fd_keras.evaluate`` takes.
        attacks: The protocol, or attacked images by the name of the attack, one for each image
            of ``data`` and in the same value range.
        max_images: Number of images in both halves together.
        limits: Fewer images of each half for families of attacks.

    Raises:
        ValueError: The arguments do not fit each other, or fewer than two images are left.
    """
    if isinstance(attacks, Protocol):
        selection = select(classifier, data, max_images=max_images, batch_size=32)
        given: dict[str, FloatArray] = {}
        protocol = attacks
        if not protocol.gray_box:
            raise ValueError(
                f"`protocol` must have gray-box attacks. Received: protocol={protocol!r}"
            )
    else:
        selection, given = _selected(classifier, data, attacks, max_images)
        protocol = Protocol("given", "Images attacked beforehand.")
    unknown = set(limits) - {attack.family for attack in protocol.gray_box}
    if unknown or any(not isinstance(n, int) or n < 1 for n in limits.values()):
        raise ValueError(
            "`limits` must map families of the protocol's gray-box attacks to whole numbers. "
            f"Received: limits={dict(limits)!r}"
        )
    if len(selection) < 2:
        raise ValueError(
            "`data` must hold two images that `model` classifies correctly, one to select on and "
            f"one to hold back. Received: {len(selection)}"
        )

    def half(first: int) -> Half:
        images = selection[first::2]
        most = len(images)
        counted = [(a, min(limits.get(a.family, most), most)) for a in protocol.gray_box]
        return Half(images, counted, {name: x[first::2] for name, x in given.items()})

    return half(0), half(1)


def _selected(
    classifier: EvaluatedClassifier,
    data: Any,
    attacked: Mapping[str, npt.ArrayLike],
    max_images: int,
) -> tuple[Selection, dict[str, FloatArray]]:
    """The images that are classified correctly, and their attacked versions."""
    if not isinstance(data, (tuple, list)) or len(data) != 2 or np.ndim(data[0]) != 4:
        raise ValueError(
            "`data` must be the arrays (images, labels) where attacked images are given. "
            f"Received: data={described(data)}"
        )
    images, labels = np.asarray(data[0]), np.asarray(data[1])
    selection = select(classifier, (images, labels), max_images=max_images, batch_size=32)
    # Which of them were chosen: those whose pixels the selection holds, in their order.
    chosen, wanted = [], 0
    for index in range(selection.seen):
        if wanted < len(selection) and np.array_equal(images[index], selection.pixels[wanted]):
            chosen.append(index)
            wanted += 1
    given = {}
    for name, pixels in attacked.items():
        array = np.asarray(pixels)
        if array.shape != images.shape or name == BENIGN:
            raise ValueError(
                "`protocol` must map names of attacks, not 'benign', to arrays of the shape of the "
                f"images, {images.shape}. Received: {name!r} of shape {array.shape}"
            )
        check_pixels(array, classifier.value_range)
        given[name] = unit_images(array[chosen], classifier.value_range)
    if not given:
        raise ValueError("`protocol` must hold attacked images. Received: protocol={}")
    return selection, given


def fingerprint(half: Half) -> dict[str, Any]:
    """What decides the images of a half, as plain JSON types."""
    return {
        "images": half.images.fingerprint,
        "attacks": [[attack.to_dict(), count] for attack, count in half.attacks],
        "given": {name: array_hash(pixels) for name, pixels in half.given.items()},
    }
