"""The paper's table: every attack, every defence, two networks, all threat models.

Run: ``python -m experiments.paper_table``, or ``make paper-table``; with ``--only imagenet`` or
``--only cifar10``, earlier results of the other network stay in the files. What was computed stays
in ``--cache``, so that a run which was stopped goes on where it was.
"""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

from rich.console import Console

from experiments import cifar10, imagenet
from fd_keras import CoefficientStatistics, design_table, evaluate
from fd_keras._files import atomic_path
from fd_keras.classifier import Classifier
from fd_keras.evaluation import EvaluationReport, protocol_named

CACHE = Path(__file__).parents[1] / ".cache" / "evaluation"

# What the paper claims, for the last column of the summary.
PAPER_SPEED_UP = 259

# Few images where an attack or a rival is slow; each figure is printed with its count.
RUNS = {
    "imagenet": {
        "title": "MobileNetV2 1.0/224 on ImageNet images",
        "data": "500 ImageNet images, one for every second class",
        "protocol": "evademl-imagenet",
        "epsilon": 2.0,
        "max_images": 1000,
        "limits": {
            "DeepFool": 48,
            "CW-L2": 16,
            "adaptive": 32,
            "Square": 8,
            "TVM": 48,
            "quilting": 32,
        },
    },
    "cifar10": {
        "title": "ResNet-14 on lossless CIFAR-10 images",
        "data": "2000 lossless CIFAR-10 images",
        "protocol": "evademl-cifar10",
        "epsilon": 2.0,
        "max_images": 600,
        "limits": {"DeepFool": 96, "CW-L2": 48, "adaptive": 64, "Square": 32, "quilting": 150},
    },
}

RIVALS = ("JPEG", "bit depth", "median", "SLQ", "TVM", "quilting")

# Budget of squared error in an accuracy-sensitive band; factor for chroma; block grids.
BUDGETS = (12, 40, 75, 150)
CHROMA = (1, 6)
SPINS = (1, 2, 4)


def designed(images, epsilon):
    """Step-1 tables to choose from, designed on images that are not reported."""
    statistics = CoefficientStatistics.from_data(images, color_space="ycbcr")
    tables = []
    for budget, chroma, spins in itertools.product(BUDGETS, CHROMA, SPINS):
        table = design_table(
            statistics,
            epsilon,
            required_removal=0.985,
            distortion_budget=[budget, chroma * budget, chroma * budget],
            cycle_spins=spins,
        )
        name = f"designed {budget}/{chroma * budget}, {spins} grids"
        provenance = {**table.provenance, "name": name}
        tables.append(dataclasses.replace(table, provenance=provenance))
    return tables


def run(name, cache, console):
    """The report on one network."""
    settings = RUNS[name]
    source = imagenet if name == "imagenet" else cifar10
    model = imagenet.mobilenet() if name == "imagenet" else cifar10.resnet14()
    images, labels = source.images_and_labels()
    tables = designed(
        tuning_images(model, images, labels, settings["max_images"]), settings["epsilon"]
    )
    report = evaluate(
        Classifier(model, value_range=(0, 1)),
        ((images / 255).astype("float32"), labels),
        ["liu2019", "zigzag15", tables, *RIVALS],
        protocol_named(settings["protocol"], settings["limits"]),
        max_images=settings["max_images"],
        cache_dir=cache,
        console=console,
    )
    report.settings["command"] = "python -m experiments.paper_table"
    report.settings["data"] = settings["data"]
    return report


def tuning_images(model, images, labels, count):
    """The images that `evaluate` tunes on: every second one that is classified correctly."""
    predicted = model.predict((images / 255).astype("float32"), verbose=0).argmax(-1)
    return images[predicted == labels][:count][::2]


def speed_ratios(report):
    """How many times as long as the chosen table each defence takes for an image."""
    times = {d["name"]: d["ms_per_image"] for d in report.defences}
    ours = [d["name"] for d in report.defences if d["family"] == "feature distillation"][-1]
    return ours, {name: value / times[ours] for name, value in times.items() if name != "none"}


def summary(reports):
    """The results as Markdown."""
    lines = ["# The paper's table", ""]
    for name, report in reports.items():
        ours, ratios = speed_ratios(report)
        settings = report.settings
        slow = ("TVM", "quilting")
        families = {d["name"]: d["family"] for d in report.defences}
        shown = [n for n in ratios if families[n] in slow]
        lines += [
            f"## {RUNS[name]['title']}",
            "",
            report.verdict,
            "",
            f"{settings['selection']} Attacks: ART, protocol `{settings['protocol']}`, seed "
            f"{settings['seed']}. Pages with everything: "
            f"[{name}](paper_table_{name}.html).",
            "",
            report.table("markdown"),
            "",
            f"Time per image beside `{ours}`, measured in turn in one process: "
            + ", ".join(f"{n} {ratios[n]:.0f} times as long" for n in shown)
            + f" (the paper claims {PAPER_SPEED_UP}).",
            "",
        ]
    settings = next(iter(reports.values())).settings
    versions = ", ".join(f"{k} {v}" for k, v in settings["versions"].items())
    lines += [f"`make paper-table`; {settings['machine']}; {versions}.", ""]
    return "\n".join(lines)


def kept(path):
    """The reports in an earlier file of results."""
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    return {name: EvaluationReport.from_json(json.dumps(data)) for name, data in earlier.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    parser.add_argument("--only", choices=list(RUNS))
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(RUNS)
    fresh = {name: run(name, arguments.cache, Console(stderr=True)) for name in names}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, report in fresh.items():
        report.to_html(arguments.out / f"paper_table_{name}.html")
    target = arguments.out / "paper_table.json"
    found = {**kept(target), **fresh}
    reports = {name: found[name] for name in RUNS if name in found}
    results = {name: json.loads(report.to_json()) for name, report in reports.items()}
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    with atomic_path(arguments.out / "paper_table.md") as temporary:
        temporary.write_text(summary(reports))


if __name__ == "__main__":
    main()
