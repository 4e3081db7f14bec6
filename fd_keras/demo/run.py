"""Run the demo: train, attack, defend and export a small classifier, and report."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
from rich.console import Console

from fd_keras._checks import checked_whole
from fd_keras._console import bar, progress_bars
from fd_keras._extras import import_extra
from fd_keras._pages import picture_uri, render_page
from fd_keras.certification import certified_table
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages
from fd_keras.demo.digits import (
    CLASS_NAMES,
    TEST_IMAGES,
    build_classifier,
    load_digits,
    train_classifier,
)
from fd_keras.encoding import encode
from fd_keras.evaluation import EvaluationReport, Protocol, art_classifier, bim, evaluate, fgsm, pgd
from fd_keras.export import ExportCheck, export_saved_model, export_tflite, verify_export
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import PRESETS, preset_table
from fd_keras.protection import protect
from fd_keras.tables import QuantizationTable

PROTOCOL = Protocol(
    "demo",
    "FGSM and BIM at 8 and 16 /255 on the classifier alone, and PGD through each table.",
    gray_box=(fgsm(8), bim(8, 2), fgsm(16), bim(16, 4)),
    adaptive=(pgd(8), pgd(16)),
    limits={"adaptive": 32},  # attacks through the layer take most of the time
)

# With images that were encoded before they are attacked, and a table that certifies as much as the
# attacks may change.
TWO_PASSES = Protocol(
    "demo, two passes",
    "FGSM and BIM at 8 /255 on encoded images, and attacks through each defence at that bound.",
    gray_box=(fgsm(8), bim(8, 2)),
    adaptive=(pgd(8, 40),),
    limits={"adaptive": 16},
)
_TWO_PASSES_IMAGES = 100
_CERTIFIED = 8

# The page's pictures show this attack, and the exported files are proven on images under it.
_SHOWN = bim(8, 2)
_SHOWN_IMAGES = 100
_AMPLIFIED = 4
_RANKED = "balanced", "jpeg:75"
_STAGES = {"before": "benign", "attacked": "attacked", "distilled": "distilled"}

Images = npt.NDArray[np.float32]


class _Pass(NamedTuple):
    """Images ``(n, 32, 32, 1)`` as they are before and under an attack, and both distilled."""

    title: str
    table: str
    before: Images
    attacked: Images
    untouched: Images
    distilled: Images


@dataclass(frozen=True)
class DemoResult:
    """What a run of the demo found and wrote.

    Args:
        report: Accuracies of the classifier alone and behind each preset.
        two_passes: The same where the images are encoded before they are attacked.
        left: How much of a gray-box attack each table leaves, of the change that the attack made:
            the length of what is left along it, from 1 (all) to 0.
        checks: How the SavedModel and the TFLite file compare with Keras.
        files: Everything that was written: the demo's page, both reports as JSON and as pages, the
            SavedModel's version directory and the TFLite file.
    """

    report: EvaluationReport
    two_passes: EvaluationReport
    left: Mapping[str, float]
    checks: tuple[ExportCheck, ...]
    files: tuple[Path, ...]

    @property
    def ranking(self) -> str:
        """Why two of the tables rank as they do, by what was measured; empty without these two."""
        return _ranking(self.report, self.left)


def run_demo(
    out: str | os.PathLike[str],
    *,
    seed: int = 1,
    epochs: int = 20,
    test_images: int = TEST_IMAGES,
    console: Console | None = None,
) -> DemoResult:
    """Train, attack, defend and export a classifier of scikit-learn's digits, and report.

    A small network learns the digits. ``evaluate`` attacks it on the test images that it gets
    right, without the attacker knowing of the layer (gray-box) and through it (adaptive), with
    every preset in front; and again, in two passes, on images that each defence has encoded
    before they are attacked. The network behind the first preset is exported, and ``verify_export``
    compares the files with Keras on attacked images.

    Args:
        out: Directory to write to; made if missing. ``demo.html``, which shows all in short,
            ``report.html``, ``report.json``, both with ``_two_passes``, and ``model.tflite`` are
            replaced, ``saved_model`` gets a further version.
        seed: Seed of the split, the training and the attacks; sets Keras' global seed.
        epochs: Passes over the 1297 training images.
        test_images: Number of test images, at most 500.
        console: Where progress bars go. Default: nowhere.

    Returns:
        The figures, and the paths of what was written.

    Raises:
        ImportError: An extra is missing.
        ValueError: An argument is out of its range, or the network gets no image right.
        ExportProofError: An exported file does not compute what the model does.

    Example:
        >>> run_demo("demo-output", test_images=501)
        Traceback (most recent call last):
        ...
        ValueError: `test_images` must be a whole number from 1 to 500. Received: test_images=501
    """
    checked_whole("test_images", test_images, 1, TEST_IMAGES)
    for module in ("art.attacks.evasion", "matplotlib"):
        import_extra(module, "evaluate")
    out = Path(out)
    keras.utils.set_random_seed(seed)
    digits = load_digits(seed)
    test = digits.test[:test_images]
    classifier = Classifier(_trained(digits.train, epochs, console), class_names=CLASS_NAMES)
    # Certified tables are for images that were encoded with them.
    tables = [preset_table(name) for name in PRESETS if name != "certified"]
    data = test.images, test.labels
    certified = certified_table(_CERTIFIED)
    encoders = [tables[0], certified, "bits:4"]
    with tempfile.TemporaryDirectory() as cache:
        judge = functools.partial(
            evaluate, classifier, data, seed=seed, cache_dir=cache, verbose=console or 0
        )
        report = judge(tables, PROTOCOL)
        two_passes = judge(encoders, TWO_PASSES, passes=2, max_images=_TWO_PASSES_IMAGES)
    pages = [out / "demo.html"]
    for found, name in ((report, "report"), (two_passes, "report_two_passes")):
        found.settings["data"] = "scikit-learn's handwritten digits, enlarged to 32x32"
        found.to_json(out / f"{name}.json")
        pages += [out / f"{name}.json", found.to_html(out / f"{name}.html")]
    right = test[np.flatnonzero(classifier.correct(*data))[:_SHOWN_IMAGES]]
    one = _attacked(classifier, "one pass", right.images, right.labels, tables[0])
    stored = np.float32(encode(right.images, certified))
    two = _attacked(classifier, "two passes", stored, right.labels, certified)
    left = {_name(table): _left(one, FeatureDistillation(table)) for table in tables}
    protected = protect(classifier.model, FeatureDistillation(tables[0]))
    checks = tuple(_proven(protected, one.attacked, right.labels, out, console))
    files = (*pages, *(Path(check.path) for check in checks))
    result = DemoResult(report, two_passes, left, checks, files)
    render_page(
        pages[0],
        "demo.html.j2",
        rows=list(_rows(result)),
        strips=_strips(classifier, [one, two], right.labels),
        attack=_SHOWN.name,
        result=result,
    )
    return result


def _trained(data: LabelledImages, epochs: int, console: Console | None) -> keras.Model:
    model = build_classifier()
    with progress_bars(console) as progress, bar(progress, "Training", epochs) as advance:
        on_epoch_end = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: advance(1))
        train_classifier(model, data, epochs=epochs, callbacks=[on_epoch_end])
    return model


def _attacked(
    classifier: Classifier,
    title: str,
    before: Images,
    labels: npt.NDArray[np.integer],
    table: QuantizationTable,
) -> _Pass:
    """Attack images without knowledge of the layer, and distil them."""
    attacked = _SHOWN.generate(art_classifier(classifier.model), before, labels)
    layer = FeatureDistillation(table)
    distilled = (np.asarray(layer(images)) for images in (before, attacked))
    return _Pass(title, _name(table), before, attacked, *distilled)


def _name(table: QuantizationTable) -> str:
    return str(table.provenance["name"])


def _left(one: _Pass, layer: FeatureDistillation) -> float:
    change = one.attacked - one.before
    left = np.asarray(layer(one.attacked)) - np.asarray(layer(one.before))
    return float(np.vdot(left, change) / np.vdot(change, change))


def _ranking(report: EvaluationReport, left: Mapping[str, float]) -> str:
    rows = {name: report.grid.row(name, "gray-box", _SHOWN.name) for name in left}
    right = {name: row["accuracy"] for name, row in rows.items() if row}
    if not right.keys() >= set(_RANKED):
        return ""
    searched, jpeg = _RANKED
    tables = [preset_table(name) for name in _RANKED]
    first, other = (table.steps_for(1).mean() for table in tables)
    follows = all(
        (left[a] - left[b]) * (right[a] - right[b]) <= 0
        for a, b in itertools.combinations(right, 2)
    )
    return (
        f"Under gray-box {_SHOWN.name}, {right[searched]:.1%} are right behind {searched} and "
        f"{right[jpeg]:.1%} behind {jpeg}, as they leave {left[searched]:.0%} and {left[jpeg]:.0%} "
        f"of what the attack changed: their steps for brightness are {first:.0f} and {other:.0f} "
        f"on average, and these images have no colour, for which {searched} has steps of "
        f"{tables[0].steps[1:].mean():.0f}. "
        + (
            "The less a table leaves here, the more is right."
            if follows
            else "What is left does not explain the order of all tables."
        )
    )


def _rows(result: DemoResult) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each attacker leaves of each defence, in one pass and then in two."""
    attacks = [("benign", "none"), ("gray-box", _SHOWN.name), ("adaptive", "PGD-20 8/255")]
    two = [("two-pass gray-box", _SHOWN.name), ("two-pass adaptive", "PGD-40 8/255")]
    for report, columns in ((result.report, attacks), (result.two_passes, two)):
        for threat_model, attack in columns:
            title = threat_model if attack == "none" else f"{threat_model} {attack}"
            yield (
                title,
                {
                    row["defence"]: row
                    for row in report.rows
                    if (row["threat_model"], row["attack"]) == (threat_model, attack)
                },
            )


def _strips(
    classifier: Classifier, passes: list[_Pass], labels: npt.NDArray[np.integer]
) -> list[dict[str, Any]]:
    """One digit in every pass: right before the attacks, and misread after as many as can be."""
    answers = [
        {stage: classifier.logits(getattr(shown, stage) / 255).argmax(-1) for stage in _STAGES}
        for shown in passes
    ]
    told = [(found["before"] == labels) & (found["attacked"] != labels) for found in answers]
    index = int(np.sum(told, axis=0).argmax())
    strips = []
    for shown, found in zip(passes, answers):
        change = shown.distilled[index] - shown.untouched[index]
        largest = float(np.abs(change).max())
        pictures = [
            {
                "uri": picture_uri(getattr(shown, stage)[index]),
                "stage": "stored" if stage == "before" and shown is passes[1] else title,
                "named": CLASS_NAMES[found[stage][index]],
                "right": bool(found[stage][index] == labels[index]),
            }
            for stage, title in _STAGES.items()
        ]
        strips.append(
            {
                "title": shown.title,
                "table": shown.table,
                "pictures": pictures,
                "left": picture_uri(128 + _AMPLIFIED * change),
                "what": f"up to {largest:.0f} grey levels" if largest else "nothing",
            }
        )
    return strips


def _proven(
    protected: keras.Model,
    attacked: Images,
    labels: npt.NDArray[np.integer],
    out: Path,
    console: Console | None,
) -> Iterator[ExportCheck]:
    """Export both formats, and compare them with Keras on attacked images."""
    threat_model = f"gray-box {_SHOWN.name}"
    for title, export, path in (
        ("SavedModel", export_saved_model, out / "saved_model"),
        ("TFLite file", export_tflite, out / "model.tflite"),
    ):
        with progress_bars(console) as progress, bar(progress, f"Exporting a {title}"):
            # Proven below, on images that are attacked.
            file = export(protected, path, verify=False)
            check = verify_export(file, protected, attacked, labels, threat_model=threat_model)
        check.raise_for_problems()
        yield check
