"""Run the demo: train, attack, defend and export a small classifier, and report."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from rich.console import Console

from fd_keras._checks import checked_whole
from fd_keras._console import bar, progress_bars
from fd_keras._extras import import_extra
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
from fd_keras.evaluation import EvaluationReport, Protocol, art_classifier, bim, evaluate, fgsm, pgd
from fd_keras.export import ExportCheck, export_saved_model, export_tflite, verify_export
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import PRESETS, preset_table
from fd_keras.protection import protect

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

# The exported files are proven on images under this attack.
_PROVEN_UNDER = bim(8, 2)
_PROVEN_IMAGES = 100


@dataclass(frozen=True)
class DemoResult:
    """What a run of the demo found and wrote.

    Args:
        report: Accuracies of the classifier alone and behind each preset.
        two_passes: The same where the images are encoded before they are attacked.
        checks: How the SavedModel and the TFLite file compare with Keras.
        files: Everything that was written: both reports as pages and as JSON, the SavedModel's
            version directory and the TFLite file.
    """

    report: EvaluationReport
    two_passes: EvaluationReport
    checks: tuple[ExportCheck, ...]
    files: tuple[Path, ...]


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
        out: Directory to write to; made if missing. ``report.html``, ``report.json``, both with
            ``_two_passes``, and ``model.tflite`` are replaced, ``saved_model`` gets a further
            version.
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
    encoders = [tables[0], certified_table(_CERTIFIED), "bits:4"]
    with tempfile.TemporaryDirectory() as cache:
        judge = functools.partial(
            evaluate, classifier, data, seed=seed, cache_dir=cache, verbose=console or 0
        )
        report = judge(tables, PROTOCOL)
        two_passes = judge(encoders, TWO_PASSES, passes=2, max_images=_TWO_PASSES_IMAGES)
    pages = []
    for found, name in ((report, "report"), (two_passes, "report_two_passes")):
        found.settings["data"] = "scikit-learn's handwritten digits, enlarged to 32x32"
        found.to_json(out / f"{name}.json")
        pages += [out / f"{name}.json", found.to_html(out / f"{name}.html")]
    protected = protect(classifier.model, FeatureDistillation(tables[0]))
    checks = tuple(_proven(protected, classifier, test, out, console))
    return DemoResult(report, two_passes, checks, (*pages, *(Path(check.path) for check in checks)))


def _trained(data: LabelledImages, epochs: int, console: Console | None) -> keras.Model:
    model = build_classifier()
    with progress_bars(console) as progress, bar(progress, "Training", epochs) as advance:
        on_epoch_end = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: advance(1))
        train_classifier(model, data, epochs=epochs, callbacks=[on_epoch_end])
    return model


def _proven(
    protected: keras.Model,
    classifier: Classifier,
    test: LabelledImages,
    out: Path,
    console: Console | None,
) -> Iterator[ExportCheck]:
    """Export both formats, and compare them with Keras on attacked images."""
    right = test[np.flatnonzero(classifier.correct(test.images, test.labels))[:_PROVEN_IMAGES]]
    attacker = art_classifier(classifier.model)
    attacked = _PROVEN_UNDER.generate(attacker, right.images, right.labels)
    threat_model = f"gray-box {_PROVEN_UNDER.name}"
    for title, export, path in (
        ("SavedModel", export_saved_model, out / "saved_model"),
        ("TFLite file", export_tflite, out / "model.tflite"),
    ):
        with progress_bars(console) as progress, bar(progress, f"Exporting a {title}"):
            # Proven below, on images that are attacked.
            file = export(protected, path, verify=False)
            check = verify_export(
                file, protected, attacked, right.labels, threat_model=threat_model
            )
        check.raise_for_problems()
        yield check
