"""Two passes: each defence encodes the images before an attacker acts, and distils them after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras.data.labelled import LabelledImages
from fd_keras.evaluation.accuracies import CERTIFIED, accuracy_row
from fd_keras.evaluation.defences import Defence, no_defence
from fd_keras.evaluation.workbench import AttackedImages, Workbench, correct

# Grey levels of 255 at which certified accuracy is reported.
CERTIFIED_EPSILONS = (1, 2, 4)

# Images that are encoded at once.
_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images as a defender stores them, before an attacker acts.

    Args:
        images: All of them, whole pixel values from 0 to 255.
        sizes: Bytes of the file of each, ``(n,)``.
        radii: How many grey levels every pixel of each may change without any change of the
            image that the defence returns, ``(n,)``; ``None`` where nothing is proven.
        attacked: Positions of those that the classifier alone gets right: only these are
            attacked.

    Example:
        See ``encoded_images``.
    """

    images: LabelledImages
    sizes: npt.NDArray[np.int64]
    radii: npt.NDArray[np.float64] | None
    attacked: npt.NDArray[np.integer]

    def rows(self, defence: Defence, right: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
        """Certified accuracies, as a report holds them; none where nothing is proven.

        Args:
            defence: The defence.
            right: Which of all images are right after both passes.
        """
        if self.radii is None:
            return []
        return [
            accuracy_row(
                defence=defence.name,
                family=defence.family,
                threat_model=CERTIFIED,
                attack=f"within {epsilon}/255",
                norm="inf",
                epsilon=epsilon / 255,
                correct=int((right & (self.radii >= epsilon)).sum()),
                count=len(right),
            )
            for epsilon in CERTIFIED_EPSILONS
        ]

    def entry(self, file: str) -> dict[str, Any]:
        """What a report says of a defence beside its accuracies.

        Args:
            file: Format of the files.
        """
        return {
            "file": file,
            "bytes_per_image": float(self.sizes.mean()),
            "images": len(self.images),
            "right_once_encoded": len(self.attacked),
            "least_radius": None if self.radii is None else float(self.radii.min()),
            "median_radius": None if self.radii is None else float(np.median(self.radii)),
        }


def check_encoders(defences: Sequence[Defence], shape: Sequence[int] | None = None) -> None:
    """Refuse defences that cannot encode images before they are attacked.

    Args:
        defences: Those that are to be evaluated in two passes.
        shape: Of one image; ``None``: it is not known yet.

    Raises:
        ValueError: With the names of those that have no encoder, or why an encoder does not take
            such images.

    Example:
        >>> from fd_keras.evaluation.defences import defence
        >>> check_encoders([defence("liu2019"), defence("bits:5")], (8, 8, 3))
    """
    without = [defence.name for defence in defences if defence.encoder is None]
    if without:
        raise ValueError(
            "`passes` must be 1 for defences without an encoder; quantisation tables with one "
            "block grid, JPEG and bit depth have one. No stored image stays as it is under filters "
            "or on several grids, and SLQ draws other qualities in its second pass. "
            f"Received: passes=2 with {', '.join(without)}"
        )
    if shape is None:
        return
    for defence in defences:
        assert defence.encoder is not None
        # An encoder says itself what it does not take.
        defence.encoder.store(np.zeros((1, 8, 8, shape[-1]), np.float32))


def encoded_images(images: LabelledImages, defence: Defence, workbench: Workbench) -> EncodedImages:
    """Encode images with a defence's own encoder.

    Args:
        images: The images as they are.
        defence: With an encoder.
        workbench: Classifies the encoded images.

    Example:
        >>> import keras, tempfile
        >>> from fd_keras._console import progress_bars
        >>> from fd_keras.classifier import Classifier
        >>> from fd_keras.evaluation.defences import defence
        >>> from fd_keras.evaluation.store import ArrayStore
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> store = ArrayStore(tempfile.mkdtemp())
        >>> images = LabelledImages(np.array([[[[90.0], [80.0]]]]), np.array([0]), (0, 255))
        >>> with progress_bars(None) as progress:
        ...     bench = Workbench(Classifier(model), store, seed=1, eot_draws=1, progress=progress)
        ...     found = encoded_images(images, defence("bits:1"), bench)
        >>> found.images.images.ravel(), found.radii.round(1), found.attacked
        (array([0, 0], dtype=uint8), array([127.5]), array([0]))
    """
    encoder = defence.encoder
    assert encoder is not None  # `check_encoders` has seen to it
    stored, sizes, proven = [], [], []
    with workbench.bar(f"Encoding: {defence.name}", len(images)) as advance:
        for start in range(0, len(images), _AT_ONCE):
            part = images[start : start + _AT_ONCE]
            kept, written = encoder.store(255 * part.unit_images())
            stored.append(kept)
            sizes.append(written)
            proven.append(encoder.radii(kept))
            advance(len(part))
    encoded = replace(images, images=np.concatenate(stored), value_range=(0.0, 255.0))
    logits = workbench.logits(AttackedImages(encoded), no_defence())
    certain = [radii for radii in proven if radii is not None]
    return EncodedImages(
        encoded,
        np.concatenate(sizes),
        np.concatenate(certain) if certain else None,
        np.flatnonzero(correct(logits, images.labels)),
    )
