"""What a search works on: classifier, images, attacks; and how its result is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from fd_keras._checks import check_pixels
from fd_keras._console import progress_bars
from fd_keras.classifier import Classifier
from fd_keras.data.batches import described
from fd_keras.data.labelled import LabelledImages, array_hash, unit_images
from fd_keras.evaluation.accuracies import OURS
from fd_keras.evaluation.attacks import Attack
from fd_keras.evaluation.defences import Defence, distillation, no_defence
from fd_keras.evaluation.protocols import Protocol
from fd_keras.evaluation.selection import select
from fd_keras.evaluation.store import ArrayStore
from fd_keras.evaluation.workbench import AttackedImages as ImageSet
from fd_keras.evaluation.workbench import Workbench, correct
from fd_keras.refinement.chief import role
from fd_keras.refinement.result import Contender, Figures, RefineResult, Trial, pareto_front
from fd_keras.refinement.scoring import (
    BENIGN,
    FloatArray,
    ScoredImages,
    TableScorer,
    counts_of,
    metrics_of,
)
from fd_keras.refinement.space import Space
from fd_keras.tables import QuantizationTable


@dataclass(frozen=True, eq=False)
class Half:
    """Half of the images that the classifier alone gets right, and how they are attacked.

    Args:
        images: The benign images.
        attacks: Attacks on the classifier alone, each with the number of its images; they are
            generated, or read from the cache, when they are asked for.
        given: Attacked images that were brought along, by name, pixels from 0 to 1.
    """

    images: LabelledImages
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
    classifier: Classifier,
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
    classifier: Classifier,
    data: Any,
    attacked: Mapping[str, npt.ArrayLike],
    max_images: int,
) -> tuple[LabelledImages, dict[str, FloatArray]]:
    """The images that are classified correctly, and their attacked versions."""
    if not isinstance(data, (tuple, list)) or len(data) != 2 or np.ndim(data[0]) != 4:
        raise ValueError(
            "`data` must be the arrays (images, labels) where attacked images are given. "
            f"Received: data={described(data)}"
        )
    images, labels = np.asarray(data[0]), np.asarray(data[1])
    selection = select(classifier, (images, labels), max_images=max_images, batch_size=32)
    given = {}
    for name, pixels in attacked.items():
        array = np.asarray(pixels)
        if array.shape != images.shape or name == BENIGN:
            raise ValueError(
                "`protocol` must map names of attacks, not 'benign', to arrays of the shape of the "
                f"images, {images.shape}. Received: {name!r} of shape {array.shape}"
            )
        check_pixels(array, classifier.value_range)
        given[name] = unit_images(array[selection.indices], classifier.value_range)
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


@dataclass(frozen=True, eq=False)
class Laboratory:
    """Classifier and images of a search.

    Args:
        classifier: The classifier alone.
        selecting: Images that select tables.
        held_back: Images that only score what was selected.
        cache_dir: Where attacked images are kept.
        seed: Of random attacks, and of the search.
        console: Where progress is shown; ``None``: nowhere.
        adaptive: Attacks through tables.
        adaptive_images: Number of images of each half for them.
    """

    classifier: Classifier
    selecting: Half
    held_back: Half
    cache_dir: Path
    seed: int
    console: Console | None
    adaptive: Sequence[Attack] = ()
    adaptive_images: int = 0

    def identity(self) -> dict[str, Any]:
        """All that decides a score, as plain JSON types."""
        return {
            "model": self.classifier.fingerprint,
            "selecting": fingerprint(self.selecting),
            "held_back": fingerprint(self.held_back),
            "adaptive": [[attack.to_dict(), self.adaptive_images] for attack in self.adaptive],
            "seed": self.seed,
        }

    def attack(self) -> None:
        """Generate all gray-box attacks that are not in the cache."""
        with progress_bars(self.console, unit="images") as progress:
            bench = self._bench_with(progress)
            self.selecting.generate(bench)
            if role() != "worker":  # the chief alone looks at the other half
                self.held_back.generate(bench)

    def load(self, half: Half) -> ScoredImages:
        """The images of a half, in memory."""
        return half.load(self._bench)

    def attacker(self, half: Half) -> Any:
        """Function from a table to what it keeps right under the adaptive attacks, if any."""
        if not self.adaptive:
            return None

        def attacked(table: QuantizationTable) -> dict[str, Any]:
            through = distillation(table)
            right = {}
            for attack in self.adaptive:
                images = ImageSet(half.images, attack, through).first(self.adaptive_images)
                self._bench.generate(images)
                logits = self._bench.logits(images, through)
                right[f"{attack.name}, adaptive"] = correct(logits, images.images.labels)
            return right

        return attacked

    def result(
        self,
        trials: Sequence[Trial],
        scorer: TableScorer,
        rivals: Sequence[Defence],
        settings: Mapping[str, Any],
    ) -> RefineResult:
        """Score what the search selected on the images that were held back.

        Args:
            trials: All of the search.
            scorer: Of the selecting half.
            rivals: What to compare with.
            settings: For the result.
        """
        checker = TableScorer(self.classifier, self.load(self.held_back))
        best = best_trial(trials, scorer)
        attacker = self.attacker(self.held_back)
        assert best.table is not None
        adaptive = {} if attacker is None else attacker(best.table)
        front = pareto_front([trial for trial in trials if trial.complete])
        return RefineResult(
            best=_contender(best, checker, "refined", adaptive),
            front=[_contender(trial, checker, f"refined #{trial.number}") for trial in front],
            rivals=[self.rival(rival) for rival in (no_defence(), *rivals)],
            trials=trials,
            settings=settings,
        )

    def rival(self, defence: Defence) -> Contender:
        """A defence on the images that were held back."""
        half = self.held_back
        sets = {BENIGN: ImageSet(half.images)}
        sets |= {a.name: ImageSet(half.images, a).first(n) for a, n in half.attacks}
        counts = {}
        for name, images in sets.items():
            right = correct(self._bench.logits(images, defence), images.images.labels)
            counts[name] = int(right.sum()), len(right)
        for name, pixels in half.given.items():
            logits = self.classifier.logits(defence(255 * pixels) / 255)
            counts[name] = int(correct(logits, half.images.labels).sum()), len(pixels)
        return Contender(defence.name, defence.family, Figures(counts), table=defence.table)

    @cached_property
    def _bench(self) -> Workbench:
        with progress_bars(None) as quiet:
            return self._bench_with(quiet)

    def _bench_with(self, progress: Any) -> Workbench:
        store = ArrayStore(self.cache_dir)
        return Workbench(self.classifier, store, seed=self.seed, eot_draws=1, progress=progress)


def trials_of(oracle: Any, space: Space) -> list[Trial]:
    """The trials of an oracle that have ended, in their order.

    Args:
        oracle: Of Keras Tuner.
        space: What its values stand for.
    """
    found = []
    for number, trial in enumerate(sorted(oracle.trials.values(), key=lambda t: int(t.trial_id))):
        if trial.trial_id not in oracle.end_order:
            continue
        metrics = metrics_of(trial)
        hyperparameters = trial.hyperparameters.copy()
        found.append(
            Trial(
                number,
                trial.status,
                dict(hyperparameters.values),
                metrics,
                space(hyperparameters) if metrics else None,
                Figures(counts_of(metrics)),
            )
        )
    return found


def best_trial(trials: Sequence[Trial], scorer: TableScorer) -> Trial:
    """The trial with the best objective, on all images of the selecting half.

    Args:
        trials: Of a search.
        scorer: Scores the best one on all images, if no trial saw them.

    Raises:
        RuntimeError: Every trial failed.
    """
    scored = [trial for trial in trials if "score" in trial.metrics]
    if not scored:
        raise RuntimeError("Every trial of the search failed; see their `message` in its files")
    complete = [trial for trial in scored if trial.complete and trial.metrics["score"] >= 0]
    best = max(complete or scored, key=lambda trial: trial.metrics["score"])
    if best.complete:
        return best
    assert best.table is not None
    return replace(best, selection=score_of(scorer, best.table))


def score_of(scorer: TableScorer, table: QuantizationTable) -> Figures:
    """Accuracies of a table on all images of a scorer."""
    return Figures(scorer.score(table).counts())


def _contender(
    trial: Trial, checker: TableScorer, name: str, adaptive: Mapping[str, Any] | None = None
) -> Contender:
    assert trial.table is not None
    counts = score_of(checker, trial.table).counts
    more = {n: (int(np.sum(right)), len(right)) for n, right in (adaptive or {}).items()}
    return Contender(name, OURS, Figures({**counts, **more}), trial.selection, trial.table)
