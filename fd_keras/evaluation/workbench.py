"""Generate attacked images and classify images behind defences, keeping results on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from fd_keras._console import Advance, bar
from fd_keras._extras import import_extra
from fd_keras.classifier import Classifier, FloatArray
from fd_keras.data.labelled import LabelledImages, array_hash
from fd_keras.evaluation.accuracies import BENIGN, TWO_PASS, attack_effect
from fd_keras.evaluation.attacks import Attack
from fd_keras.evaluation.classifiers import LogOdds, Substitute, attackable
from fd_keras.evaluation.defences import Defence, no_defence
from fd_keras.evaluation.runners import ITERATED, targets
from fd_keras.evaluation.store import ArrayStore
from fd_keras.kernels import GRADIENTS

# Images that are attacked at once and kept in one file: what a killed process loses, and what
# memory must hold. Small images are attacked more at a time, for the same number of pixels.
_CHUNKS = 16, 64
_PIXELS = 16 * 224 * 224

# Typing alias: has images attacked elsewhere, and yields how many at a time are in the store.
Attackers = Callable[["Workbench", Sequence["AttackedImages"]], Iterator[int]]

# About how many passes over an image attacks take that do not tell their iterations.
_PASSES = {"AutoAttack": 3000}

# Attacks that follow the gradient of the loss.
_BY_LOSS = ("FGSM", "BIM", "PGD", "Half-step")


@dataclass(frozen=True, eq=False)
class AttackedImages:
    """Labelled images and the attack that is made on them.

    Args:
        images: The benign images; in two passes, as they were stored.
        attack: The attack; ``None``: the images stay benign.
        through: The defence that the attacker knows and attacks through; ``None`` for gray-box
            attacks, which are made on the classifier alone.
        passes: 2 if a defence encoded ``images``.

    Example:
        >>> from fd_keras.evaluation import pgd
        >>> benign = LabelledImages(np.zeros((3, 1, 1, 1)), np.array([0, 1, 0]), (0, 1))
        >>> AttackedImages(benign).threat_model, AttackedImages(benign, pgd(4)).threat_model
        ('benign', 'gray-box')
    """

    images: LabelledImages
    attack: Attack | None = None
    through: Defence | None = None
    passes: int = 1

    @property
    def threat_model(self) -> str:
        """What ``attacker`` says; in two passes, such as ``"two-pass gray-box"``."""
        two = self.passes == 2 and self.attack is not None
        return f"{TWO_PASS}{self.attacker}" if two else self.attacker

    @property
    def attacker(self) -> str:
        """``"benign"``, ``"gray-box"``, ``"adaptive"`` or ``"black-box"``."""
        if self.attack is None:
            return BENIGN
        if self.through is None:
            return "gray-box"
        return "black-box" if self.attack.family == "Square" else "adaptive"

    @property
    def obstacle(self) -> Defence | None:
        """The defence between attacker and classifier; ``None`` where it changes no image."""
        return None if self.through is None or self.through.family == "none" else self.through

    @property
    def title(self) -> str:
        """Attack and defence, as progress bars name the step."""
        if self.attack is None:
            return "benign"
        behind = f" through {self.through.name}" if self.through else ""
        return f"{self.attack.name}{behind}"

    def first(self, count: int | None) -> AttackedImages:
        """The first ``count`` images; all of them if it is ``None``."""
        return replace(self, images=self.images[:count])


class Workbench:
    """Generates attacked images and classifies images behind defences.

    Images are processed in small chunks. Each result is kept in ``store`` under a hash of
    classifier, images, attack, defence and seed, so that nothing is computed twice, also after
    an interruption or in another evaluation.

    Args:
        classifier: The classifier.
        store: Where results are kept.
        seed: Seed of random attacks.
        eot_draws: Number of draws of a random defence whose logits an adaptive attacker
            averages (EOT).
        progress: Where progress bars are shown.
        attackers: Has images attacked elsewhere, such as ``cluster.attack_on``; default: here.
        identity: What tells the classifier from others in ``store``; default: its fingerprint.

    References:
        EOT: Athalye et al., "Synthesizing Robust Adversarial Examples", ICML 2018.
    """

    def __init__(
        self,
        classifier: Classifier,
        store: ArrayStore,
        *,
        seed: int,
        eot_draws: int,
        progress: Progress,
        attackers: Attackers | None = None,
        identity: str | None = None,
    ) -> None:
        self.classifier = classifier
        self.fingerprint = classifier.fingerprint  # of all its weights: hashed once
        self.identity = self.fingerprint if identity is None else identity
        self.seed = seed
        self.eot_draws = eot_draws
        self.store = store
        self._attackers = attackers
        self._progress = progress
        self._generated: set[tuple[str, str, bytes]] = set()
        self._art: dict[tuple[tuple[int, ...], str, int], dict[Substitute, Any]] = {}

    def generate(self, images: AttackedImages) -> None:
        """Attack those images whose attacked versions are not kept yet."""
        if images.attack is None:
            return
        kind = images.attack.name, images.title, images.images.indices.tobytes()
        if images.passes == 1 and kind in self._generated:
            return
        self._generated.add(kind)
        cost = self.cost(images)
        with self.bar(images.title, len(images.images), weight=cost) as advance:
            waiting = [chunk for chunk in _chunks(images) if not self.keeps(chunk)]
            advance(len(images.images) - sum(len(chunk.images) for chunk in waiting))
            if self._attackers is not None:
                for count in self._attackers(self, waiting):
                    advance(count)
                return
            for chunk in waiting:
                self._pixels(chunk)
                advance(len(chunk.images))

    def keeps(self, chunk: AttackedImages) -> bool:
        """Whether the attacked images of a chunk are in the store.

        Args:
            chunk: As many images as are attacked at once.
        """
        return self.store.keeps(self._origin(chunk))

    def cost(self, images: AttackedImages) -> int:
        """About how much longer the attack on an image takes than its classification.

        Args:
            images: Attacked, or benign.
        """
        if images.attack is None:
            return 1
        passes = _PASSES.get(images.attack.family, images.attack.iterations)
        return passes * self._draws(images) * len(_gradients(images))

    def bar(self, text: str, total: int, *, weight: float = 1) -> AbstractContextManager[Advance]:
        """A progress bar over images, or a part of an overall one."""
        return bar(self._progress, text, total, weight=weight)

    def logits(
        self, images: AttackedImages, defence: Defence, *, on_batch: Advance | None = None
    ) -> FloatArray:
        """Logits of images behind a defence.

        Args:
            images: Attacked, or benign.
            defence: Transforms them before they are classified.
            on_batch: Called with the number of images just classified.

        Returns:
            Array ``(n, classes)``.
        """
        parts = []
        for chunk in _chunks(images):
            parts.append(self._chunk_logits(chunk, defence))
            if on_batch:
                on_batch(len(chunk.images))
        return np.concatenate(parts)

    def correct(
        self, images: AttackedImages, defence: Defence, *, on_batch: Advance | None = None
    ) -> npt.NDArray[np.bool_]:
        """Which images are classified correctly behind a defence.

        Args:
            images: As for ``logits``.
            defence: As for ``logits``.
            on_batch: As for ``logits``.

        Returns:
            Boolean array ``(n,)``.
        """
        return correct(self.logits(images, defence, on_batch=on_batch), images.images.labels)

    def pixels(self, images: AttackedImages) -> FloatArray:
        """Attacked images, pixels from 0 to 1, all in memory."""
        return np.concatenate([self._pixels(chunk) for chunk in _chunks(images)])

    def pixels_of(self, images: AttackedImages, index: int) -> FloatArray:
        """One attacked image ``(height, width, channels)``, as it was attacked with others.

        Args:
            images: Attacked.
            index: Its position.
        """
        size = chunk_size(images.images)
        start = index // size * size
        chunk = replace(images, images=images.images[start : start + size])
        return np.asarray(self._pixels(chunk)[index - start])

    def distances(self, images: AttackedImages) -> npt.NDArray[np.floating]:
        """Largest change of a pixel of each image, in grey levels, ``(n,)``."""
        return 255 * self._norms(images)[:, 1]

    def effect(self, images: AttackedImages, defence: Defence) -> dict[str, float | None]:
        """What an attack did at the model that was attacked, as ``attack_effect`` returns it.

        Args:
            images: Attacked.
            defence: What it is evaluated behind; of a gray-box attack it makes no difference.
        """
        attacked = no_defence() if images.through is None else defence
        classes = self.logits(images, attacked).argmax(axis=-1)
        labels = images.images.labels
        reached = classes != labels
        if images.attack is not None and images.attack.target is not None:
            # The target is chosen by what the attacker sees of the benign image.
            benign = self.logits(replace(images, attack=None), attacked)
            reached = classes == targets(images.attack.target, benign, labels)
        return attack_effect(self._norms(images), reached)

    def _norms(self, images: AttackedImages) -> npt.NDArray[np.floating]:
        """L2 and L-inf norm of the change of each image, ``(n, 2)``, pixels from 0 to 1."""
        found = []
        for chunk in _chunks(images):
            changes = np.abs(self._pixels(chunk) - chunk.images.unit_images())
            l2 = np.sqrt((changes.astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
            found.append(np.stack([l2, changes.max(axis=(1, 2, 3))], axis=1))
        return np.concatenate(found)

    def _chunk_logits(self, chunk: AttackedImages, defence: Defence) -> FloatArray:
        parts = {
            "logits": self.identity,
            "defence": _identity(defence),
            "images": self._origin(chunk),
        }

        def compute() -> FloatArray:
            defended = defence(255 * self._pixels(chunk)) / 255
            return self.classifier.logits(defended, batch_size=len(defended))

        return self.store.array(parts, compute)

    def _pixels(self, chunk: AttackedImages) -> FloatArray:
        images, attack = chunk.images, chunk.attack
        if attack is None:
            return images.unit_images()
        origin = self._origin(chunk)

        def compute() -> FloatArray:
            # A seed of its own, so that a chunk does not depend on those before it.
            seed = int(array_hash(images.labels)[:8], 16) ^ self.seed
            return self._attacked(chunk, attack, seed)

        return self.store.array(origin, compute)

    def _attacked(self, chunk: AttackedImages, attack: Attack, seed: int) -> FloatArray:
        """Attack with one gradient after the other, each time the images that withstood so far."""
        labels, result = chunk.images.labels, chunk.images.unit_images()
        standing = np.ones(len(labels), bool)
        for gradient in _gradients(chunk):
            attacker = self._attacker(result.shape[1:], chunk, gradient)
            benign = chunk.images.unit_images()[standing]
            result[standing] = attack.generate(
                attacker, benign, labels[standing], seed=seed, until_wrong=_until_wrong(chunk)
            )
            standing = attacker.predict(result).argmax(axis=-1) == labels
            if not standing.any():
                break
        return result

    def _origin(self, chunk: AttackedImages) -> dict[str, Any]:
        """All that decides the pixels of a chunk."""
        images = {
            "pixels": array_hash(chunk.images.images),
            "value range": list(chunk.images.value_range),
        }
        if chunk.attack is None:
            return images
        return {
            "benign": images,
            "labels": array_hash(chunk.images.labels),
            "classifier": self.identity,
            "through": None if chunk.obstacle is None else _identity(chunk.obstacle),
            "draws": self._draws(chunk),
            **({"gradients": list(_gradients(chunk))} if len(_gradients(chunk)) > 1 else {}),
            "attack": chunk.attack.to_dict(),
            **({"loss": LogOdds.__name__} if chunk.attack.family in _BY_LOSS else {}),
            "seed": self.seed,
            **(_made_by(chunk.attack) if not _until_wrong(chunk) else {"until": "wrong"}),
        }

    def _attacker(self, shape: tuple[int, ...], chunk: AttackedImages, gradient: Substitute) -> Any:
        through, draws = chunk.obstacle, self._draws(chunk)
        defended = (shape, *(("", 1) if through is None else (str(_identity(through)), draws)))
        if defended not in self._art:
            # Only those of one defence: each holds compiled graphs.
            self._art = {defended: {}}
        attackers = self._art[defended]
        if gradient not in attackers:
            attackers[gradient] = attackable(
                self.classifier, shape, through, draws=draws, gradient=gradient
            )
        return attackers[gradient]

    def _draws(self, chunk: AttackedImages) -> int:
        """Only an attacker with gradients averages; a query returns a single draw."""
        random = chunk.obstacle is not None and chunk.obstacle.random
        return self.eot_draws if random and chunk.attacker == "adaptive" else 1


def chunk_size(images: LabelledImages) -> int:
    """How many images are attacked at once: 64 up to 112x112 pixels, 16 from 224x224 on.

    Args:
        images: All of one size.

    Example:
        >>> chunk_size(LabelledImages(np.zeros((1, 224, 224, 3)), np.array([0]), (0, 1)))
        16
    """
    least, most = _CHUNKS
    height, width = images.images.shape[1:3]
    return min(most, max(least, _PIXELS // (height * width)))


def _chunks(images: AttackedImages) -> Iterator[AttackedImages]:
    size = chunk_size(images.images)
    for start in range(0, len(images.images), size):
        yield replace(images, images=images.images[start : start + size])


def _gradients(images: AttackedImages) -> tuple[Substitute, ...]:
    """The gradients that an attacker puts in place of the defence's own, one after the other."""
    if images.attack is not None and images.attack.family == "Half-step":
        return ("half-step",)
    smooth = images.obstacle is not None and images.obstacle.smooth is not None
    return GRADIENTS[::-1] if smooth and images.attacker == "adaptive" else GRADIENTS[:1]


def _until_wrong(images: AttackedImages) -> bool:
    """Whether the attack may leave an image that fools the classifier which it attacks.

    That must be the one that is evaluated: images of gray-box attacks are distilled first, and a
    random defence makes another draw.
    """
    if images.attack is None or images.attack.family not in ITERATED:
        return False
    return images.attacker == "adaptive" and not (images.obstacle and images.obstacle.random)


def _made_by(attack: Attack) -> dict[str, str]:
    """Name and version of the package that makes an attack."""
    name = attack.library
    return {} if name is None else {name: import_extra(name, "evaluate").__version__}


def _identity(defence: Defence) -> dict[str, Any]:
    return {"family": defence.family, "settings": defence.settings, "seed": defence.seed}


def correct(logits: FloatArray, labels: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Which images are classified correctly.

    Example:
        >>> correct(np.array([[0.0, 1.0]], np.float32), np.array([1]))
        array([ True])
    """
    return np.asarray(logits.argmax(axis=-1) == labels)
