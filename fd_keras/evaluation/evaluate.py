"""What a defence saves, what it costs, against whom, and whether anything else does better."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from rich.console import Console

from fd_keras._console import progress_bars
from fd_keras._extras import import_extra
from fd_keras._files import default_cache_dir
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages, unit_images
from fd_keras.evaluation.accuracies import accuracy_row
from fd_keras.evaluation.defences import CANDIDATES, Defence, defence, no_defence
from fd_keras.evaluation.measurements import (
    detection_entries,
    example_pictures,
    milliseconds_per_image,
)
from fd_keras.evaluation.protocols import Protocol, protocol_named
from fd_keras.evaluation.report import EvaluationReport
from fd_keras.evaluation.sanity import Outcome, check_outcomes
from fd_keras.evaluation.selection import select
from fd_keras.evaluation.store import ArrayStore
from fd_keras.evaluation.tuning import Contestant, best_setting
from fd_keras.evaluation.workbench import ImageSet, Workbench, correct

DEFAULT_DEFENCES = ("liu2019", "zigzag15", "JPEG", "bit depth", "median", "SLQ")

# Attacking through them takes thousands of runs of a method that needs about a second.
_TOO_SLOW_TO_ATTACK_THROUGH = ("TVM", "quilting")
_TIMED_IMAGES = 16
_LIMITABLE = (
    *("FGSM", "BIM", "PGD", "DeepFool", "CW-L2", "Square", "AutoAttack"),
    *("gray-box", "adaptive", "black-box", "feature distillation", *CANDIDATES),
)
_PACKAGES = ("fd-keras", "tensorflow", "keras", "numpy", "pillow", "adversarial-robustness-toolbox")


def evaluate(
    model: keras.Model,
    data: Any,
    defences: Sequence[Any] = DEFAULT_DEFENCES,
    protocol: str | Protocol = "linf-sweep",
    *,
    value_range: Sequence[float] = (0, 255),
    from_logits: bool = True,
    max_images: int = 1000,
    limits: Mapping[str, int] | None = None,
    background: npt.ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    false_positive_rate: float = 0.05,
    eot_draws: int = 4,
    seed: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> EvaluationReport:
    """Attack a classifier with and without knowledge of its defences, and compare them.

    Only images that the classifier alone gets right are used, so its accuracy without attack
    and defence is 1 by construction. All attacks come from ART; the protocol says which.

    Gray-box attacks are made on the classifier alone, once for all defences. Adaptive ones are
    made through each defence, black-box ones by querying the classifier behind it; both are left
    out for the slow TVM and quilting. An adaptive attacker puts other gradients in place of the
    defence's (BPDA): that of a smooth stand-in, where rounding allows one, then the identity's on
    the images that withstood. Where the defence is random, gradients are averaged (EOT). For the
    classifier without defence, adaptive means that the attacker knows all there is. The evaluation
    checks itself: an attacker who was too weak shows in ``report.checks``.

    Everything computed is kept in ``cache_dir`` under a hash of what it depends on. An
    evaluation that was killed goes on where it was, and a further one computes what is new.

    Args:
        model: Classifier with one image input and outputs ``(batch, classes)``, without the
            layer. It must be the classifier alone: a model that contains the layer is
            evaluated as a classifier of its own.
        data: ``(images, labels)``, a ``tf.data.Dataset``, a ``PyDataset`` or an iterable of
            batches ``(images, labels)``, in ``value_range``; labels are integers.
        defences: Names as ``fd_keras.evaluation.defences.defence`` takes them (``"liu2019"``,
            ``"jpeg:75"``, the path of a table's file), tables, layers or ``Defence`` objects.
            The name of a family in ``CANDIDATES`` (``"JPEG"``), or a list of any of the above,
            is tried on a tuning split, and its best setting is reported: the one with the best
            mean of benign and mean gray-box accuracy.
        protocol: A name in ``fd_keras.evaluation.PROTOCOLS``, or a ``Protocol``.
        value_range: The pixel values that ``model`` takes.
        from_logits: Whether ``model`` returns logits. Probabilities are turned into logits,
            but where they are rounded to 0 or 1 an attack finds no gradient.
        max_images: Use so many images that the model gets right. With a tuning split, every
            second one of them tunes, and the others are reported.
        limits: Fewer images for what is slow, by family of attack or defence or by threat
            model, such as ``{"CW-L2": 50, "quilting": 20, "adaptive": 100}``. Attacks with a
            limit take no part in tuning.
        background: Benign images in ``value_range`` that quilting takes its patches from. They
            are the tuning split if there is one.
        class_names: Names of the classes, for pictures.
        false_positive_rate: Share of benign images that detection may flag.
        eot_draws: Draws of a random defence that an adaptive attacker averages over.
        seed: Of random attacks and defences.
        cache_dir: Default: ``fd_keras/evaluation`` in Keras' own directory (``~/.keras``, or
            ``$KERAS_HOME``).
        console: Where progress bars go. Default: nowhere.

    Returns:
        The report: ``rows``, ``checks``, ``table()``, ``to_html(path)``, ...

    Raises:
        ImportError: An extra is missing.
        ValueError: Model, data and arguments do not fit: labels outside the classes, images
            outside ``value_range`` or of a size that the model does not take, logits where
            probabilities are announced or the other way round, no image classified correctly.
        TypeError: ``data`` or a defence is of an unknown type.

    Example:
        >>> import tempfile, numpy as np
        >>> from fd_keras.evaluation import Protocol, fgsm
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> images = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)[:10] / 2
        >>> report = evaluate(
        ...     model, (images, np.arange(10)), ["none"], Protocol("one", "", (fgsm(2.55),)),
        ...     value_range=(0, 1), cache_dir=tempfile.mkdtemp()
        ... )
        >>> [(row["threat_model"], row["accuracy"]) for row in report.rows]
        [('benign', 1.0), ('gray-box', 1.0)]

    References:
        BPDA and EOT: Athalye et al., ICML 2018. Smooth rounding: Shin & Song, "JPEG-resistant
        Adversarial Images", 2017. Carlini et al., "On Evaluating Adversarial Robustness",
        arXiv:1902.06705. Tramer et al.,
        "On Adaptive Attacks to Adversarial Example Defenses", NeurIPS 2020.
    """
    import_extra("art.attacks.evasion", "evaluate")
    started = time.monotonic()
    chosen = protocol_named(protocol)
    limits = _checked_limits(limits or {})
    classifier = Classifier(model, value_range=value_range, from_logits=from_logits)
    selection = select(classifier, data, max_images=max_images, batch_size=32)
    families = [_candidates(entry) for entry in defences]
    tuning, reported = _split(selection, any(len(family) > 1 for family in families))
    if background is None:
        patches = 255 * tuning.unit_images() if len(tuning) else None
    else:
        patches = 255 * unit_images(np.asarray(background), classifier.value_range)
    with progress_bars(console, unit="images") as progress:
        bench = Workbench(
            classifier,
            ArrayStore(cache_dir or default_cache_dir()),
            seed=seed,
            eot_draws=eot_draws,
            progress=progress,
        )
        plan = _Plan(chosen, limits, tuning, reported, bench)
        contestants = plan.contestants(
            [[defence(c, background=patches, seed=seed) for c in family] for family in families]
        )
        names = [contestant.defence for contestant in contestants]
        outcomes = [plan.outcomes(contestant.defence) for contestant in contestants]
        detection = detection_entries(names, plan.gray_box, tuning, bench, false_positive_rate)
        pictures = example_pictures(names, plan.gray_box, bench, class_names)
        times = milliseconds_per_image(names, 255 * reported[:_TIMED_IMAGES].unit_images())
    return EvaluationReport(
        rows=[_row(c.defence, *pair) for c, found in zip(contestants, outcomes) for pair in found],
        defences=[_entry(contestant, times) for contestant in contestants],
        checks=[
            check
            for contestant, found in zip(contestants, outcomes)
            for check in check_outcomes(contestant.defence.name, _under_attack(found))
        ],
        detection=detection,
        settings={
            **_about(classifier, selection, tuning, reported),
            "protocol": chosen.name,
            "protocol_description": chosen.description,
            "attacks": {
                "gray-box": [attack.to_dict() for attack in chosen.gray_box],
                "adaptive": [attack.to_dict() for attack in chosen.adaptive],
                "black-box": [attack.to_dict() for attack in chosen.black_box],
            },
            "limits": dict(limits),
            "eot_draws": eot_draws,
            "seed": seed,
            "command": shlex.join(sys.argv),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "versions": _versions(),
            "seconds": round(time.monotonic() - started, 1),
        },
        pictures=pictures,
    )


# Typing alias: images, and which of them stay right.
_Outcome = tuple[ImageSet, npt.NDArray[np.bool_]]


class _Plan:
    """Which images are attacked how, and what becomes of them."""

    def __init__(
        self,
        protocol: Protocol,
        limits: Mapping[str, int],
        tuning: LabelledImages,
        reported: LabelledImages,
        bench: Workbench,
    ) -> None:
        self._protocol = protocol
        self._limits = limits
        self._tuning = tuning
        self._reported = reported
        self._bench = bench
        self.gray_box = [self._limited(ImageSet(reported, a)) for a in protocol.gray_box]
        self.gray_box = [images for images in self.gray_box if len(images.images)]
        for images in self.gray_box:
            bench.generate(images)

    def contestants(self, families: Sequence[Sequence[Defence]]) -> list[Contestant]:
        """The undefended classifier, and the best of each family, each once."""
        attacked = [
            ImageSet(self._tuning, attack)
            for attack in self._protocol.gray_box
            if attack.family not in self._limits
        ]
        if not attacked and any(len(family) > 1 for family in families):
            raise ValueError(
                "`limits` must leave a gray-box attack without a limit to tune on. "
                f"Received: limits={dict(self._limits)!r}, protocol={self._protocol.name!r}"
            )
        found = {"none": Contestant(no_defence())}
        for family in families:
            if len(family) == 1:
                contestant = Contestant(family[0])
            else:
                for images in attacked:
                    self._bench.generate(images)
                contestant = best_setting(
                    family,
                    ImageSet(self._tuning),
                    attacked,
                    self._bench,
                    self._limits.get(family[0].family),
                )
            name = contestant.defence.name
            if name not in found or contestant.chosen_from:
                found[name] = contestant
        return list(found.values())

    def outcomes(self, defence: Defence) -> list[_Outcome]:
        """What a defence makes of benign and attacked images."""
        sets = [ImageSet(self._reported), *self.gray_box]
        if defence.family not in _TOO_SLOW_TO_ATTACK_THROUGH:
            sets += [ImageSet(self._reported, a, defence) for a in self._protocol.adaptive]
            sets += [ImageSet(self._reported, a, defence) for a in self._protocol.black_box]
        limited = [self._limited(full).first(self._limits.get(defence.family)) for full in sets]
        limited = [images for images in limited if len(images.images)]
        for images in limited:
            self._bench.generate(images)
        result = []
        total = sum(len(images.images) for images in limited)
        with self._bench.bar(f"Classifying behind {defence.name}", total) as advance:
            for images in limited:
                logits = self._bench.logits(images, defence, on_batch=advance)
                result.append((images, correct(logits, images.images.labels)))
        return result

    def _limited(self, images: ImageSet) -> ImageSet:
        keys = [images.threat_model, *([images.attack.family] if images.attack else [])]
        found = [self._limits[key] for key in keys if key in self._limits]
        return images.first(min(found, default=None))


def _candidates(entry: Any) -> Sequence[Any]:
    if isinstance(entry, str) and entry in CANDIDATES:
        return CANDIDATES[entry]
    if isinstance(entry, (list, tuple)):
        return entry
    return (entry,)


def _split(selection: LabelledImages, tunes: bool) -> tuple[LabelledImages, LabelledImages]:
    """Every second image to tune on, if anything is tuned, and the others to report."""
    if not tunes:
        return selection[:0], selection
    if len(selection) < 2:
        raise ValueError(
            "`data` must hold two images that `model` classifies correctly, one to tune on and "
            f"one to report. Received: {len(selection)}"
        )
    return selection[::2], selection[1::2]


def _checked_limits(limits: Mapping[str, int]) -> Mapping[str, int]:
    for key, count in limits.items():
        if key not in _LIMITABLE or not isinstance(count, int) or count < 0:
            raise ValueError(
                f"`limits` must map some of {_LIMITABLE} to whole numbers, not negative. "
                f"Received: limits={dict(limits)!r}"
            )
    return limits


def _under_attack(outcomes: Sequence[_Outcome]) -> list[Outcome]:
    return [
        Outcome(images.attack, images.threat_model, right)
        for images, right in outcomes
        if images.attack is not None
    ]


def _row(defence: Defence, images: ImageSet, right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    about: dict[str, Any] = {}
    if images.attack is not None:
        attack = images.attack
        about = {
            "attack": attack.name,
            "attack_family": attack.family,
            "norm": attack.norm,
            "epsilon": attack.unit_epsilon,
        }
    return accuracy_row(
        defence=defence.name,
        family=defence.family,
        threat_model=images.threat_model,
        correct=int(right.sum()),
        count=len(right),
        **about,
    )


def _entry(contestant: Contestant, times: Mapping[str, float]) -> dict[str, Any]:
    return {
        "name": contestant.defence.name,
        "family": contestant.defence.family,
        "settings": contestant.defence.settings,
        "ms_per_image": times[contestant.defence.name],
        "chosen_from": list(contestant.chosen_from),
    }


def _about(
    classifier: Classifier,
    selection: LabelledImages,
    tuning: LabelledImages,
    reported: LabelledImages,
) -> dict[str, Any]:
    tuned = f"; every second of them, {len(tuning)}, only chose settings" if len(tuning) else ""
    return {
        "model": classifier.model.name,
        "model_sha256": classifier.fingerprint,
        "data_sha256": selection.fingerprint,
        "value_range": list(selection.value_range),
        "count": len(reported),
        "selection": (
            f"Of {selection.seen} images, the {len(selection)} that the classifier alone gets "
            f"right{tuned}. {len(reported)} are reported. Its accuracy on them without attack "
            "and defence is 100 % by construction."
        ),
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        package: metadata.version(package) for package in _PACKAGES
    }
