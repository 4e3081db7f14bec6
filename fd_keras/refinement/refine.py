"""Searching the quantisation table against the network itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy.typing as npt
from rich.console import Console

from fd_keras._checks import checked, checked_whole
from fd_keras._extras import import_extra
from fd_keras._files import claim, default_cache_dir
from fd_keras.classifier import Classifier
from fd_keras.dct import ColorSpace
from fd_keras.evaluation.attacks import Attack
from fd_keras.evaluation.defences import defence
from fd_keras.evaluation.protocols import Protocol, protocol_named
from fd_keras.refinement.chief import role, serve_until_over
from fd_keras.refinement.experiment import Half, Laboratory, halved, trials_of
from fd_keras.refinement.progress import search_view
from fd_keras.refinement.result import RefineResult, Trial
from fd_keras.refinement.scoring import TableScorer
from fd_keras.refinement.space import Space, Statistics, band_space, starting_points
from fd_keras.statistics import CoefficientStatistics
from fd_keras.tables import QuantizationTable

DEFAULT_RIVALS = ("liu2019", "zigzag15", "jpeg:90", "jpeg:75", "jpeg:50")

_TRIALS = "trials"
_LOGS = "logs"
_IDENTITY = "search.json"


def refine(
    model: keras.Model,
    data: Any,
    protocol: str | Protocol | Mapping[str, npt.ArrayLike] = "linf-sweep",
    *,
    max_benign_loss: float = 0.01,
    max_trials: int = 60,
    oracle: str = "bayesian",
    statistics: Statistics | None = None,
    space: Space | None = None,
    first_values: Sequence[Mapping[str, Any]] | None = None,
    adaptive: Sequence[Attack] = (),
    adaptive_images: int = 32,
    stop_early: bool = True,
    rivals: Sequence[Any] = DEFAULT_RIVALS,
    directory: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    worker_timeout: float = 60.0,
    value_range: Sequence[float] = (0, 255),
    from_logits: bool = True,
    max_images: int = 1000,
    limits: Mapping[str, int] | None = None,
    seed: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> RefineResult | None:
    """Search the table that keeps most accuracy under attack within a benign loss.

    The paper's second step. Of the images that the classifier alone gets right, every second
    one selects: a trial installs a table and classifies benign and attacked images behind it.
    The others are held back, and only score what was selected: the best table, the Pareto
    front and the rivals. Where both halves differ, the search has adapted to its images.

    Attacks are those of ``fd_keras.evaluate``, with the same cache. They are gray-box, made on
    the classifier alone, unless ``adaptive`` adds some that know the table. An attacker who
    knows the layer does better than any gray-box accuracy says.

    A search that was killed goes on where it was when it is started with the same arguments
    and ``directory``; a larger ``max_trials`` extends it.

    Keras Tuner distributes a search over processes and machines: start the same program once
    with ``KERASTUNER_TUNER_ID=chief`` and in any number with ``KERASTUNER_TUNER_ID=tuner0``,
    ``tuner1``, ..., all with ``KERASTUNER_ORACLE_IP`` and ``KERASTUNER_ORACLE_PORT`` of the
    chief. A trial of a worker that is lost goes to another one. Workers return ``None``.

    Args:
        model: Classifier without the layer, as for ``fd_keras.evaluate``.
        data: Labelled images, as for ``fd_keras.evaluate``.
        protocol: Whose gray-box attacks count; or attacked images by the name of their attack,
            one for each image of ``data``, in the same order and value range.
        max_benign_loss: Share of the benign images that a table may cost, from 0 to 1.
        max_trials: Number of tables to try, those of earlier runs included.
        oracle: ``"bayesian"``, ``"random"``, ``"hyperband"`` (many trials on few images) or
            ``"grid"`` (all combinations in order; for small spaces of your own).
        statistics: Of benign images, one or several by colour space. Default: measured on
            the selecting half, in RGB and YCbCr (grey images: as Y).
        space: Function from ``keras_tuner.HyperParameters`` to a table, see
            ``fd_keras.refinement.space``. Default: ``band_space(statistics)``.
        first_values: Values of hyperparameters to try first. Default: for the default space,
            points near the presets and step 1's designs; else none.
        adaptive: Attacks through each feasible table (BPDA), counted in the objective like the
            others. They are slow.
        adaptive_images: Number of images of each half for them.
        stop_early: Stop trials that lose too many benign images at once, and those in the
            worse half after a quarter and a half of the attacked images.
        rivals: What the result is compared with, as ``fd_keras.evaluate`` takes defences.
        directory: Where the search is kept, with TensorBoard's ``logs``. Default: a directory
            below ``cache_dir`` that belongs to these arguments.
        overwrite: Whether to throw away a search in ``directory``.
        worker_timeout: Seconds without a sign after which a worker is taken for lost.
        value_range: As for ``fd_keras.evaluate``.
        from_logits: As for ``fd_keras.evaluate``.
        max_images: Number of images in both halves together.
        limits: Fewer images of each half for families of attacks, such as ``{"CW-L2": 50}``.
        seed: Of the search and of random attacks; the same gives the same result.
        cache_dir: As for ``fd_keras.evaluate``.
        console: Where progress is shown. Default: nowhere.

    Returns:
        The result; ``None`` in a worker of a distributed search.

    Raises:
        ImportError: An extra is missing.
        ValueError: An argument does not fit, or ``directory`` holds another search.
        RuntimeError: Three trials failed in a row, or all workers were lost.

    Example:
        >>> import tempfile, numpy as np
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> images = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)[:10] / 2
        >>> result = refine(
        ...     model, (images, np.arange(10)), {"darker": images / 2}, value_range=(0, 1),
        ...     max_trials=2, oracle="random", rivals=[], directory=tempfile.mkdtemp()
        ... )
        >>> len(result.trials)
        2

    References:
        Liu et al., "Feature Distillation", CVPR 2019, section 3.3.
    """
    classifier = Classifier(model, value_range=value_range, from_logits=from_logits)
    attacks = protocol if isinstance(protocol, Mapping) else protocol_named(protocol)
    if adaptive or isinstance(attacks, Protocol):
        import_extra("art.attacks.evasion", "evaluate")
    halves = halved(classifier, data, attacks, max_images=max_images, limits=limits or {})
    lab = Laboratory(
        classifier,
        *halves,
        adaptive=adaptive,
        adaptive_images=checked_whole("adaptive_images", adaptive_images, 1),
        cache_dir=Path(cache_dir or default_cache_dir()),
        seed=checked_whole("seed", seed, 0),
        console=console,
    )
    against = [defence(rival, seed=seed) for rival in rivals]
    lab.attack()
    measured = statistics or measured_statistics(lab.selecting)
    if first_values is None:
        first_values = [] if space else starting_points(measured)
    search = _Search(
        space or band_space(measured),
        [dict(values) for values in first_values],
        oracle=oracle,
        max_benign_loss=float(checked("max_benign_loss", max_benign_loss, 0, 1)),
        max_trials=checked_whole("max_trials", max_trials, 1),
        stop_early=stop_early,
        worker_timeout=worker_timeout,
    )
    identity = {**search.identity(), **lab.identity()}
    home = _claimed(directory, lab.cache_dir, identity, overwrite)
    scorer = TableScorer(classifier, lab.load(lab.selecting))
    trials = search.run(scorer, lab, home)
    if trials is None:
        return None
    images = {"selecting": len(lab.selecting.images), "held_back": len(lab.held_back.images)}
    settings = {**identity, "max_trials": max_trials, "images": images}
    return lab.result(trials, scorer, against, settings)


def measured_statistics(half: Half) -> dict[ColorSpace, CoefficientStatistics]:
    """Coefficient statistics of the benign images of a half, in each colour space.

    Args:
        half: Its images; grey ones are measured as Y only.
    """
    images = 255 * half.images.unit_images()
    by_channels: dict[int, tuple[ColorSpace, ...]] = {1: ("ycbcr",), 3: ("ycbcr", "rgb")}
    provenance = {"data": "selecting half of a search"}
    return {
        name: CoefficientStatistics.from_data(images, color_space=name, provenance=provenance)
        for name in by_channels.get(images.shape[-1], ("rgb",))
    }


@dataclass(frozen=True)
class _Search:
    """What is searched and how."""

    space: Space
    first_values: list[dict[str, Any]]
    oracle: str
    max_benign_loss: float
    max_trials: int
    stop_early: bool
    worker_timeout: float

    def identity(self) -> dict[str, Any]:
        """What a search must have in common with one that it goes on with."""
        hyperparameters, default = self._declared()
        return {
            "oracle": self.oracle,
            "max_benign_loss": self.max_benign_loss,
            "stop_early": self.stop_early,
            "space": hyperparameters.get_config()["space"],
            "default_table": default.to_dict(),
            "first_values": self.first_values,
        }

    def run(self, scorer: TableScorer, lab: Laboratory, home: Path) -> list[Trial] | None:
        """All trials; ``None`` in a worker."""
        from fd_keras.refinement.oracles import make_oracle  # Keras Tuner is slow to import
        from fd_keras.refinement.tuner import RefinementTuner

        oracle = make_oracle(
            self.oracle,
            self._declared()[0],
            max_trials=self.max_trials,
            seed=lab.seed,
            starting_points=self.first_values,
            worker_timeout=self.worker_timeout,
        )
        tuner = RefinementTuner(
            oracle,
            self.space,
            scorer,
            max_benign_loss=self.max_benign_loss,
            stop_early=self.stop_early,
            adaptive=lab.attacker(lab.selecting),
            log_dir=home / _LOGS,
            worker_timeout=self.worker_timeout,
            directory=home,
            project_name=_TRIALS,
        )
        if role() == "worker":
            tuner.search(verbose=0)
            return None
        with search_view(lab.console, self.max_trials) as show:
            oracle.on_trial_end = lambda: show(trials_of(oracle, self.space))
            if role() == "chief":
                serve_until_over(lambda: tuner.search(verbose=0), oracle, self.worker_timeout)
            else:
                tuner.search(verbose=0)
        return trials_of(oracle, self.space)

    def _declared(self) -> tuple[Any, QuantizationTable]:
        """The space's hyperparameters and the table of their defaults."""
        import keras_tuner

        hyperparameters = keras_tuner.HyperParameters()
        table = self.space(hyperparameters)
        if not isinstance(table, QuantizationTable) or not hyperparameters.space:
            raise ValueError(
                "`space` must ask for hyperparameters and return a QuantizationTable. "
                f"Received: {table!r} and {len(hyperparameters.space)} hyperparameters"
            )
        return hyperparameters, table


def _claimed(
    directory: str | os.PathLike[str] | None,
    cache_dir: Path,
    identity: Mapping[str, Any],
    overwrite: bool,
) -> Path:
    """The directory of this very search, emptied if it is to be overwritten."""
    text = json.dumps(identity, sort_keys=True)
    if directory is None:
        home = cache_dir / "searches" / hashlib.sha256(text.encode()).hexdigest()[:16]
    else:
        home = Path(directory)
    if role() == "worker":
        return home
    if overwrite:
        (home / _IDENTITY).unlink(missing_ok=True)
        for part in (_TRIALS, _LOGS):
            shutil.rmtree(home / part, ignore_errors=True)
    claim(home / _IDENTITY, identity, "a search")
    return home
