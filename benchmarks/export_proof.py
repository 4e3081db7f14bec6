"""Every export format of MobileNetV2 behind several tables, proven on benign and attacked images.

Statistics of the designed table and the ranges of int8 bodies come from every second image, the
proofs from 100 of the others. Run: ``python -m benchmarks.export_proof [--out benchmarks/results]``
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from benchmarks.imagenet import images_and_labels, mobilenet
from fd_keras import (
    CoefficientStatistics,
    FeatureDistillation,
    design_table,
    export_saved_model,
    export_tflite,
    preset_table,
    protect,
    verify_export,
)
from fd_keras.evaluation import art_classifier, fgsm, predicted_classes
from fd_keras.export.quantization import QUANTIZATIONS
from fd_keras.export.runtimes import run_tflite

COUNT = 100
REPRESENTATIVE = 64
EPSILON = 0.0078
LATENCY_ROUNDS = 9
THREAT_MODELS = {"benign": "benign", "attacked": f"gray-box FGSM eps {EPSILON}"}
HEADINGS = [
    "table",
    "format",
    "runtime",
    "MB",
    "pixels > 1 level",
    "largest",
    "same class",
    "benign acc.",
    "attacked acc.",
    "ms",
    "layer ms",
]


def data(model):
    """Images to design and calibrate on; images to prove on, benign and attacked; their labels."""
    images, labels = images_and_labels()
    known = images[0::2]
    scaled, labels = (images[1::2] / 255).astype(np.float32), labels[1::2]
    right = np.flatnonzero(predicted_classes(model, scaled) == labels)[:COUNT]
    scaled, labels = scaled[right], labels[right]
    classifier = art_classifier(model, value_range=(0, 1))
    attacked = fgsm(EPSILON).generate(classifier, scaled, labels)
    return known, {"benign": scaled, "attacked": attacked}, labels


def tables(known):
    statistics = CoefficientStatistics.from_data(known, color_space="ycbcr")
    return [
        *(preset_table(name) for name in ("liu2019", "zigzag15", "jpeg:75")),
        design_table(statistics, 2.0, cycle_spins=1),
    ]


def exported(model, folder, representative):
    """A name and a path for each format."""
    yield "SavedModel", export_saved_model(model, folder / "served", verify=False)
    for quantize in QUANTIZATIONS:
        path = folder / f"{quantize}.tflite"
        arguments = {"quantize": quantize, "representative_data": representative}
        yield f"TFLite {quantize}", export_tflite(model, path, verify=False, **arguments)


def latencies(model, table, folder, representative, images):
    """Milliseconds of one image with and without the layer, taken in turns, in each format."""
    protected = protect(model, FeatureDistillation(table, value_range=(0, 1)))
    homes = {"with": (protected, folder / "with"), "without": (model, folder / "without")}
    paths = {key: dict(exported(*home, representative)) for key, home in homes.items()}
    found = {}
    for quantize in QUANTIZATIONS:
        name, runs = f"TFLite {quantize}", {key: [] for key in homes}
        for _ in range(LATENCY_ROUNDS):
            for key, timed in runs.items():
                timed.append(run_tflite(paths[key][name].read_bytes(), images[:10]).milliseconds)
        found[name] = {key: float(np.median(timed)) for key, timed in runs.items()}
    return {"table": table.name, "milliseconds": found}


def rows_of(table, name, checks):
    for runs in zip(*(checks[kind].runtimes for kind in THREAT_MODELS)):
        pixels = sum(run.pixels for run in runs)
        beyond = sum(run.pixels_beyond for run in runs)
        benign = runs[0]
        yield {
            "table": table.name,
            "format": name,
            "runtime": benign.runtime,
            "bytes": checks["benign"].size,
            "images": COUNT,
            "share_of_pixels_beyond_1_level": beyond / pixels,
            "largest_pixel_difference": max(run.largest_pixel_difference for run in runs),
            "same_class": {k: run.same_class for k, run in zip(THREAT_MODELS, runs)},
            "accuracy": {k: run.accuracy for k, run in zip(THREAT_MODELS, runs)},
            "keras_accuracy": {k: checks[k].keras_accuracy for k in THREAT_MODELS},
            "threat_models": THREAT_MODELS,
            "milliseconds": benign.milliseconds,
            "layer_milliseconds": benign.distillation_milliseconds,
            "proven": all(check.passed for check in checks.values()),
            "problems": [problem for check in checks.values() for problem in check.problems],
        }


def cells(row):
    def milliseconds(value):
        return "" if value is None else f"{value:.2f}"

    def percent(kind):
        change = 100 * (row["accuracy"][kind] - row["keras_accuracy"][kind])
        return f"{100 * row['accuracy'][kind]:.0f} ({change:+.0f})"

    same = [f"{100 * row['same_class'][kind]:.0f}" for kind in THREAT_MODELS]
    return [
        row["table"],
        row["format"],
        row["runtime"],
        f"{row['bytes'] / 1e6:.1f}",
        f"{100 * row['share_of_pixels_beyond_1_level']:.4f} %",
        f"{row['largest_pixel_difference']:.2g}",
        " / ".join(same),
        percent("benign"),
        percent("attacked"),
        milliseconds(row["milliseconds"]),
        milliseconds(row["layer_milliseconds"]),
    ]


def markdown(result):
    lines = [
        "# Exports proven equal",
        "",
        f"MobileNetV2 1.0/224 behind four tables, {COUNT} ImageNet images that it classifies "
        "correctly without the layer, benign and attacked. Threat model of the attacked accuracy: "
        f"gray-box, FGSM eps {EPSILON} (ART, L-inf) on the classifier without the layer. Others "
        f"gave the int8 ranges ({REPRESENTATIVE}) and the designed table (for 2/255).",
        "",
        f"Command: `{result['command']}`. {result['machine']}. Latencies are medians of single "
        "images, one thread in LiteRT, on a machine busy with other work: only the last table's, "
        "taken in turns, are for comparing.",
        "",
        "Same class: share of the benign / attacked images with Keras' class. Accuracies in %, in "
        "brackets the points they differ from Keras.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
        *(f"| {' | '.join(cells(row))} |" for row in result["rows"]),
        "",
    ]
    lines += [
        "Not proven by the limits of `verify_export` (an export with these images is refused):",
        "",
        *dict.fromkeys(
            f"* {row['table']}, {row['format']}: {problem}"
            for row in result["rows"]
            for problem in row["problems"]
        ),
        "",
        "Latency of one image in LiteRT with and without the layer "
        f"({result['latencies']['table']}), one thread, medians of {LATENCY_ROUNDS} rounds, in "
        "turns:",
        "",
        "| format | with, ms | without, ms |",
        "|---|---|---|",
    ]
    for name, found in result["latencies"]["milliseconds"].items():
        lines.append(f"| {name} | {found['with']:.2f} | {found['without']:.2f} |")
    return "\n".join([*lines, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    console = Console()
    model = mobilenet()
    known, images, labels = data(model)
    representative = (known[:REPRESENTATIVE] / 255).astype(np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain")
        timed = latencies(model, preset_table("liu2019"), plain, representative, images["benign"])
        for table in tables(known):
            protected = protect(model, FeatureDistillation(table, value_range=(0, 1)))
            home = Path(folder, table.name.replace(":", "-"))
            for name, path in exported(protected, home, representative):
                checks = {
                    kind: verify_export(path, protected, images[kind], labels, threat_model=threat)
                    for kind, threat in THREAT_MODELS.items()
                }
                rows += rows_of(table, name, checks)
                console.print(*map(str, checks.values()), sep="\n", highlight=False)
    stack = f"Python {platform.python_version()}, TensorFlow {tf.__version__}"
    result = {
        "command": "python -m benchmarks.export_proof",
        "machine": f"{stack}, Keras {keras.__version__}, {platform.machine()}, 2 cores",
        "rows": rows,
        "latencies": timed,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "export_proof.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "export_proof.md").write_text(markdown(result))
    shown = Table(*HEADINGS)
    for row in rows:
        shown.add_row(*cells(row))
    console.print(shown)


if __name__ == "__main__":
    main()
