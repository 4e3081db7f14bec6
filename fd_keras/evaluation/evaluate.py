"""Evaluate defences under gray-box, adaptive and black-box attacks."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import keras
import numpy as np
import numpy.typing as npt
from rich.console import Console

from fd_keras._checks import check_range, checked_whole, shown
from fd_keras._console import (
    Advance,
    Function,
    console_became_verbose,
    console_of,
    overall_progress,
)
from fd_keras._files import default_cache_dir
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages, unit_images
from fd_keras.detection import exact_rate
from fd_keras.evaluation.accuracies import BENIGN, accuracy_row
from fd_keras.evaluation.attacks import Attack
from fd_keras.evaluation.classifiers import check_gradient
from fd_keras.evaluation.cluster import attack_on
from fd_keras.evaluation.defences import (
    CANDIDATES,
    Defence,
    defence,
    no_defence,
    numbered,
    same_defence,
    uniquely_named,
)
from fd_keras.evaluation.measurements import (
    detection_entries,
    milliseconds_per_image,
    picture_entries,
)
from fd_keras.evaluation.protocols import Protocol, protocol_named
from fd_keras.evaluation.report import EvaluationReport
from fd_keras.evaluation.runners import import_libraries
from fd_keras.evaluation.sanity import Outcome, check_clean_accuracy, check_outcomes
from fd_keras.evaluation.selection import (
    ImageSets,
    Selected,
    best_setting,
    say_clean_accuracy,
    select,
    split,
)
from fd_keras.evaluation.store import ArrayStore
from fd_keras.evaluation.two_passes import EncodedImages, check_encoders, encoded_images
from fd_keras.evaluation.workbench import AttackedImages, Workbench, correct

if TYPE_CHECKING:
    from distributed import Client

DEFAULT_DEFENCES = ("liu2019", "zigzag15", "JPEG", "bit depth", "median", "SLQ")
# Those that encode images, for two passes.
DEFAULT_ENCODERS = DEFAULT_DEFENCES[:4]

# An attack through them runs them thousands of times, at about a second each.
_TOO_SLOW_TO_ATTACK_THROUGH = ("TVM", "quilting")
_TIMED_IMAGES = 16
_PACKAGES = (
    *("fd-keras", "tensorflow", "keras", "numpy", "pillow"),
    *("adversarial-robustness-toolbox", "foolbox"),
)


def _draws_became_the_protocols(function: Function) -> Function:
    """Let ``evaluate`` take ``eot_draws`` as well, which its protocol has now."""

    @functools.wraps(function)
    def renamed(*arguments: Any, **named: Any) -> Any:
        if "eot_draws" in named:
            message = "`eot_draws` is now an argument of `Protocol`"
            warnings.warn(message, FutureWarning, stacklevel=3)
            draws = named.pop("eot_draws")
            given = inspect.signature(function).bind_partial(*arguments, **named)
            given.apply_defaults()
            protocol = protocol_named(given.arguments["protocol"])
            given.arguments["protocol"] = replace(protocol, eot_draws=draws)
            return function(*given.args, **given.kwargs)
        return function(*arguments, **named)

    return cast(Function, renamed)


@console_became_verbose
@_draws_became_the_protocols
def evaluate(
    classifier: keras.Model | Classifier,
    data: Any,
    defences: Sequence[Any] | None = None,
    protocol: str | Protocol = "linf-sweep",
    *,
    passes: int = 1,
    max_images: int = 1000,
    background: npt.ArrayLike | None = None,
    false_positive_rate: float = 0.05,
    seed: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    client: Client | None = None,
    verbose: int | Console = 0,
) -> EvaluationReport:
    """Evaluate defences of a classifier under gray-box, adaptive and black-box attacks.

    In one pass, only images that the classifier alone classifies correctly are used, so that its
    accuracy without attack and defence is 1 by construction. Attacks come from ART and Foolbox,
    with the parameters that the protocol fixes.

    Gray-box attacks are made on the classifier alone, once for all defences. Adaptive attacks are
    made through each defence, and black-box attacks query the classifier behind it; for the slow
    TVM and quilting, both are left out. An adaptive attacker replaces the gradient of the defence
    (BPDA): first by that of a smooth approximation, where there is one, and then, on the images
    that withstood, by the identity's. Soft thresholding has its own gradient. For random
    defences, gradients are averaged over the protocol's ``eot_draws`` draws (EOT). Without a
    defence, adaptive and gray-box attackers know the same.

    In two passes, each defence encodes all images first, with an encoder of its own: tables and
    JPEG store them as JPEG does, bit depth with its levels. Those that the classifier gets right
    once they are encoded are attacked, and what comes of it is distilled and classified. That is
    the protocol of the authors' code, for defenders who store images before an attacker acts.
    Gray-box attacks are then made for each defence, adaptive ones begin at the encoded image, and
    PGD and ``half_step`` of 40 iterations at the protocol's bounds are added to them. Benign
    accuracy is that of all images, right or wrong; certified accuracy is the share of all that
    are right and provably stay so. Detection is measured in one pass only.

    The evaluation checks its own attacker: signs that it was too weak are in ``report.checks``.

    Results are kept in ``cache_dir`` under a hash of all that they depend on. An interrupted
    evaluation resumes, and another one computes only what is new. A file there that was damaged is
    named in a warning and computed again.

    Args:
        classifier: A ``Classifier``, or a Keras model that takes pixels from 0 to 255 and returns
            logits or probabilities. It must be the classifier alone: ``fd_keras.unprotect`` takes
            the layer off.
        data: ``(images, labels)``, a ``tf.data.Dataset``, a ``PyDataset`` or an iterable of
            batches ``(images, labels)``; images in the classifier's value range, labels as
            integers. ``LabelledImages`` are a sample of your own, of which the first are taken.
        defences: Names as ``fd_keras.evaluation.defences.defence`` takes them (``"liu2019"``,
            ``"jpeg:75"``, the path of a table's file), tables, layers or ``Defence`` objects.
            For a list of them, or the name of a family in ``CANDIDATES`` (``"JPEG"``), the
            setting with the best mean of benign and mean gray-box accuracy on a validation split
            is reported. Attacks that ``protocol.limits`` names take no part in this choice.
            Default: ``liu2019``, ``zigzag15``, ``JPEG``, ``bit depth`` and, in one pass,
            ``median`` and ``SLQ``, which have no encoder. Where names are the same, the file or a
            number tells them apart.
        protocol: A ``Protocol``, or a name in ``fd_keras.evaluation.PROTOCOLS``. Its ``limits``
            say how many images slow attacks and defences get.
        passes: 1, or 2.
        max_images: Number of images: a random sample, spread over the classes, as the first
            images of it are, which attacks with a limit get. In one pass they are correctly
            classified ones; those that are not are replaced by others. If settings are to be
            chosen, every second one belongs to the validation split, and only the others, the
            test split, are reported.
        background: Benign images that quilting takes its patches from, in the classifier's value
            range. Default: the validation split, if there is one.
        false_positive_rate: Share of benign images that detection may flag.
        seed: Seed of random attacks and defences.
        cache_dir: Directory of the results. Default: ``fd_keras/evaluation`` in the directory of
            Keras (``~/.keras``, or ``$KERAS_HOME``).
        client: A ``distributed.Client`` of a Dask cluster, on whose workers the images are
            attacked, 16 at a time. They must see ``cache_dir``, where they find the model and leave
            what they attacked. Default: this process.
        verbose: 1 shows clean accuracy and a progress bar on standard error or in the notebook, a
            rich console shows them there. 0: nothing is shown.

    Returns:
        The report, with ``rows``, ``checks``, ``table()``, ``to_html(path)`` and more.

    Raises:
        ImportError: An extra is not installed.
        ValueError: Classifier, data and arguments do not fit: labels outside the classes, images
            outside the value range or of another shape, probabilities where logits are expected
            or the other way round, no image that is classified correctly, no gradient that
            attacks can follow; or, in two passes, a defence without an encoder. All of it is
            found out before the first attack.
        TypeError: ``data`` or a defence is of an unknown type.
        RuntimeError: Workers of ``client`` could not attack some images; the others are kept.

    Warns:
        ClassifierWarning: Without attack and defence, the classifier is about as good as chance.

    Example:
        >>> import tempfile, numpy as np
        >>> from fd_keras.evaluation import Protocol, fgsm
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> images = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)[:10] / 2
        >>> report = evaluate(
        ...     Classifier(model, value_range=(0, 1)), (images, np.arange(10)), ["none"],
        ...     Protocol("one", "", gray_box=(fgsm(2.55),)), cache_dir=tempfile.mkdtemp()
        ... )
        >>> [(row["threat_model"], row["accuracy"]) for row in report.rows]
        [('benign', 1.0), ('gray-box', 1.0)]

    References:
        BPDA and EOT: Athalye et al., ICML 2018. Smooth rounding: Shin & Song, "JPEG-resistant
        Adversarial Images", 2017. Carlini et al., "On Evaluating Adversarial Robustness",
        arXiv:1902.06705. Tramer et al., "On Adaptive Attacks to Adversarial Example Defenses",
        NeurIPS 2020.
    """
    started = time.monotonic()
    classifier, protocol = Classifier.of(classifier), protocol_named(protocol)
    two = checked_whole("passes", passes, 1, 2) == 2
    protocol = protocol.for_two_passes() if two else protocol
    import_libraries({attack.family for attack in protocol.attacks})
    exact_rate(false_positive_rate)
    seed, console = checked_whole("seed", seed, 0), console_of(verbose)
    if defences is None:
        defences = DEFAULT_ENCODERS if two else DEFAULT_DEFENCES
    families = [_settings_of(entry) for entry in defences]
    # Quilting is made of images, and is checked once they are there.
    made = _made([[s for s in family if not _is_quilting(s)] for family in families], None, seed)
    if two:
        check_encoders(list(itertools.chain.from_iterable(made)))
    if any(len(family) > 1 for family in families):
        _choosing(protocol)
    selected = select(
        classifier, data, max_images=max_images, batch_size=32, only_correct=not two, seed=seed
    )
    say_clean_accuracy(classifier, selected, console)
    chooses = any(len(family) > 1 for family in families)
    protocol = protocol.for_classes(classifier.logits(selected[:1].unit_images()).shape[1])
    if any(attack.uses_gradient for attack in protocol.attacks):
        check_gradient(classifier, selected)
    validation, test = split(selected) if chooses else (selected[:0], selected[:])
    candidates = _made(families, _patches(background, validation, classifier), seed)
    for candidate in itertools.chain.from_iterable(candidates):
        candidate(255 * selected[:1].unit_images())  # says itself what it does not take
    if two:
        check_encoders([c for family in candidates for c in family], selected.images.shape[1:])
    store = ArrayStore(cache_dir or default_cache_dir())
    with overall_progress(console) as progress:
        bench = Workbench(
            classifier,
            store,
            seed=seed,
            eot_draws=protocol.eot_draws,
            progress=progress,
            attackers=None if client is None else functools.partial(attack_on, client),
            identity=classifier.identity(selected[:4].unit_images()),
        )
        evaluation = _Evaluation(protocol, validation, test, bench, passes)
        progress.expect(evaluation.work(candidates))
        chosen = evaluation.choose(candidates)
        results = [evaluation.result(*entry) for entry in chosen.values()]
        defended = [result.defence for result in results]
        detection = []
        if not two:
            gray_box = evaluation.gray_box(no_defence())
            detection = detection_entries(
                defended, gray_box, validation, bench, false_positive_rate
            )
        tables = [defence for defence in defended if defence.table is not None][:1]
        pictures = [
            picture
            for defence in tables
            for picture in picture_entries([defence], evaluation.gray_box(defence), bench)
        ]
        times = milliseconds_per_image(defended, 255 * test[:_TIMED_IMAGES].unit_images())
    classes = classifier.logits(selected[:1].unit_images()).shape[1]
    return EvaluationReport(
        rows=[row for result in results for row in result.rows()],
        defences=[result.entry(times) for result in results],
        checks=[
            check_clean_accuracy(selected.right, selected.seen, classes),
            *(check for result in results for check in result.checks()),
        ],
        detection=detection,
        settings={
            **_image_settings(classifier, selected, validation, test, passes, max_images),
            **_protocol_settings(protocol),
            "eot_draws": protocol.eot_draws,
            "seed": seed,
            **_run_settings(),
            "seconds": round(time.monotonic() - started, 1),
        },
        pictures=pictures,
    )


@dataclass(frozen=True)
class _Result:
    """A defence, the settings it was chosen from, and what it makes of the images."""

    defence: Defence
    chosen_from: Sequence[str]
    benign: npt.NDArray[np.bool_]
    outcomes: Sequence[Outcome]
    encoded: EncodedImages | None

    def rows(self) -> list[dict[str, Any]]:
        """Its accuracies, as a report holds them."""
        certified = self.encoded.rows(self.defence, self.benign) if self.encoded else []
        return [
            _row(self.defence, self.benign, None),
            *(_row(self.defence, outcome.correct, outcome) for outcome in self.outcomes),
            *certified,
        ]

    def checks(self) -> list[dict[str, Any]]:
        """Sanity checks of the attacks on it."""
        return check_outcomes(self.defence.name, self.outcomes)

    def entry(self, times: Mapping[str, float]) -> dict[str, Any]:
        """Name, settings and milliseconds per image, as a report holds them."""
        encoder = self.defence.encoder
        two_passes = {}
        if self.encoded is not None and encoder is not None:
            two_passes = {"two_passes": self.encoded.entry(encoder.file)}
        return {
            "name": self.defence.name,
            "family": self.defence.family,
            "settings": self.defence.settings,
            "ms_per_image": times[self.defence.name],
            "chosen_from": list(self.chosen_from),
            **two_passes,
        }


class _Evaluation:
    """The attacks of a protocol on the validation and test splits."""

    def __init__(
        self,
        protocol: Protocol,
        validation: LabelledImages,
        test: LabelledImages,
        bench: Workbench,
        passes: int,
    ) -> None:
        self._protocol = protocol
        self._validation = validation
        self._test = test
        self._bench = bench
        self._passes = passes
        self._encoded: dict[str, EncodedImages] = {}

    def choose(
        self, families: Sequence[Sequence[Defence]]
    ) -> dict[str, tuple[Defence, Sequence[str]]]:
        """No defence and the best setting of each family, by name, each with all names tried."""
        chosen: dict[str, tuple[Defence, Sequence[str]]] = {"none": (no_defence(), ())}
        for family in families:
            tried: Sequence[str] = ()
            found = family[0]
            if len(family) > 1:
                found, tried = self._best(family), [candidate.name for candidate in family]
            known = chosen.get(found.name)
            if known is not None and not same_defence(known[0], found):
                found = numbered(found, chosen)
                known = None
            if known is None or tried:
                chosen[found.name] = found, tried
        return chosen

    def work(self, families: Sequence[Sequence[Defence]]) -> float:
        """What choosing from families and attacking takes, in images that are classified."""
        work = 0.0
        for family in [[no_defence()], *families]:
            benign = AttackedImages(self._test)
            sets = self._sets(family[0], self._test)
            if self._passes == 1 and family[0].family != "none":
                sets = [images for images in sets if images.through is not None]
            limited = [self._limited(images, family[0]) for images in sets]
            attacked = len(self._protocol.gray_box) * len(self._limited(benign, family[0]).images)
            work += sum(len(s.images) * (1 + self._bench.cost(s)) for s in limited) + attacked
            if len(family) > 1:
                work += len(family) * len(self._validation) * (1 + len(self._protocol.gray_box))
        if any(len(family) > 1 for family in families):
            gray_box = (AttackedImages(self._validation, a) for a in self._protocol.gray_box)
            work += sum(len(images.images) * self._bench.cost(images) for images in gray_box)
        return work

    def _sets(self, defence: Defence, right: LabelledImages) -> list[AttackedImages]:
        """The images to attack, under all attacks that are made on a defence."""
        sets = [
            self._limited(AttackedImages(right, attack, passes=self._passes))
            for attack in self._protocol.gray_box
        ]
        if defence.family not in _TOO_SLOW_TO_ATTACK_THROUGH:
            sets += [
                AttackedImages(right, attack, defence, self._passes)
                for attack in (*self._protocol.adaptive, *self._protocol.black_box)
            ]
        return sets

    def _best(self, family: Sequence[Defence]) -> Defence:
        attacks = _choosing(self._protocol)
        limit = self._protocol.limits.get(family[0].family)
        under_attack = self._protocol.limit(family[0].family, "gray-box")

        def images_for(candidate: Defence) -> ImageSets:
            benign, right = self._validation, self._validation
            if self._passes == 2:
                encoded = encoded_images(benign[:limit], candidate, self._bench)
                benign, right = encoded.images, encoded.images[encoded.attacked]
            attacked = [
                AttackedImages(right, attack, passes=self._passes).first(under_attack)
                for attack in attacks
            ]
            for images in attacked:
                self._bench.generate(images)
            return AttackedImages(benign).first(limit), attacked

        return best_setting(family, images_for, self._bench)

    def gray_box(self, defence: Defence) -> list[AttackedImages]:
        """The test split under gray-box attacks; in two passes, as the defence encoded it."""
        sets = self._sets(defence, self._right(defence))
        return [s for s in sets if s.through is None and len(s.images)]

    def result(self, defence: Defence, chosen_from: Sequence[str]) -> _Result:
        """Attack the classifier behind a defence, and classify benign and attacked images."""
        encoded = self._encode(defence) if self._passes == 2 else None
        benign = self._limited(AttackedImages(encoded.images if encoded else self._test), defence)
        sets = self._sets(defence, self._right(defence))
        limited = [self._limited(images, defence) for images in sets]
        limited = [images for images in limited if len(images.images)]
        for images in limited:
            self._bench.generate(images)
        total = sum(len(images.images) for images in (benign, *limited))
        with self._bench.bar(f"Classifying behind {defence.name}", total) as advance:
            logits = self._bench.logits(benign, defence, on_batch=advance)
            outcomes = [self._outcome(images, defence, logits, advance) for images in limited]
        right_benign = correct(logits, benign.images.labels)
        return _Result(defence, chosen_from, right_benign, outcomes, encoded)

    def _outcome(
        self,
        images: AttackedImages,
        defence: Defence,
        benign_logits: npt.NDArray[np.float32],
        advance: Advance,
    ) -> Outcome:
        assert images.attack is not None
        logits = self._bench.logits(images, defence, on_batch=advance)
        within = changed = None
        encoded = self._encoded.get(defence.name)
        if encoded is not None and encoded.radii is not None:
            positions = encoded.attacked[: len(logits)]
            changed = logits.argmax(axis=-1) != benign_logits[positions].argmax(axis=-1)
            within = self._bench.distances(images) <= encoded.radii[positions]
        return Outcome(
            images.attack,
            images.threat_model,
            correct(logits, images.images.labels),
            within=within,
            changed=changed,
            effect=self._bench.effect(images, defence),
        )

    def _encode(self, defence: Defence) -> EncodedImages:
        if defence.name not in self._encoded:
            images = self._test[: self._protocol.limit(defence.family)]
            self._encoded[defence.name] = encoded_images(images, defence, self._bench)
        return self._encoded[defence.name]

    def _right(self, defence: Defence) -> LabelledImages:
        """The images that are attacked: those that the classifier gets right."""
        if self._passes == 1:
            return self._test
        encoded = self._encode(defence)
        return encoded.images[encoded.attacked]

    def _limited(self, images: AttackedImages, defence: Defence | None = None) -> AttackedImages:
        names = [images.attacker]
        names += [images.attack.family] if images.attack else []
        names += [defence.family] if defence else []
        return images.first(self._protocol.limit(*names))


def _settings_of(entry: Any) -> Sequence[Any]:
    """All settings that an entry of ``defences`` stands for."""
    if isinstance(entry, str) and entry in CANDIDATES:
        return CANDIDATES[entry]
    if not isinstance(entry, (list, tuple)):
        return (entry,)
    if not entry:
        raise ValueError(
            "`defences` must hold families of at least one setting. Received: an empty one"
        )
    return entry


def _choosing(protocol: Protocol) -> list[Attack]:
    """The attacks by which the settings of families of defences are chosen."""
    limits = protocol.limits
    attacks = [attack for attack in protocol.gray_box if attack.family not in limits]
    if not attacks or limits.get("gray-box") == 0:
        raise ValueError(
            "`protocol` must have a gray-box attack without a limit, to choose settings by. "
            f"Received: protocol={protocol.name!r} with limits={shown(dict(limits))}"
        )
    return attacks


def _made(
    families: Sequence[Sequence[Any]], patches: npt.NDArray[np.float32] | None, seed: int
) -> list[list[Defence]]:
    """The defences of families of settings, under names of their own."""
    made = [[defence(s, background=patches, seed=seed) for s in family] for family in families]
    single = iter(
        uniquely_named(
            [found[0] for found in made if len(found) == 1],
            [family[0] for family in families if len(family) == 1],
        )
    )
    return [
        [next(single)] if len(found) == 1 else uniquely_named(found, family)
        for found, family in zip(made, families)
    ]


def _is_quilting(setting: Any) -> bool:
    return isinstance(setting, str) and setting.partition(":")[0] == "quilting"


def _patches(
    background: npt.ArrayLike | None, validation: LabelledImages, classifier: Classifier
) -> npt.NDArray[np.float32] | None:
    """Benign images for quilting, pixels from 0 to 255."""
    if background is not None:
        images = np.asarray(background)
        check_range("background", images, classifier.value_range)
        return 255 * unit_images(images, classifier.value_range)
    return 255 * validation.unit_images() if len(validation) else None


def _row(
    defence: Defence, correct: npt.NDArray[np.bool_], outcome: Outcome | None
) -> dict[str, Any]:
    about: dict[str, Any] = {"threat_model": BENIGN}
    if outcome is not None:
        attack = outcome.attack
        about = {
            "threat_model": outcome.threat_model,
            "attack": attack.name,
            "attack_family": attack.family,
            "norm": attack.norm,
            "epsilon": attack.unit_epsilon,
            "effect": outcome.effect,
        }
    return accuracy_row(
        defence=defence.name,
        family=defence.family,
        correct=int(correct.sum()),
        count=len(correct),
        **about,
    )


def _image_settings(
    classifier: Classifier,
    selected: Selected,
    validation: LabelledImages,
    test: LabelledImages,
    passes: int,
    max_images: int,
) -> dict[str, Any]:
    splits = ""
    if len(validation):
        splits = (
            f" Every second of them ({len(validation)}) belongs to the validation split, which "
            "only chose settings of defences."
        )
    count, asked = len(selected), f"{max_images} were asked for"
    if passes == 1:
        taken = f"{count} of these are taken {selected.order}, as {asked}."
        if count < max_images:
            taken = f"All of these are used, though {asked}."
        selection = (
            f"Of {selected.seen} images read, the classifier alone gets {selected.right} right. "
            f"{taken}{splits} {len(test)} are reported. Its accuracy on them without attack and "
            "defence is 100 % by construction."
        )
    else:
        selection = (
            f"{count} images, right or wrong, taken {selected.order}; {asked}. Of "
            f"{selected.seen} images read, the classifier alone gets {selected.right} right."
            f"{splits} {len(test)} are reported. Each defence encodes all of them before an "
            "attacker acts, and distils them again after. Benign and certified accuracies are of "
            "all images; accuracies under attack, of those that the classifier gets right once "
            "they are encoded."
        )
    return {
        "model": classifier.model.name,
        "model_sha256": classifier.fingerprint,
        "data_sha256": selected.fingerprint,
        "value_range": list(selected.value_range),
        "outputs": classifier.assumption,
        "clean_accuracy": {"right": selected.right, "seen": selected.seen},
        "count": len(test),
        "max_images": max_images,
        "sample": selected.order,
        "passes": passes,
        "selection": selection,
    }


def _protocol_settings(protocol: Protocol) -> dict[str, Any]:
    return {
        "protocol": protocol.name,
        "protocol_description": protocol.description,
        "attacks": {
            "gray-box": [attack.to_dict() for attack in protocol.gray_box],
            "adaptive": [attack.to_dict() for attack in protocol.adaptive],
            "black-box": [attack.to_dict() for attack in protocol.black_box],
        },
        "limits": dict(protocol.limits),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a nightly build, or a source checkout
        return "unknown"


def _run_settings() -> dict[str, Any]:
    versions = {package: _version(package) for package in _PACKAGES}
    return {
        "command": shlex.join(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"python": platform.python_version(), **versions},
    }
