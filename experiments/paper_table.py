"""The paper's table: every attack, every defence, two networks, one pass and two.

Run: ``python -m experiments.paper_table``, or ``make paper-table``; with ``--only imagenet`` or
``--only cifar10``, earlier results of the other network stay in the files, and with ``--passes 1``
or ``--passes 2``, those of the other number of passes. What was computed stays
in ``--cache``, so that a run that was stopped resumes where it was. ``--page`` runs nothing: it
writes Markdown and pages anew from the JSON file, which has all figures but no pictures.
"""

import contextlib
import dataclasses
import itertools
import json
import time

import numpy as np
from rich.console import Console

from experiments.harness import argument_parser, parsed, write_json, write_text
from experiments.networks import RUNS, classifier_and_data, in_order
from fd_keras import CoefficientStatistics, design_table, evaluate
from fd_keras._console import text_table
from fd_keras.certification import certified_table
from fd_keras.evaluation import EvaluationReport
from fd_keras.evaluation.accuracies import TWO_PASS
from fd_keras.evaluation.protocols import protocol_named
from fd_keras.evaluation.selection import select

# How much slower than the layer the paper found other defences, for the last line of each network.
PAPER_SPEED_UP = 259

BASELINES = ("JPEG", "bit depth", "median", "SLQ", "TVM", "quilting")

# Permitted squared error in an accuracy-sensitive band, factor for chroma, block grids.
DISTORTIONS = (12, 40, 75, 150)
CHROMA = (1, 6)
SPINS = (1, 2, 4)


# In two passes, with settings that nothing was chosen for: more of them on the smaller images.
ENCODERS = {
    "imagenet": ("liu2019", certified_table(1), "jpeg:40", "bits:4"),
    "cifar10": (
        *("liu2019", certified_table(1), certified_table(2)),
        *("jpeg:40", "jpeg:10,4:4:4", "bits:4"),
    ),
}


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


def run(name, passes, cache, console):
    """The report on one network."""
    clock = cache / f"paper_table_{key_of(name, passes)}.seconds"
    with added_up(clock):
        report = (two_passes if passes == 2 else one_pass)(name, cache, console)
    report.settings["seconds_from_nothing"] = float(clock.read_text())
    report.settings["command"] = "python -m experiments.paper_table"
    report.settings["data"] = RUNS[name]["data"]
    return report


@contextlib.contextmanager
def added_up(path):
    """Add the seconds that this takes, also where it is stopped, to those in a file."""
    before = float(path.read_text()) if path.exists() else 0.0
    started = time.monotonic()
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"{before + time.monotonic() - started:.0f}\n")


def two_passes(name, cache, console):
    """Images encoded, attacked and distilled."""
    classifier, data = classifier_and_data(name)
    return evaluate(
        classifier,
        in_order(data),
        ENCODERS[name],
        protocol_named(RUNS[name]["protocol"], RUNS[name]["two_passes"]["limits"]),
        passes=2,
        max_images=RUNS[name]["two_passes"]["max_images"],
        cache_dir=cache,
        verbose=console,
    )


def one_pass(name, cache, console):
    """Images attacked and distilled."""
    settings = RUNS[name]
    classifier, data = classifier_and_data(name)
    images = validation_images(classifier, data, settings["max_images"])
    tables = designed(images, settings["epsilon"])
    return evaluate(
        classifier,
        in_order(data),
        ["liu2019", "zigzag15", tables, *BASELINES],
        protocol_named(settings["protocol"], settings["limits"]),
        max_images=settings["max_images"],
        cache_dir=cache,
        verbose=console,
    )


def validation_images(classifier, data, count):
    """The validation split of `evaluate`, as uint8: every second image that is used."""
    used = select(classifier, in_order(data), max_images=count, batch_size=32)
    return np.uint8(np.rint(255 * used.images[::2]))


def speed_ratios(report):
    """The chosen table, and the time of each defence as a multiple of its time."""
    times = {d["name"]: d["ms_per_image"] for d in report.defences}
    ours = [d["name"] for d in report.defences if d["family"] == "feature distillation"][-1]
    return ours, {name: value / times[ours] for name, value in times.items() if name != "none"}


def summary(reports):
    """The results as Markdown."""
    lines = ["# The paper's table", ""]
    for name in RUNS:
        one, two = (reports.get(key_of(name, passes)) for passes in (1, 2))
        if one is None and two is None:
            continue
        lines += [f"## {RUNS[name]['title']}", ""]
        if one is not None and two is not None:
            lines += side_by_side(one, two)
        if one is not None:
            lines += ["### One pass", "", *section(name, 1, one), speeds(one), ""]
        if two is not None:
            lines += ["### Two passes", "", *section(name, 2, two), files(two), ""]
    lines += ["`make paper-table`", ""]
    return "\n".join(lines)


def section(name, passes, report):
    """Verdict, selection and tables of one report."""
    settings = report.settings
    lines = [
        report.verdict,
        "",
        *without_cw(passes, report),
        f"{settings['selection']} Protocol `{settings['protocol']}`, seed {settings['seed']}; "
        f"{versions(settings)}.{duration(settings)} In brackets 95 % intervals. `make "
        f"paper-table` writes a page with everything, `paper_table_{key_of(name, passes)}.html`.",
        "",
        report.table("markdown", intervals=True),
        "",
    ]
    return lines + detectors(report.detection)


def without_cw(passes, report):
    """Why the targeted attacks are missing, where they are."""
    if "CW-L2 next" in report.grid.attacks(TWO_PASS * (passes == 2) + "gray-box"):
        return []
    why = {
        1: "CW-L2 takes 3 to 6 hours for 200 of these images and one kind of target",
        2: "its hours would come once for each defence, since each has images of its own",
    }
    return [f"CW was not run: on two cores, {why[passes]}.", ""]


def versions(settings):
    """Where a report was made, and by what."""
    packages = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    return f"{settings['machine']}; {packages}"


def duration(settings):
    """How long a report took, where that is known."""
    seconds = settings.get("seconds_from_nothing")
    return "" if seconds is None else f" It took {seconds / 60:.0f} minutes from nothing."


def detectors(detection):
    """AUC of each detector under each attack."""
    if not detection:
        return []
    attacks = dict.fromkeys(entry["attack"] for entry in detection)
    found = {(entry["defence"], entry["attack"]): entry["auc"] for entry in detection}
    rows = [
        [name, *(f"{found[name, a]:.3f}" if (name, a) in found else "-" for a in attacks)]
        for name in dict.fromkeys(entry["defence"] for entry in detection)
    ]
    return [
        "Detection by the change of the prediction when an image is distilled: AUC of gray-box "
        "attacks, of those images that fool the classifier.",
        "",
        text_table(["detector", *attacks], rows, markdown=True),
        "",
    ]


def speeds(report):
    """How much slower the slowest baselines are."""
    ours, ratios = speed_ratios(report)
    families = {d["name"]: d["family"] for d in report.defences}
    shown = [n for n in ratios if families[n] in ("TVM", "quilting")]
    return (
        f"Time per image beside `{ours}`, measured in turn in one process: "
        + ", ".join(f"{n} {ratios[n]:.0f} times as long" for n in shown)
        + f" (the paper claims {PAPER_SPEED_UP})."
    )


def files(report):
    """Bytes per image and radii of two passes."""
    rows = [
        [
            entry["name"],
            entry["two_passes"]["file"],
            f"{entry['two_passes']['bytes_per_image']:.0f}",
            *(
                "-" if entry["two_passes"][key] is None else f"{entry['two_passes'][key]:.2f}"
                for key in ("least_radius", "median_radius")
            ),
        ]
        for entry in report.defences
    ]
    heads = ["stored image", "file", "bytes per image", "least radius", "median radius"]
    return text_table(heads, rows, markdown=True)


def side_by_side(one, two):
    """Columns for one pass and for two, of all that was measured in both."""
    pairs = [
        (f"{attacker} {attack}", attacker, attack)
        for attacker in ("gray-box", "adaptive")
        for attack in one.grid.attacks(attacker)
        if attack in two.grid.attacks(f"two-pass {attacker}")
    ]
    heads = ["accuracy in %", "benign: one pass", "two"]
    heads += [part for title, *_ in pairs for part in (f"{title}: one pass", "two")]
    heads += ["certified, two passes: 1/255", "2/255", "4/255", "bytes per image"]
    sizes = {d["name"]: d["two_passes"]["bytes_per_image"] for d in two.defences}
    rows = []
    for name in dict.fromkeys([*two.grid.defences, *one.grid.defences]):
        found = [one.grid.row(name, "benign", "none"), two.grid.row(name, "benign", "none")]
        for _, attacker, attack in pairs:
            found.append(one.grid.row(name, attacker, attack))
            found.append(two.grid.row(name, f"two-pass {attacker}", attack))
        found += [two.grid.row(name, "certified", f"within {e}/255") for e in (1, 2, 4)]
        shares = ["-" if row is None else f"{100 * row['accuracy']:.1f}" for row in found]
        rows.append([name, *shares, f"{sizes[name]:.0f}" if name in sizes else "-"])
    return [
        "### One pass beside two",
        "",
        "In one pass, the images that the classifier alone gets right are attacked and distilled. "
        "In two, all images are encoded first, and those that are right then are attacked and "
        "distilled. So benign accuracy in one pass is of images that are right without a "
        "defence, and in two passes of all images; certified accuracy is of all images too.",
        "",
        text_table(heads, rows, markdown=True),
        "",
    ]


def key_of(name, passes):
    """Name of a report in the files."""
    return name if passes == 1 else f"{name}_two_passes"


def kept(path):
    """The reports in an earlier file of results."""
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    return {name: EvaluationReport.from_json(json.dumps(data)) for name, data in earlier.items()}


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--only", choices=list(RUNS), help="run this network alone")
    parser.add_argument("--passes", type=int, choices=(1, 2), help="run this many passes alone")
    parser.add_argument("--page", action="store_true", help="only write Markdown and pages anew")
    arguments = parsed(parser)
    names = [arguments.only] if arguments.only else list(RUNS)
    passes = [arguments.passes] if arguments.passes else [1, 2]
    target, console = arguments.out / "paper_table.json", Console(stderr=True)
    fresh = {}
    for name, count in [] if arguments.page else itertools.product(names, passes):
        fresh[key_of(name, count)] = run(name, count, arguments.cache, console)
    found = {**kept(target), **fresh}
    order = [key_of(name, count) for name, count in itertools.product(RUNS, (1, 2))]
    reports = {name: found[name] for name in order if name in found}
    if fresh:
        write_json(target, {name: json.loads(each.to_json()) for name, each in reports.items()})
    for name, report in (reports if arguments.page else fresh).items():
        report.to_html(arguments.out / f"paper_table_{name}.html")
    write_text(arguments.out / "paper_table.md", summary(reports))


if __name__ == "__main__":
    main()
