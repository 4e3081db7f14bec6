"""Search and evaluation on CIFAR-10 beside an earlier version of this repository.

Both versions search a table with 60 trials, once for each of three seeds, and evaluate five
defences under the attacks that both make alike: those of ``evademl-cifar10`` but CW, in turns, each
in a process with one thread. Fronts of searches are compared by their hypervolume. Run:
``python -m benchmarks.earlier_version --before CHECKOUT`` with ``../shared`` at hand.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from experiments.harness import argument_parser, parsed, write_json, write_text
from fd_keras._console import bar, progress_bars, text_table

RESULTS = Path("benchmarks/results")
FILE = "earlier_version"
WORKER = Path(__file__).with_name("earlier_version_worker.py").resolve()
# The earlier version's evaluation takes minutes for 16 images.
SEEDS = {"search": (1, 2, 3), "evaluation": (1,)}
IMAGES = {"search": 600, "evaluation": 16}
TRIALS = 60
DEFENCES = ("liu2019", "zigzag15", "jpeg:40", "bits:3", "median:2")
# Tables with a smaller benign accuracy count nothing.
LEAST_BENIGN = 0.9
THREADS = "1"


def in_process(checkout, step, seed, images, trials):
    """What a process of a version measures."""
    command = [sys.executable, str(WORKER), step, "--defences", *DEFENCES]
    command += ["--seed", str(seed), "--images", str(images), "--trials", str(trials)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment |= dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), THREADS)
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{step} failed in {checkout}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def hypervolume(front):
    """Share of the rectangle from ``LEAST_BENIGN`` and 0 to perfect accuracy below a front."""
    area, level = 0.0, LEAST_BENIGN
    for benign, _ in sorted(front):
        if benign > level:
            area += (benign - level) * max(a for b, a in front if b >= benign)
            level = benign
    return area / (1 - LEAST_BENIGN)


def markdown(results):
    """The page of the results."""
    runs = results["runs"]
    searches, evaluations = [], []
    for run in runs:
        before, now = run["before"], run["now"]
        ratio = f"{now['seconds'] / before['seconds']:.2f}"
        seconds = [f"{each['seconds']:.0f}" for each in (before, now)]
        if run["step"] == "search":
            areas = [f"{hypervolume(each['front']):.3f}" for each in (before, now)]
            tests = [f"{100 * part:.1f}" for each in (before, now) for part in each["test"]]
            searches.append([str(run["seed"]), *seconds, ratio, *areas, *tests])
        else:
            evaluations.append([str(run["seed"]), str(now["images"]), *seconds, ratio])
    medians = {
        step: statistics.median(
            r["now"]["seconds"] / r["before"]["seconds"] for r in runs if r["step"] == step
        )
        for step in dict.fromkeys(run["step"] for run in runs)
    }
    times = ["before, s", "now, s", "now / before"]
    heads = ["seed", *times, "hypervolume before", "now"]
    heads += [f"{what} {when}, %" for when in ("before", "now") for what in ("benign", "attacked")]
    lines = [
        "# Search and evaluation beside an earlier version",
        "",
        f"ResNet-14 on CIFAR-10, commit {results['revision']} and this version in turns, each in a "
        f"process with one thread; {results['machine']}.",
        "",
        "## Search",
        "",
        f"`refine` with {results['trials']} trials on {results['images']['search']} images under "
        "gray-box FGSM .0156 and BIM .008, which were attacked before the clock ran. The "
        "hypervolume is the share of the rectangle from "
        f"{100 * LEAST_BENIGN:.0f} % benign and 0 % attacked accuracy to 100 % and 100 % that lies "
        "below the front on the validation split. Accuracies are those of the best table within "
        "1 % benign loss, on the test split.",
        "",
        text_table(heads, searches, markdown=True),
        "",
        f"Goal: half of the time. Reached: {medians.get('search', float('nan')):.2f} (median).",
        "",
        "## Evaluation",
        "",
        f"`evaluate` of {len(DEFENCES)} defences ({', '.join(DEFENCES)}) under the attacks of "
        "`evademl-cifar10` but CW, which is another attack in the earlier version. Nothing was "
        "computed before.",
        "",
        text_table(["seed", "images", *times], evaluations, markdown=True),
        "",
        "Goal: a quarter of the time. Reached: "
        f"{medians.get('evaluation', float('nan')):.2f} (median).",
        "",
        f"`{results['command']}`",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argument_parser(__doc__, cache=None, smoke=True, out=RESULTS)
    parser.add_argument("--before", type=Path, required=True, help="a checkout to compare with")
    arguments = parsed(parser)
    images, trials, seeds = (IMAGES, TRIALS, SEEDS)
    if arguments.smoke:
        images, trials = {"search": 40, "evaluation": 4}, 2
        seeds = dict.fromkeys(seeds, (1,))
    checkouts = {"before": arguments.before.resolve(), "now": Path(__file__).parents[1]}
    git = ["git", "-C", str(checkouts["before"]), "rev-parse", "--short", "HEAD"]
    results = {
        "command": "python -m benchmarks.earlier_version --before CHECKOUT",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "revision": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        "images": images,
        "trials": trials,
        "runs": [],
    }
    path = arguments.out / f"{FILE}.json"
    turns = [(seed, step) for step, each in seeds.items() for seed in each]
    with (
        progress_bars(Console(stderr=True), unit="runs") as progress,
        bar(progress, "Measuring", len(turns)) as advance,
    ):
        for seed, step in turns:
            found = {
                name: in_process(checkout, step, seed, images[step], trials)
                for name, checkout in checkouts.items()
            }
            results["runs"].append({"step": step, "seed": seed, **found})
            write_json(path, results)
            write_text(path.with_suffix(".md"), markdown(results))
            advance(1)


if __name__ == "__main__":
    main()
