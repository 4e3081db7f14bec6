"""What a run of the demo found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

GRAY_BOX = "gray-box"


@dataclass(frozen=True)
class Attack:
    """One attack at one strength; without arguments, images left alone.

    Args:
        name: ``"FGSM"``, ``"BIM"`` or ``"benign"``.
        epsilon: Largest change of a pixel in grey levels (0..255).
        step: Change of a pixel in one iteration, in grey levels.
        iterations: Number of iterations.
    """

    name: str = "benign"
    epsilon: int = 0
    step: int = 0
    iterations: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.epsilon}/255" if self.epsilon else self.name


@dataclass(frozen=True)
class Accuracy:
    """How many images one defence keeps right under one attack.

    Args:
        defence: Name of the quantisation table, or ``"none"``.
        attack: What was done to the images.
        correct: Number of images that are classified correctly.
        count: Number of images.
        threat_model: What the attacker knew.
    """

    defence: str
    attack: Attack
    correct: int
    count: int
    threat_model: str = GRAY_BOX

    @property
    def percent(self) -> float:
        """Share of correct images in percent."""
        return 100 * self.correct / self.count


@dataclass(frozen=True)
class Agreement:
    """How an exported model compares with the Keras model it came from.

    Args:
        runtime: What ran the exported model.
        largest_difference: Largest absolute difference of a logit.
        same_class: Number of images with the same predicted class.
        count: Number of images.
    """

    runtime: str
    largest_difference: float
    same_class: int
    count: int


@dataclass(frozen=True)
class DemoResult:
    """All figures and files of one run.

    Args:
        seed: Seed of the split and the training.
        test_count: Number of test images.
        test_correct: How many of them the undefended classifier gets right; the attacks run
            on these.
        exported: Name of the quantisation table inside the exported model.
        accuracies: One entry per defence and attack.
        agreements: One entry per exported format.
        saved_model: Directory of the exported version.
        tflite: The TFLite file.
        report: The HTML page.
    """

    seed: int
    test_count: int
    test_correct: int
    exported: str
    accuracies: tuple[Accuracy, ...]
    agreements: tuple[Agreement, ...]
    saved_model: Path
    tflite: Path
    report: Path

    @property
    def attacks(self) -> list[Attack]:
        """The attacks, in the order they were made."""
        return list(dict.fromkeys(row.attack for row in self.accuracies))

    @property
    def defences(self) -> list[str]:
        """Names of the defences, in the order they were tried."""
        return list(dict.fromkeys(row.defence for row in self.accuracies))

    def accuracy(self, defence: str, attack: Attack) -> Accuracy:
        """The entry of ``accuracies`` for one defence and one attack."""
        return next(
            row for row in self.accuracies if (row.defence, row.attack) == (defence, attack)
        )


@dataclass(frozen=True, eq=False)
class Example:
    """One test image on its way, each picture ``(32, 32, 1)`` in grey levels.

    Args:
        label: The digit it shows.
        before: The image.
        attacked: After an attack.
        distilled_before: ``before`` after the layer.
        distilled: ``attacked`` after the layer.
        classes: What the classifier reads in ``before``, ``attacked`` and ``distilled``.
    """

    label: int
    before: npt.NDArray[np.float32]
    attacked: npt.NDArray[np.float32]
    distilled_before: npt.NDArray[np.float32]
    distilled: npt.NDArray[np.float32]
    classes: tuple[int, int, int]
