"""What ``benchmarks.earlier_version`` measures, with the version of fd_keras on the path.

It uses only what both versions have.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

from experiments.networks import classifier_and_data
from fd_keras import evaluate, refine
from fd_keras.evaluation import PROTOCOLS, Protocol
from fd_keras.refinement import Search


def search(classifier, data, arguments, folder):
    """Seconds of a search whose images are attacked already, its front and its best table."""
    attacks = (a for a in PROTOCOLS["evademl-cifar10"].gray_box if a.family in ("FGSM", "BIM"))
    protocol = Protocol("FGSM and BIM", "", gray_box=tuple(attacks))
    options = {"baselines": (), "max_images": arguments.images, "seed": arguments.seed}
    options["cache_dir"] = folder / "cache"
    refine(classifier, data, protocol, Search(max_trials=1), **options)
    started = time.perf_counter()
    chosen = Search(max_trials=arguments.trials)
    result = refine(classifier, data, protocol, chosen, directory=folder / "search", **options)
    return {
        "seconds": time.perf_counter() - started,
        "front": [[p.validation.benign, p.validation.attacked] for p in result.front],
        "test": [result.best.test.benign, result.best.test.attacked],
    }


def evaluation(classifier, data, arguments, folder):
    """Seconds of an evaluation for which nothing was computed before."""
    whole = PROTOCOLS["evademl-cifar10"]
    gray_box = tuple(a for a in whole.gray_box if not a.family.startswith("CW"))
    protocol = dataclasses.replace(whole, name="without CW", gray_box=gray_box)
    options = {"max_images": arguments.images, "seed": arguments.seed, "cache_dir": folder}
    started = time.perf_counter()
    report = evaluate(classifier, data, arguments.defences, protocol, **options)
    seconds = time.perf_counter() - started
    alone = [row for row in report.rows if row["defence"] == "none"]
    return {
        "seconds": seconds,
        "images": max(row["count"] for row in alone),
        "undefended": {f"{r['threat_model']} {r['attack']}": r["accuracy"] for r in alone},
    }


STEPS = {"search": search, "evaluation": evaluation}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=STEPS)
    for name in ("seed", "images", "trials"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--defences", nargs="*", required=True)
    arguments = parser.parse_args()
    classifier, data = classifier_and_data("cifar10")
    # Earlier versions take the first images, and not a sample.
    few = tuple(part[: 2 * arguments.images] for part in data)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(STEPS[arguments.step](classifier, few, arguments, Path(folder))))


if __name__ == "__main__":
    main()
