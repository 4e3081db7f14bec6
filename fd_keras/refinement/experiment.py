"""The images of a search in a validation and a test split, and the attacks on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from fd_keras._checks import check_pixels, checked_whole, shown
from fd_keras._console import overall_progress, progress_bars
from fd_keras._files import default_cache_dir
from fd_keras.classifier import Classifier
from fd_keras.data.batches import described
from fd_keras.data.labelled import LabelledImages, array_hash, unit_images
from fd_keras.evaluation.accuracies import BENIGN
from fd_keras.evaluation.attacks import Attack
from fd_keras.evaluation.classifiers import check_gradient
from fd_keras.evaluation.defences import Defence, distillation
from fd_keras.evaluation.protocols import Protocol, protocol_named
from fd_keras.evaluation.runners import import_libraries
from fd_keras.evaluation.selection import Selected, say_clean_accuracy, select
from fd_keras.evaluation.store import ArrayStore
from fd_keras.evaluation.workbench import AttackedImages, Workbench, correct
from fd_keras.refinement.result import ScoredDefence
from fd_keras.refinement.scoring import (
    Accuracies,
    BoolArray,
    FloatArray,
    TableScorer,
    adaptive_name,
)
from fd_keras.tables import QuantizationTable

# Typing alias: what ``refine`` and ``learn_table`` take as ``protocol``.
Attacks = str | Protocol | Mapping[str, npt.ArrayLike]

_BATCH_SIZE = 32


@dataclass(frozen=True, eq=False)
class Split:
    """Images that the classifier alone gets right, and the attacks on them.

    Args:
        images: The benign images.
        attacks: Gray-box attacks, each with the number of images that it attacks.
        given: Attacked images of the caller, by name, pixels from 0 to 1.
    """

    images: LabelledImages
    attacks: Sequence[tuple[Attack, int]]
    given: Mapping[str, FloatArray]

    def image_sets(self) -> dict[str, AttackedImages]:
        """The images to attack, by the name of the attack."""
        return {
            attack.name: AttackedImages(self.images, attack).first(count)
            for attack, count in self.attacks
        }

    def identity(self) -> dict[str, Any]:
        """All that decides the images of the split, as plain JSON types."""
        return {
            "images": self.images.fingerprint,
            "attacks": [[attack.to_dict(), count] for attack, count in self.attacks],
            "given": {name: array_hash(pixels) for name, pixels in self.given.items()},
        }


@dataclass(frozen=True, eq=False)
class Experiment:
    """The classifier and both splits, with the cache of their attacked images.

    Args:
        classifier: The classifier without the layer.
        validation: Images to choose tables on.
        test: Images to score chosen tables on.
        cache_dir: Where attacked images are kept.
        seed: Of random attacks.
        console: Where progress is shown; ``None``: nowhere.
        adaptive: Attacks through tables.
        adaptive_images: Number of images of each split for them.
        clean_accuracy: How many of the images that were ``seen`` the classifier alone gets
            ``right``.
        sample: How the images were taken.
    """

    classifier: Classifier
    validation: Split
    test: Split
    cache_dir: Path
    seed: int
    console: Console | None
    adaptive: Sequence[Attack] = ()
    adaptive_images: int = 0
    clean_accuracy: Mapping[str, int] = field(default_factory=dict)
    sample: str = ""

    @classmethod
    def of(
        cls,
        classifier: Any,
        data: Any,
        protocol: Attacks | None,
        *,
        max_images: int,
        seed: int,
        cache_dir: str | os.PathLike[str] | None,
        console: Console | None,
        adaptive: Sequence[Attack] = (),
        adaptive_images: int = 0,
    ) -> Experiment:
        """Check the arguments of ``refine`` and ``learn_table``, and choose the images."""
        classifier = Classifier.of(classifier)
        checked_whole("max_images", max_images, 2)
        attacks = protocol_named(protocol) if isinstance(protocol, (str, Protocol)) else protocol
        made = (*adaptive, *(attacks.gray_box if isinstance(attacks, Protocol) else ()))
        if made:
            import_libraries({attack.family for attack in made})
        seed = checked_whole("seed", seed, 0)
        chosen, given = _chosen(classifier, data, attacks, max_images, seed)
        say_clean_accuracy(classifier, chosen, console)
        validation, test = split(classifier, chosen, given, attacks)
        if any(attack.uses_gradient for attack in made):
            check_gradient(classifier, validation.images)
        classes = _classes(classifier, validation.images)
        return cls(
            classifier,
            validation,
            test,
            cache_dir=Path(cache_dir or default_cache_dir()),
            seed=seed,
            console=console,
            adaptive=[attack.for_classes(classes) for attack in adaptive],
            adaptive_images=adaptive_images,
            clean_accuracy={"right": chosen.right, "seen": chosen.seen},
            sample=chosen.order,
        )

    def identity(self) -> dict[str, Any]:
        """All that decides a score, as plain JSON types."""
        return {
            "model": self._model,
            "validation": self.validation.identity(),
            "test": self.test.identity(),
            "adaptive": [[attack.to_dict(), self.adaptive_images] for attack in self.adaptive],
            "seed": self.seed,
        }

    def attack(self) -> None:
        """Generate all gray-box attacks that are not in the cache."""
        # The workers of a distributed search need no test split.
        splits = (self.validation,) if role() == "worker" else (self.validation, self.test)
        sets = [images for part in splits for images in part.image_sets().values()]
        with overall_progress(self.console) as progress:
            bench = self._bench_with(progress)
            progress.expect(sum(len(images.images) * bench.cost(images) for images in sets))
            for images in sets:
                bench.generate(images)

    def scorer(self, part: Split) -> TableScorer:
        """A scorer with all images of a split in memory."""
        images = {BENIGN: part.images.unit_images(), **part.given}
        images |= {name: self._bench.pixels(s) for name, s in part.image_sets().items()}
        return TableScorer(self.classifier, part.images.labels, images)

    def under_adaptive_attack(self, table: QuantizationTable, part: Split) -> dict[str, BoolArray]:
        """Which images of a split are correct under each adaptive attack through a table."""
        through = distillation(table)
        found = {}
        for attack in self.adaptive:
            images = AttackedImages(part.images, attack, through).first(self.adaptive_images)
            self._bench.generate(images)
            found[adaptive_name(attack.name)] = self._bench.correct(images, through)
        return found

    def baseline(self, defence: Defence) -> ScoredDefence:
        """Score a defence on the test split."""
        benign, given = self.test.images, self.test.given
        found = {
            name: self._bench.correct(images, defence)
            for name, images in {BENIGN: AttackedImages(benign), **self.test.image_sets()}.items()
        }
        for name, pixels in given.items():
            logits = self.classifier.logits(defence(255 * pixels) / 255)
            found[name] = correct(logits, benign.labels)
        test = Accuracies.from_correct(found)
        return ScoredDefence(defence.name, defence.family, test, table=defence.table)

    @cached_property
    def _bench(self) -> Workbench:
        with progress_bars(None) as quiet:
            return self._bench_with(quiet)

    def _bench_with(self, progress: Any) -> Workbench:
        store = ArrayStore(self.cache_dir)
        settings: dict[str, Any] = {"seed": self.seed, "eot_draws": 1, "progress": progress}
        return Workbench(self.classifier, store, **settings, identity=self._model)

    @cached_property
    def _model(self) -> str:
        return self.classifier.identity(self.validation.images[:4].unit_images())


def _chosen(
    classifier: Classifier,
    data: Any,
    attacks: Protocol | Mapping[str, npt.ArrayLike] | None,
    max_images: int,
    seed: int,
) -> tuple[Selected, dict[str, FloatArray]]:
    """The images that are classified correctly, and attacked versions that were given."""
    if isinstance(attacks, Mapping):
        return _with_given_attacks(classifier, data, attacks, max_images, seed)
    if attacks is not None and not attacks.gray_box:
        raise ValueError(
            f"`protocol` must have gray-box attacks. Received: protocol={shown(attacks)}"
        )
    chosen = select(classifier, data, max_images=max_images, batch_size=_BATCH_SIZE, seed=seed)
    return chosen, {}


def split(
    classifier: Classifier,
    chosen: LabelledImages,
    given: Mapping[str, FloatArray],
    attacks: Protocol | Mapping[str, npt.ArrayLike] | None,
) -> tuple[Split, Split]:
    """Split correctly classified images: even ones for validation, odd ones for the test.

    Args:
        classifier: The classifier without the layer.
        chosen: The images.
        given: Attacked versions of them, by the name of the attack, pixels from 0 to 1.
        attacks: The protocol, or what ``given`` was made of. ``None``: no gray-box attack.

    Raises:
        ValueError: The arguments do not fit each other, or there are fewer than two images.
    """
    protocol = attacks
    if not isinstance(protocol, Protocol):
        protocol = Protocol("given", "Images attacked beforehand.")
    limits = protocol.limits
    unknown = set(limits) - {attack.family for attack in protocol.gray_box}
    if unknown or any(count < 1 for count in limits.values()):
        raise ValueError(
            "`limits` of the protocol must map families of its gray-box attacks to whole numbers. "
            f"Received: limits={shown(dict(limits))}"
        )
    if len(chosen) < 2:
        raise ValueError(
            "`data` must hold two images that `classifier` classifies correctly, one for the "
            f"validation and one for the test split. Received: {len(chosen)}"
        )

    fitting = protocol.for_classes(_classes(classifier, chosen)).gray_box

    def every_second(first: int) -> Split:
        images = chosen[first::2]
        most = len(images)
        counted = [(a, min(limits.get(a.family, most), most)) for a in fitting]
        return Split(images, counted, {name: x[first::2] for name, x in given.items()})

    return every_second(0), every_second(1)


def _classes(classifier: Classifier, images: LabelledImages) -> int:
    return int(classifier.logits(images[:1].unit_images()).shape[1])


def _with_given_attacks(
    classifier: Classifier,
    data: Any,
    attacked: Mapping[str, npt.ArrayLike],
    max_images: int,
    seed: int,
) -> tuple[Selected, dict[str, FloatArray]]:
    # Such images have an order and a value range of their own, which `select` checks.
    ordered = data if isinstance(data, LabelledImages) else None
    if ordered is not None:
        data = ordered.images, ordered.labels
    if not isinstance(data, (tuple, list)) or len(data) != 2 or np.ndim(data[0]) != 4:
        raise ValueError(
            "`data` must be the arrays (images, labels) where attacked images are given. "
            f"Received: data={described(data)}"
        )
    images, labels = np.asarray(data[0]), np.asarray(data[1])
    taken = (images, labels) if ordered is None else ordered
    chosen = select(classifier, taken, max_images=max_images, batch_size=_BATCH_SIZE, seed=seed)
    given = {}
    for name, pixels in attacked.items():
        array = np.asarray(pixels)
        if array.shape != images.shape or name == BENIGN:
            raise ValueError(
                "`protocol` must map names of attacks, not 'benign', to arrays of the shape of the "
                f"images, {images.shape}. Received: {name!r} of shape {array.shape}"
            )
        check_pixels(array, classifier.value_range)
        given[name] = unit_images(array[chosen.indices], classifier.value_range)
    if not given:
        raise ValueError("`protocol` must hold attacked images. Received: protocol={}")
    return chosen, given


def role() -> str:
    """The role of this process in a search: ``"alone"``, ``"chief"`` or ``"worker"``.

    It is read from Keras Tuner's environment variables, see ``fd_keras.refine``.

    Example:
        >>> role()
        'alone'
    """
    if "KERASTUNER_ORACLE_IP" not in os.environ:
        return "alone"
    return "chief" if "chief" in os.environ.get("KERASTUNER_TUNER_ID", "") else "worker"
