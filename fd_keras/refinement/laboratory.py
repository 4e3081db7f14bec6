"""What a search works on: classifier, images, attacks; and how its result is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fd_keras.evaluation.attacks import Attack
from fd_keras.evaluation.classifiers import EvaluatedClassifier
from fd_keras.evaluation.defences import Defence, distillation, no_defence
from fd_keras.evaluation.rows import OURS
from fd_keras.evaluation.store import ArrayStore
from fd_keras.evaluation.workbench import ImageSet, Workbench, correct
from fd_keras.progress import progress_bars
from fd_keras.refinement.chief import role
from fd_keras.refinement.halves import Half, fingerprint
from fd_keras.refinement.objective import counts_of, metrics_of
from fd_keras.refinement.result import Contender, Figures, RefineResult, Trial, pareto_front
from fd_keras.refinement.scoring import BENIGN, ScoredImages, TableScorer
from fd_keras.refinement.space import Space
from fd_keras.tables import QuantizationTable


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

    classifier: EvaluatedClassifier
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
