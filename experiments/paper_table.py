"""The paper's table: every attack, every defence, two networks, all threat models.

Run: ``python -m experiments.paper_table``, or ``make paper-table``; with ``--only imagenet`` or
``--only cifar10``, earlier results of the other network stay in the files. What was computed stays
in ``--cache``, so that a run that was stopped resumes where it was. ``--page`` runs nothing: it
writes Markdown and pages anew from the JSON file, which has all figures but no pictures.
"""

import dataclasses
import itertools
import json

import numpy as np
from rich.console import Console

from experiments.harness import argument_parser, parsed, write_json, write_text
from experiments.networks import RUNS, classifier_and_data
from fd_keras import CoefficientStatistics, design_table, evaluate
from fd_keras.evaluation import EvaluationReport
from fd_keras.evaluation.protocols import protocol_named
from fd_keras.evaluation.selection import select

# How much slower than the layer the paper found other defences, for the last line of each network.
PAPER_SPEED_UP = 259

BASELINES = ("JPEG", "bit depth", "median", "SLQ", "TVM", "quilting")

# Permitted squared error in an accuracy-sensitive band, factor for chroma, block grids.
DISTORTIONS = (12, 40, 75, 150)
CHROMA = (1, 6)
SPINS = (1, 2, 4)


def designed(images, epsilon):
    """Step-1 tables to choose from, designed on the validation split."""
    statistics = CoefficientStatistics.from_data(images, color_space="ycbcr")
    tables = []
    for distortion, chroma, spins in itertools.product(DISTORTIONS, CHROMA, SPINS):
        table = design_table(
            statistics,
            epsilon,
            required_removal=0.985,
            distortion_budget=[distortion, chroma * distortion, chroma * distortion],
            cycle_spins=spins,
        )
        name = f"designed {distortion}/{chroma * distortion}, {spins} grids"
        provenance = {**table.provenance, "name": name}
        tables.append(dataclasses.replace(table, provenance=provenance))
    return tables


def run(name, cache, console):
    """The report on one network."""
    settings = RUNS[name]
    classifier, data = classifier_and_data(name)
    images = validation_images(classifier, data, settings["max_images"])
    tables = designed(images, settings["epsilon"])
    report = evaluate(
        classifier,
        data,
        ["liu2019", "zigzag15", tables, *BASELINES],
        protocol_named(settings["protocol"], settings["limits"]),
        max_images=settings["max_images"],
        cache_dir=cache,
        console=console,
    )
    report.settings["command"] = "python -m experiments.paper_table"
    report.settings["data"] = settings["data"]
    return report


def validation_images(classifier, data, count):
    """The validation split of `evaluate`, as uint8: every second image that is used."""
    used = select(classifier, data, max_images=count, batch_size=32)
    return np.uint8(np.rint(255 * used.images[::2]))


def speed_ratios(report):
    """The chosen table, and the time of each defence as a multiple of its time."""
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
            f"{settings['seed']}. `make paper-table` writes a page with everything, "
            f"`paper_table_{name}.html`.",
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
    parser = argument_parser(__doc__)
    parser.add_argument("--only", choices=list(RUNS), help="run this network alone")
    parser.add_argument("--page", action="store_true", help="only write Markdown and pages anew")
    arguments = parsed(parser)
    names = [] if arguments.page else [arguments.only] if arguments.only else list(RUNS)
    fresh = {name: run(name, arguments.cache, Console(stderr=True)) for name in names}
    target = arguments.out / "paper_table.json"
    found = {**kept(target), **fresh}
    reports = {name: found[name] for name in RUNS if name in found}
    if fresh:
        write_json(target, {name: json.loads(each.to_json()) for name, each in reports.items()})
    for name, report in (reports if arguments.page else fresh).items():
        report.to_html(arguments.out / f"paper_table_{name}.html")
    write_text(arguments.out / "paper_table.md", summary(reports))


if __name__ == "__main__":
    main()
