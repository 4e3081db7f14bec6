"""Search a quantisation table against the classifier itself."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy.typing as npt
from rich.console import Console

from fd_keras._checks import checked, checked_choice, checked_whole, shown
from fd_keras._console import console_became_verbose, console_of
from fd_keras._files import DocumentFormat, RunDirectory
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages
from fd_keras.dct import ColorSpace, Quantizer, validate_cycle_spins, validate_quantizer
from fd_keras.evaluation.accuracies import OURS
from fd_keras.evaluation.attacks import Attack
from fd_keras.evaluation.defences import Defence, defence, no_defence, uniquely_named
from fd_keras.evaluation.protocols import Protocol
from fd_keras.refinement.experiment import Experiment, role
from fd_keras.refinement.progress import search_view
from fd_keras.refinement.result import RefineResult, ScoredDefence, Trial, pareto_front
from fd_keras.refinement.scoring import OBJECTIVES, Accuracies, Objective, TableScorer
from fd_keras.refinement.space import Space, Statistics, band_space, starting_points
from fd_keras.statistics import CoefficientStatistics
from fd_keras.tables import QuantizationTable

DEFAULT_BASELINES = ("liu2019", "zigzag15", "jpeg:90", "jpeg:75", "jpeg:50")

_TRIALS = "trials"
_LOGS = "logs"
SEARCHES = RunDirectory(
    DocumentFormat("fd_keras.search", 1, "search"),
    "search.json",
    (
        f"{_TRIALS}/oracle.json",
        f"{_TRIALS}/tuner*.json",  # of workers
        f"{_TRIALS}/trial_*/trial.json",
        f"{_LOGS}/[0-9]*/events.out.tfevents.*",
    ),
)

# Seconds; a worker waits as long for the chief.
_WAIT_FOR_FIRST_WORKER = 60 * 60
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Search:
    """What ``refine`` searches and how.

    Args:
        max_trials: Number of tables to try, those of earlier runs included.
        oracle: ``"bayesian"``, ``"random"``, ``"hyperband"`` (many trials on few images) or
            ``"grid"`` (all combinations in order; for small spaces of your own).
        space: Function from ``keras_tuner.HyperParameters`` to a table. Default:
            ``fd_keras.refinement.band_space(statistics, cycle_spins=..., quantizers=...)``.
        first_values: Values of hyperparameters to try first. Default: for the default space,
            points near the presets and step 1's designs; else none.
        statistics: Of benign images, one or several by colour space, for the default space.
            Default: measured on the validation split, in RGB and YCbCr (grey images: as Y).
        cycle_spins: Numbers of block grids in the default space.
        quantizers: Quantisers in the default space, ``"round"`` and ``"soft"``.
        stop_early: Stop trials that lose too many benign images at once, and those in the
            worse half after a quarter and a half of the attacked images.
        adaptive: Attacks with gradients through each feasible table (BPDA, or the true gradient of
            soft thresholding). They are slow.
        objective: ``"all"``: the mean accuracy over gray-box and adaptive attacks.
            ``"adaptive"``: over adaptive ones alone, for tables that are to hold against
            attackers who know them; no trial is then stopped for its gray-box accuracy.
        adaptive_images: Number of images of each split for them.
        worker_timeout: In a distributed search: seconds of silence after which a worker is
            taken for lost.

    Raises:
        ValueError: A number is out of its range, or ``adaptive`` holds an attack that only queries.

    Example:
        >>> Search(max_trials=200, oracle="random").stop_early
        True
    """

    max_trials: int = 60
    oracle: str = "bayesian"
    space: Space | None = None
    first_values: Sequence[Mapping[str, Any]] | None = None
    statistics: Statistics | None = None
    cycle_spins: Sequence[int] = (1, 2, 4)
    quantizers: Sequence[Quantizer] = ("round",)
    stop_early: bool = True
    adaptive: Sequence[Attack] = ()
    adaptive_images: int = 32
    objective: Objective = "all"
    worker_timeout: float = 60.0

    def __post_init__(self) -> None:
        checked_whole("max_trials", self.max_trials, 1)
        checked_whole("adaptive_images", self.adaptive_images, 1)
        checked("worker_timeout", self.worker_timeout, positive=True)
        checked_choice("objective", self.objective, OBJECTIVES)
        for name, validate in (
            ("cycle_spins", validate_cycle_spins),
            ("quantizers", validate_quantizer),
        ):
            values = getattr(self, name)
            if isinstance(values, str) or not len(values):
                raise ValueError(
                    f"`{name}` must be a sequence of choices. Received: {name}={shown(values)}"
                )
            for value in values:
                validate(value)
        blind = [attack.name for attack in self.adaptive if not attack.uses_gradient]
        if blind:
            raise ValueError(
                "`adaptive` must hold attacks that follow the table's gradient; those that only "
                f"query are black-box, and `evaluate` has them. Received: {', '.join(blind)}"
            )
        if self.objective == "adaptive" and (not self.adaptive or self.oracle == "hyperband"):
            raise ValueError(
                "`objective` 'adaptive' needs attacks in `adaptive`, and an oracle whose trials "
                f"see all images. Received: adaptive={shown(list(self.adaptive))}, "
                f"oracle={self.oracle!r}"
            )


@console_became_verbose
def refine(
    classifier: Classifier | keras.Model,
    data: Any,
    protocol: str | Protocol | Mapping[str, npt.ArrayLike] = "linf-sweep",
    search: Search | None = None,
    *,
    max_benign_loss: float = 0.01,
    baselines: Sequence[Any] = DEFAULT_BASELINES,
    max_images: int = 1000,
    directory: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    seed: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    verbose: int | Console = 0,
) -> RefineResult | None:
    """Search the table with the best accuracy under attack within a benign loss.

    The paper's second step. Of the images that the classifier alone gets right, every second
    one is in the validation split, on which tables are chosen: a trial installs a table and
    classifies benign and attacked images behind it. The others are the test split, on which
    the best table, the Pareto front and the baselines are scored in the end. Where the two
    differ, the search has overfitted its images.

    Attacks are those of ``fd_keras.evaluate``, with the same cache. They are gray-box, made on
    the classifier alone, unless ``Search(adaptive=...)`` adds some that know the table. An
    attacker who knows the layer does better than any gray-box accuracy says. To search for a
    table against that attacker, let ``Search(quantizers=("round", "soft"),
    objective="adaptive", adaptive=[...])`` count adaptive attacks alone.

    A search that was killed continues when it is started with the same arguments and
    ``directory``; a larger ``max_trials`` extends it.

    Keras Tuner distributes a search over processes and machines: start the same program once
    with ``KERASTUNER_TUNER_ID=chief`` and in any number with ``KERASTUNER_TUNER_ID=tuner0``,
    ``tuner1``, ..., all with ``KERASTUNER_ORACLE_IP`` and ``KERASTUNER_ORACLE_PORT`` of the
    chief. A trial of a worker that is lost goes to another one. Workers return ``None``.

    Args:
        classifier: A ``Classifier``, or a Keras model of pixels from 0 to 255 with logits;
            without the layer.
        data: Labelled images, as for ``fd_keras.evaluate``.
        protocol: Its gray-box attacks are used, on fewer images where its ``limits`` say so;
            or attacked images by the name of their attack, one for each image of ``data``, in
            the same order and value range.
        search: Number of trials, oracle and space. Default: ``Search()``.
        max_benign_loss: Share of the benign images that a table may cost, from 0 to 1.
        baselines: Defences to compare with, as for ``fd_keras.evaluate``.
        max_images: Number of images in both splits together: a random sample, spread over the
            classes, of those that the classifier alone gets right.
        directory: Where the search is kept, with TensorBoard's ``logs``. Default: a directory
            below ``cache_dir`` that belongs to these arguments.
        overwrite: Whether to delete the search in ``directory``; other files there stay.
        seed: Of the search and of random attacks; the same gives the same result.
        cache_dir: As for ``fd_keras.evaluate``.
        verbose: 1 shows progress on standard error or in the notebook, a rich console shows it
            there. 0: nothing is shown.

    Returns:
        The result; ``None`` in a worker of a distributed search.

    Raises:
        ImportError: An extra is missing.
        ValueError: An argument does not fit, or ``directory`` holds another search, a damaged
            one, files of other origin or links in the places of a search's files, or another
            process searches there.
        RuntimeError: Three trials failed in a row, or all workers were lost.

    Example:
        >>> import tempfile, numpy as np
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> images = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)[:10] / 2
        >>> result = refine(
        ...     Classifier(model, value_range=(0, 1)), (images, np.arange(10)),
        ...     {"darker": images / 2}, Search(max_trials=2, oracle="random"), baselines=[],
        ...     directory=tempfile.mkdtemp()
        ... )
        >>> len(result.trials)
        2

    References:
        Liu et al., "Feature Distillation", CVPR 2019, section 3.3.
    """
    search = search or Search()
    allowed = float(checked("max_benign_loss", max_benign_loss, 0, 1))
    made = [defence(baseline, seed=seed) for baseline in baselines]
    others = [no_defence(), *uniquely_named(made, baselines)]
    experiment = Experiment.of(
        classifier,
        data,
        protocol,
        max_images=max_images,
        seed=seed,
        cache_dir=cache_dir,
        console=console_of(verbose),
        adaptive=search.adaptive,
        adaptive_images=search.adaptive_images,
    )
    # Whatever is wrong with the arguments is said before attacks take their time.
    for other in others:
        other(255 * experiment.validation.images[:1].unit_images())
    search = _completed(search, experiment.validation.images)
    assert search.space is not None
    hyperparameters, default_table = _declared(search.space)
    identity = {
        "oracle": search.oracle,
        "max_benign_loss": allowed,
        "stop_early": search.stop_early,
        "space": hyperparameters.get_config()["space"],
        "default_table": default_table.to_dict(),
        "first_values": search.first_values,
        **({} if search.objective == "all" else {"objective": search.objective}),
        **experiment.identity(),
    }
    # Keras Tuner is slow to import.
    from fd_keras.refinement.oracles import check_states, make_oracle

    oracle = make_oracle(
        search.oracle,
        hyperparameters,
        max_trials=search.max_trials,
        seed=seed,
        starting_points=search.first_values,
        worker_timeout=search.worker_timeout,
    )
    splits = {"validation": experiment.validation, "test": experiment.test}
    settings = {
        **identity,
        "max_trials": search.max_trials,
        "images": {name: len(part.images) for name, part in splits.items()},
        "clean_accuracy": experiment.clean_accuracy,
        "sample": experiment.sample,
    }
    with _claimed(directory, experiment.cache_dir, identity, overwrite) as home:
        check_states(home / _TRIALS)
        experiment.attack()
        scorer = experiment.scorer(experiment.validation)
        trials = _run(search, oracle, scorer, experiment, allowed, home)
        if trials is None:
            return None
        return _result(trials, scorer, experiment, others, settings)


def _completed(search: Search, images: LabelledImages) -> Search:
    """The search with its defaults, which depend on the images."""
    values, space = search.first_values, search.space
    if space is None:
        statistics = search.statistics or _measured_statistics(images)
        choices: dict[str, Any] = {
            "cycle_spins": search.cycle_spins,
            "quantizers": search.quantizers,
        }
        values = starting_points(statistics, **choices) if values is None else values
        space = band_space(statistics, **choices)
    return replace(search, space=space, first_values=[dict(point) for point in values or ()])


def _measured_statistics(images: LabelledImages) -> dict[ColorSpace, CoefficientStatistics]:
    """Coefficient statistics in each colour space; grey images are measured as Y only."""
    pixels = 255 * images.unit_images()
    by_channels: dict[int, tuple[ColorSpace, ...]] = {1: ("ycbcr",), 3: ("ycbcr", "rgb")}
    provenance = {"data": "validation split of a search"}
    return {
        name: CoefficientStatistics.from_data(pixels, color_space=name, provenance=provenance)
        for name in by_channels.get(pixels.shape[-1], ("rgb",))
    }


def _declared(space: Space) -> tuple[Any, QuantizationTable]:
    """The space's hyperparameters and the table of their defaults."""
    import keras_tuner

    hyperparameters = keras_tuner.HyperParameters()
    table = space(hyperparameters)
    if not isinstance(table, QuantizationTable) or not hyperparameters.space:
        raise ValueError(
            "`space` must ask for hyperparameters and return a QuantizationTable. "
            f"Received: {table!r} and {len(hyperparameters.space)} hyperparameters"
        )
    return hyperparameters, table


@contextmanager
def _claimed(
    directory: str | os.PathLike[str] | None,
    cache_dir: Path,
    identity: Mapping[str, Any],
    overwrite: bool,
) -> Iterator[Path]:
    """The directory of this very search, held by this process unless it is a worker."""
    text = json.dumps(identity, sort_keys=True)
    if directory is None:
        home = cache_dir / "searches" / hashlib.sha256(text.encode()).hexdigest()[:16]
    else:
        home = Path(directory)
    if role() == "worker":  # the chief holds it
        yield home
        return
    with SEARCHES.claimed(home, identity, overwrite=overwrite):
        yield home


def _run(
    search: Search,
    oracle: Any,
    scorer: TableScorer,
    experiment: Experiment,
    max_benign_loss: float,
    home: Path,
) -> list[Trial] | None:
    """All trials; ``None`` in a worker."""
    from fd_keras.refinement.tuner import RefinementTuner, trials_of

    space = search.space
    assert space is not None

    def adaptive(table: QuantizationTable) -> Any:
        return experiment.under_adaptive_attack(table, experiment.validation)

    tuner = RefinementTuner(
        oracle,
        space,
        scorer,
        max_benign_loss=max_benign_loss,
        stop_early=search.stop_early,
        adaptive=adaptive if search.adaptive else None,
        objective=search.objective,
        log_dir=home / _LOGS,
        worker_timeout=search.worker_timeout,
        directory=home,
        project_name=_TRIALS,
    )
    if role() == "worker":
        tuner.search(verbose=0)
        return None
    with search_view(experiment.console, search.max_trials) as show:
        oracle.on_trial_end = lambda: show(trials_of(oracle, space))
        if role() == "chief":
            serve_until_over(lambda: tuner.search(verbose=0), oracle, search.worker_timeout)
        else:
            tuner.search(verbose=0)
    return trials_of(oracle, space)


def _result(
    trials: Sequence[Trial],
    scorer: TableScorer,
    experiment: Experiment,
    baselines: Sequence[Defence],
    settings: Mapping[str, Any],
) -> RefineResult:
    """Score the best trial, the front and the baselines on the test split."""
    test_scorer = experiment.scorer(experiment.test)

    def scored(trial: Trial, name: str) -> ScoredDefence:
        assert trial.table is not None
        test = test_scorer.score(trial.table).accuracies
        return ScoredDefence(name, OURS, test, trial.validation, trial.table)

    best = scored(_best_trial(trials, scorer), "refined")
    assert best.table is not None
    adaptive = experiment.under_adaptive_attack(best.table, experiment.test)
    test = {**best.test.counts, **Accuracies.from_correct(adaptive).counts}
    objective: Objective = settings.get("objective", "all")
    # Tables that lose too much are not attacked adaptively, and so not comparable with others.
    assert best.validation is not None
    attacked = best.validation.counts.keys()
    complete = [trial for trial in trials if trial.complete]
    if objective == "all":
        complete = [trial for trial in complete if trial.validation.counts.keys() == attacked]
    front = pareto_front(complete, objective)
    return RefineResult(
        best=replace(best, test=Accuracies(test)),
        front=[scored(trial, f"refined #{trial.number}") for trial in front],
        baselines=[experiment.baseline(baseline) for baseline in baselines],
        trials=trials,
        settings=settings,
    )


def _best_trial(trials: Sequence[Trial], scorer: TableScorer) -> Trial:
    """The trial with the best objective, scored on all images of the validation split."""
    scored = [trial for trial in trials if "score" in trial.metrics]
    if not scored:
        raise RuntimeError("Every trial of the search failed; see their `message` in its files")
    feasible = [trial for trial in scored if trial.metrics["score"] >= 0]
    if feasible:
        complete = [trial for trial in feasible if trial.complete]
        best = max(complete or feasible, key=lambda trial: trial.metrics["score"])
    else:  # their scores are of the images that were seen until too many were lost
        best = max(scored, key=lambda trial: _benign(scorer, trial))
    if best.complete:
        return best
    assert best.table is not None
    return replace(best, validation=scorer.score(best.table).accuracies)


def _benign(scorer: TableScorer, trial: Trial) -> float:
    assert trial.table is not None
    return scorer.benign_accuracy(trial.table)


def serve_until_over(search: Callable[[], None], oracle: Any, worker_timeout: float) -> None:
    """Serve the workers until all trials have ended.

    Keras Tuner's own chief waits for ever where a worker was killed or none came.

    Args:
        search: The tuner's blocking ``search``, which starts the server.
        oracle: One of the oracles of this module.
        worker_timeout: Seconds of silence after which all workers are taken for lost.

    Raises:
        RuntimeError: All workers were lost, or none came; trials that ended are kept.
    """
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            search()
        except BaseException as error:  # it is raised again below, in the caller's thread
            failed.append(error)

    started = time.monotonic()
    threading.Thread(target=serve, daemon=True).start()
    while not failed:
        heard, now = oracle.last_heard, time.monotonic()
        silent = now - (started if heard is None else heard)
        if oracle.over and (not oracle.tuner_ids or silent > worker_timeout):
            return
        # A worker that is lost is waited for once, and the one that takes over once more.
        if silent > (_WAIT_FOR_FIRST_WORKER if heard is None else 2 * worker_timeout):
            ended = len(oracle.end_order)
            raise RuntimeError(
                f"No worker is left; {ended} of {oracle.max_trials} trials have ended. They are "
                "kept: start chief and workers again to go on"
            )
        time.sleep(_POLL_SECONDS)
    raise failed[0]
