"""The demo from start to end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from fd_keras._console import bar, progress_bars
from fd_keras._extras import import_extra
from fd_keras.demo.classifier import build_classifier, train_classifier
from fd_keras.demo.digits import TEST_IMAGES, ImageSet, load_digits
from fd_keras.demo.report import write_report
from fd_keras.demo.result import Accuracy, Agreement, Attack, DemoResult, Example
from fd_keras.demo.runtimes import predict_with_saved_model, predict_with_tflite
from fd_keras.evaluation import art_classifier, bim, fgsm, predicted_classes
from fd_keras.export import export_saved_model, export_tflite
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import PRESETS, preset_table
from fd_keras.protection import protect

_EXAMPLES = 6

_EXTRAS = {
    "art.attacks.evasion": "evaluate",
    "matplotlib": "evaluate",
    "ai_edge_litert.interpreter": "export",
}

# Typing alias: the images under each attack, benign ones first.
_Attacked = Mapping[Attack, npt.NDArray[np.float32]]


def run_demo(
    out: str | os.PathLike[str],
    *,
    seed: int = 1,
    epochs: int = 20,
    test_images: int = TEST_IMAGES,
    epsilons: Sequence[int] = (8, 16),
    console: Console | None = None,
) -> DemoResult:
    """Train, attack, defend, export and compare on scikit-learn's digits; write a report.

    A small network learns the digits. ART's FGSM and BIM attack it, without the layer
    (gray-box), on the test images it gets right. The attacked images are then classified
    with every preset in front. The network behind the layer's default table is exported, and
    the exported files are compared with Keras on the same images.

    Args:
        out: Directory to write to; made if missing. ``report.html`` and ``model.tflite`` are
            replaced, ``saved_model`` gets a further version.
        seed: Seed of the split and the training; sets Keras' global seed.
        epochs: Passes over the 1297 training images.
        test_images: Number of test images, at most 500.
        epsilons: Strengths of the attacks in grey levels (0..255). Multiples of 4: BIM's step
            is a quarter, and whole grey levels are what an image file can hold.
        console: Where progress bars go. Default: nowhere.

    Returns:
        The figures, and the paths of what was written.

    Raises:
        ImportError: An extra is missing.
        ValueError: An argument is out of its range, or the network gets nothing right.

    Example:
        >>> run_demo("demo-output", test_images=501)
        Traceback (most recent call last):
        ...
        ValueError: `test_images` must be from 1 to 500. Received: test_images=501
    """
    _check_arguments(test_images, epsilons)
    for module, extra in _EXTRAS.items():
        import_extra(module, extra)
    out = Path(out)
    keras.utils.set_random_seed(seed)
    digits = load_digits(seed)
    test = digits.test[:test_images]
    layers = [FeatureDistillation(preset_table(name)) for name in PRESETS]
    with progress_bars(console) as progress:
        model = _trained_classifier(digits.train, epochs, progress)
        chosen = _correctly_classified(model, test)
        attacked = _attacked(model, chosen, epsilons, progress)
        models = {layer.quantization_table.name: protect(model, layer) for layer in layers}
        exported, protected = next(iter(models.items()))
        accuracies = _accuracies({"none": model, **models}, attacked, chosen.labels, progress)
        # Not proven here: both are compared with Keras on the attacked images below.
        with bar(progress, "Exporting a SavedModel"):
            saved_model = export_saved_model(protected, out / "saved_model", verify=False)
        with bar(progress, "Exporting a TFLite file"):
            tflite = export_tflite(protected, out / "model.tflite", verify=False)
        agreements = _agreements(protected, saved_model, tflite, attacked, progress)
        result = DemoResult(
            seed=seed,
            test_count=len(test),
            test_correct=len(chosen),
            exported=exported,
            accuracies=accuracies,
            agreements=agreements,
            saved_model=saved_model,
            tflite=tflite,
            report=out / "report.html",
        )
        with bar(progress, "Writing the report"):
            shown = next(attack for attack in attacked if attack.name == "BIM")
            examples = _examples(model, layers[0], chosen, attacked[shown])
            write_report(result, [layer.quantization_table for layer in layers], shown, examples)
    return result


def _check_arguments(test_images: int, epsilons: Sequence[int]) -> None:
    if not 1 <= test_images <= TEST_IMAGES:
        raise ValueError(
            f"`test_images` must be from 1 to {TEST_IMAGES}. Received: test_images={test_images!r}"
        )
    if not epsilons or any(epsilon < 4 or epsilon % 4 for epsilon in epsilons):
        raise ValueError(
            f"`epsilons` must be positive multiples of 4. Received: epsilons={epsilons!r}"
        )


def _trained_classifier(data: ImageSet, epochs: int, progress: Progress) -> keras.Model:
    model = build_classifier()
    with bar(progress, "Training", epochs) as advance:
        on_epoch_end = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: advance(1))
        train_classifier(model, data, epochs=epochs, callbacks=[on_epoch_end])
    return model


def _correctly_classified(model: keras.Model, test: ImageSet) -> ImageSet:
    chosen = test[predicted_classes(model, test.images) == test.labels]
    if len(chosen) == 0:
        raise ValueError("`epochs` must suffice for the network to read some test image.")
    return chosen


def _attacked(
    model: keras.Model, chosen: ImageSet, epsilons: Sequence[int], progress: Progress
) -> _Attacked:
    classifier = art_classifier(model)
    attacked = {Attack(): chosen.images}
    for epsilon in epsilons:
        step = epsilon // 4
        for shown, attack in (
            (Attack("FGSM", epsilon, epsilon, 1), fgsm(epsilon)),
            (Attack("BIM", epsilon, step, 10), bim(epsilon, step, 10)),
        ):
            with bar(progress, f"Attacking: {shown}", len(chosen)) as advance:
                attacked[shown] = attack.generate(
                    classifier, chosen.images, chosen.labels, on_batch=advance
                )
    return attacked


def _accuracies(
    models: Mapping[str, keras.Model],
    attacked: _Attacked,
    labels: npt.NDArray[np.int64],
    progress: Progress,
) -> tuple[Accuracy, ...]:
    rows = []
    with bar(progress, "Classifying", len(models) * len(attacked)) as advance:
        for defence, model in models.items():
            for attack, images in attacked.items():
                correct = int(np.sum(predicted_classes(model, images) == labels))
                rows.append(Accuracy(defence, attack, correct, len(labels)))
                advance(1)
    return tuple(rows)


def _agreements(
    model: keras.Model, saved_model: Path, tflite: Path, attacked: _Attacked, progress: Progress
) -> tuple[Agreement, ...]:
    images = np.concatenate(list(attacked.values()))
    expected = model.predict(images, verbose=0)
    rows = []
    for runtime, predict, path in (
        ("SavedModel without fd_keras", predict_with_saved_model, saved_model),
        ("TFLite in LiteRT", predict_with_tflite, tflite),
    ):
        with bar(progress, f"Running {runtime}"):
            logits = predict(path, images)
        same = int(np.sum(logits.argmax(-1) == expected.argmax(-1)))
        rows.append(Agreement(runtime, float(np.abs(logits - expected).max()), same, len(images)))
    return tuple(rows)


def _examples(
    model: keras.Model,
    layer: FeatureDistillation,
    chosen: ImageSet,
    attacked: npt.NDArray[np.float32],
) -> list[Example]:
    """The first image of each digit, whatever became of it."""
    digits, first = np.unique(chosen.labels, return_index=True)
    shown = first[:_EXAMPLES]
    before, after = chosen.images[shown], attacked[shown]
    distilled_before, distilled = np.asarray(layer(before)), np.asarray(layer(after))
    classes = [predicted_classes(model, images) for images in (before, after, distilled)]
    columns = zip(digits, before, after, distilled_before, distilled, zip(*classes))
    return [Example(*column) for column in columns]
