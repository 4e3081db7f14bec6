"""Prove every export format of two classifiers behind several tables.

The proofs are on benign and on attacked images. Designed and searched tables and the ranges of int8
bodies come from other images. Run: ``python -m experiments.export_proof [--out DIR]``
"""

import platform
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from experiments.export_subjects import (
    REPRESENTATIVE,
    SEARCHED_IMAGES,
    TRIALS,
    digits_subject,
    imagenet_subject,
    tables_of,
)
from experiments.harness import argument_parser, parsed, write_json, write_text
from fd_keras import (
    FeatureDistillation,
    export_saved_model,
    export_tflite,
    preset_table,
    protect,
    verify_export,
)
from fd_keras._console import text_table
from fd_keras.evaluation.accuracies import wilson_interval
from fd_keras.export.quantization import QUANTIZATIONS
from fd_keras.export.runtimes import run_tflite

KINDS = ("benign", "attacked")
LATENCY_ROUNDS = 9
HEADINGS = [
    "model",
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


def exported(model, folder, representative):
    """A name and a path for each format."""
    yield "SavedModel", export_saved_model(model, folder / "served", verify=False)
    for quantize in QUANTIZATIONS:
        path = folder / f"{quantize}.tflite"
        arguments = {"quantize": quantize, "representative_data": representative}
        yield f"TFLite {quantize}", export_tflite(model, path, verify=False, **arguments)


def latencies(subject, table, folder):
    """Milliseconds of one image with and without the layer, taken in turns, in each format."""
    model, images = subject.model, subject.images[:10]
    representative = subject.known[:REPRESENTATIVE]
    protected = protect(model, FeatureDistillation(table, value_range=subject.value_range))
    homes = {"with": (protected, folder / "with"), "without": (model, folder / "without")}
    paths = {key: dict(exported(*home, representative)) for key, home in homes.items()}
    found = {}
    for quantize in QUANTIZATIONS:
        name, runs = f"TFLite {quantize}", {key: [] for key in homes}
        for _ in range(LATENCY_ROUNDS):
            for key, timed in runs.items():
                timed.append(run_tflite(paths[key][name].read_bytes(), images).milliseconds)
        found[name] = {key: float(np.median(timed)) for key, timed in runs.items()}
    return {"model": subject.name, "table": table.name, "milliseconds": found}


def proofs(subject, folder, console):
    """A row for each table, format and runtime."""
    attacked = subject.attacked(subject.images, subject.labels)
    images = dict(zip(KINDS, (subject.images, attacked)))
    for name, table in tables_of(subject, folder).items():
        layer = FeatureDistillation(table, value_range=subject.value_range)
        shape = subject.images.shape[1:]
        protected = protect(subject.model, layer, input_shape=shape)
        home = folder / name.replace(":", "-").replace("/", "-")
        for format_name, path in exported(protected, home, subject.known[:REPRESENTATIVE]):
            checks = {
                kind: verify_export(
                    path,
                    protected,
                    images[kind],
                    subject.labels,
                    threat_model=subject.threat_models[kind],
                )
                for kind in KINDS
            }
            console.print(*map(str, checks.values()), sep="\n", highlight=False)
            yield from rows_of(subject, name, format_name, checks)


def rows_of(subject, table, name, checks):
    for runs in zip(*(checks[kind].runtimes for kind in KINDS)):
        pixels = sum(run.pixels for run in runs)
        beyond = sum(run.pixels_beyond for run in runs)
        benign = runs[0]
        yield {
            "model": subject.name,
            "table": table,
            "format": name,
            "runtime": benign.runtime,
            "bytes": checks["benign"].size,
            "images": checks["benign"].images,
            "share_of_pixels_beyond_1_level": beyond / pixels,
            "largest_pixel_difference": max(run.largest_pixel_difference for run in runs),
            "same_class": {kind: run.same_class for kind, run in zip(KINDS, runs)},
            "relative_error": {kind: run.relative_error for kind, run in zip(KINDS, runs)},
            "accuracy": {kind: run.accuracy for kind, run in zip(KINDS, runs)},
            "keras_accuracy": {kind: checks[kind].keras_accuracy for kind in KINDS},
            "threat_models": subject.threat_models,
            "milliseconds": benign.milliseconds,
            "layer_milliseconds": benign.distillation_milliseconds,
            "proven": all(check.passed for check in checks.values()),
            "problems": [
                f"{kind} images: {problem}"
                for kind, run in zip(KINDS, runs)
                for problem in checks[kind].problems
                if problem.startswith(f"{run.runtime}: ")
            ],
        }


def cells(row):
    def milliseconds(value):
        return "" if value is None else f"{value:.2f}"

    def percent(kind):
        change = 100 * (row["accuracy"][kind] - row["keras_accuracy"][kind])
        return f"{100 * row['accuracy'][kind]:.1f} ({change:+.1f})"

    same = [f"{100 * row['same_class'][kind]:.1f}" for kind in KINDS]
    return [
        row["model"],
        row["table"],
        row["format"],
        row["runtime"],
        f"{row['bytes'] / 1e6:.2f}",
        f"{100 * row['share_of_pixels_beyond_1_level']:.4f} %",
        f"{row['largest_pixel_difference']:.2g}",
        " / ".join(same),
        percent("benign"),
        percent("attacked"),
        milliseconds(row["milliseconds"]),
        milliseconds(row["layer_milliseconds"]),
    ]


def pooled(rows):
    """A table of each model and TFLite format in LiteRT, over all quantisation tables."""
    wanted = [row for row in rows if row["runtime"] == "LiteRT"]
    lines = []
    for key in dict.fromkeys((row["model"], row["format"]) for row in wanted):
        chosen = [row for row in wanted if (row["model"], row["format"]) == key]
        line = list(key)
        for kind in KINDS:
            count = sum(row["images"] for row in chosen)
            same = round(sum(row["same_class"][kind] * row["images"] for row in chosen))
            low, high = wilson_interval(same, count)
            line.append(
                f"{same} of {count}: {100 * same / count:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            )
            changes = [
                100 * (row["accuracy"][kind] - row["keras_accuracy"][kind]) for row in chosen
            ]
            line.append(f"{np.mean(changes):+.1f} ({max(changes, key=abs):+.1f})")
        lines.append(line)
    heads = ["benign, same class", "accuracy", "attacked, same class", "accuracy"]
    return text_table(["model", "format", *heads], lines, markdown=True)


def unproven(rows):
    """Lines on the exports that are refused."""
    problems = [
        f"* {row['model']}, {row['table']}, {row['format']}: {problem}"
        for row in rows
        for problem in row["problems"]
    ]
    if not problems:
        return ["Every export is proven by the limits of `verify_export`."]
    return ["Not proven by the limits of `verify_export` (refused):", "", *problems]


def markdown(result):
    rows = result["rows"]
    described = [
        f"{s['title']} ({s['images']} images; attacked: {s['attacked']})"
        for s in result["subjects"]
    ]
    lines = [
        "# Exports proven equal",
        "",
        f"Two classifiers behind several tables, exported to every format: {'; '.join(described)}. "
        "All images are such that the classifier gets them right without the layer. Threat model "
        "of the attacked accuracy: gray-box, FGSM (ART, L-inf) on the classifier without the "
        f"layer. Other images gave the int8 ranges ({REPRESENTATIVE}), the designed and the "
        f"searched tables ({SEARCHED_IMAGES}, {TRIALS} trials: an example, not a good table).",
        "",
        f"Command: `{result['command']}`. {result['machine']}. Latencies are medians of single "
        "images, one thread in LiteRT, on a machine busy with other work: only the last table's, "
        "taken in turns, are for comparing.",
        "",
        "Same class: share of the benign / attacked images with Keras' class. Accuracies in %, in "
        "brackets the points they differ from Keras.",
        "",
        text_table(HEADINGS, [cells(row) for row in rows], markdown=True),
        "",
        "All tables together, in LiteRT: images with Keras' class (Wilson's 95 % interval; the "
        "same images behind each table), and points by which the accuracy differs from Keras, mean "
        "and worst table.",
        "",
        pooled(rows),
        "",
        *unproven(rows),
        "",
        "Latency of one image in LiteRT with and without the layer "
        f"({result['latencies']['model']}, {result['latencies']['table']}), one thread, medians of "
        f"{LATENCY_ROUNDS} rounds, in turns:",
        "",
        text_table(
            ["format", "with, ms", "without, ms"],
            [
                [name, f"{found['with']:.2f}", f"{found['without']:.2f}"]
                for name, found in result["latencies"]["milliseconds"].items()
            ],
            markdown=True,
        ),
    ]
    return "\n".join([*lines, ""])


def main():
    arguments = parsed(argument_parser(__doc__, cache=None))
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subjects = [digits_subject(folder), imagenet_subject()]
        for subject in subjects:
            rows += proofs(subject, folder / subject.name, console)
        timed = latencies(subjects[-1], preset_table("liu2019"), folder / "timed")
    stack = f"Python {platform.python_version()}, TensorFlow {tf.__version__}"
    result = {
        "command": "python -m experiments.export_proof",
        "machine": f"{stack}, Keras {keras.__version__}, {platform.machine()}, 2 cores",
        "subjects": [
            {"title": s.title, "images": len(s.images), "attacked": s.threat_models["attacked"]}
            for s in subjects
        ],
        "rows": rows,
        "latencies": timed,
    }
    write_json(arguments.out / "export_proof.json", result)
    write_text(arguments.out / "export_proof.md", markdown(result))
    print(text_table(HEADINGS, [cells(row) for row in rows]))


if __name__ == "__main__":
    main()
