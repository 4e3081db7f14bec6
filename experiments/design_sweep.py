"""Compare designed tables with presets and JPEG: MobileNetV2, ImageNet images, gray-box.

Tables are chosen on the validation split and reported on the test split. Run:
``python -m experiments.design_sweep [--out experiments/results]``; with ``--page``, only the page
and the picture are made again, from the JSON file.
"""

import functools
import io
import itertools
import json
import platform

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from PIL import Image
from rich.progress import track
from scipy.stats import binomtest, bootstrap

from experiments.harness import argument_parser, parsed
from experiments.imagenet import ATTACKS, CACHE, attacked_images, mobilenet
from fd_keras import FeatureDistillation, preset_table
from fd_keras.design import design_table
from fd_keras.plots import PALE, color_of
from fd_keras.statistics import CoefficientStatistics

EPSILON = 2.0  # grey levels: the .0078 of the paper's FGSM
JPEG_QUALITIES = (98, 95, 92, 90, 85, 80, 75, 70, 60, 50, 40, 30)

# Distortion budgets of accuracy-sensitive bands, for luma; required removal in the others.
BUDGETS = (12, 40, 75, 150)
REMOVALS = (0.95, 0.985, 0.995)
AS_BANDS = (15,)
CHROMA = (1, 6)  # factor of the luma budget
SPINS = (1, 2, 4)

SPLITS = ("validation", "test")


class Scorer:
    """Accuracy of a model behind tables; one compiled graph per colour space and spins."""

    def __init__(self, model):
        self.model = model

    @functools.cache  # noqa: B019  # one Scorer for the whole program
    def _graph(self, color_space, cycle_spins):
        layer = FeatureDistillation(
            color_space=color_space, cycle_spins=cycle_spins, value_range=(0, 1)
        )
        layer.build((None, 224, 224, 3))
        return layer, tf.function(lambda x: tf.argmax(self.model(layer(x)), -1))

    def correct(self, table, images):
        """For each set, which images are classified correctly."""
        layer, classify = self._graph(table.color_space, table.cycle_spins)
        layer.set_quantization_table(table)
        return {name: self._right(classify, x, images.labels) for name, x in images.sets.items()}

    def correct_after(self, transform, images):
        """The same behind a function of uint8 images."""
        classify = tf.function(lambda x: tf.argmax(self.model(x), -1))
        result = {}
        for name, x in images.sets.items():
            pixels = np.uint8(np.round(x * 255))
            changed = np.stack([transform(p) for p in pixels]).astype("float32") / 255
            result[name] = self._right(classify, changed, images.labels)
        return result

    @staticmethod
    def _right(classify, x, labels):
        parts = [classify(tf.constant(x[i : i + 32])).numpy() for i in range(0, len(x), 32)]
        return np.concatenate(parts) == labels


def jpeg(pixels, quality):
    """Pillow's JPEG round trip with its default 4:2:0, as JPEG baselines are usually run."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def designs(statistics):
    """Names and tables of the sweep."""
    grid = itertools.product(BUDGETS, REMOVALS, AS_BANDS, CHROMA, SPINS)
    for budget, removal, bands, chroma, spins in grid:
        table = design_table(
            statistics,
            EPSILON,
            as_bands=bands,
            required_removal=removal,
            distortion_budget=[budget, chroma * budget, chroma * budget],
            cycle_spins=spins,
        )
        yield (
            f"budget {budget}, removal {removal}, {bands} AS, chroma x{chroma}, {spins} spins",
            table,
        )


def row(name, kind, splits, table=None):
    """Accuracies of one defence on both splits."""
    result = {"defence": name, "kind": kind, "threat_model": "gray-box"}
    for split, correct in zip(SPLITS, splits):
        rates = {attack: float(np.mean(right)) for attack, right in correct.items()}
        adversarial = [right for attack, right in correct.items() if attack != "benign"]
        result[split] = {
            **rates,
            "adversarial": float(np.mean(adversarial)),
            "count": len(correct["benign"]),
        }
    intervals = {
        attack: binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        for attack, right in splits[1].items()
    }
    result["test"]["intervals"] = {a: [float(i.low), float(i.high)] for a, i in intervals.items()}
    if table is not None:
        result["table"] = table.to_dict()
    result["correct"] = splits[1]  # image by image; dropped before the file is written
    return result


def chosen_at(rows, benign):
    """The best designed table on the validation split with at least this benign accuracy."""
    candidates = [
        r for r in rows if r["kind"] == "designed" and r["validation"]["benign"] >= benign - 1e-9
    ]
    return max(candidates, key=lambda r: r["validation"]["adversarial"], default=None)


def comparisons(rows):
    """For each baseline, the table chosen on the validation split at its benign accuracy there."""
    result = []
    for baseline in (r for r in rows if r["kind"] != "designed"):
        if best := chosen_at(rows, baseline["validation"]["benign"]):
            gains = {
                "benign": paired_gain(best, baseline, ["benign"]),
                "adversarial": paired_gain(best, baseline, list(ATTACKS)),
            }
            result.append({"baseline": baseline["defence"], "designed": best["defence"], **gains})
    return result


def paired_gain(one, other, attacks):
    """Mean difference of accuracy on the test split, and its 95 % bootstrap interval."""
    differences = np.mean(
        [one["correct"][a].astype(float) - other["correct"][a] for a in attacks], axis=0
    )
    interval = bootstrap(
        (differences,), np.mean, n_resamples=5000, method="percentile", random_state=1
    ).confidence_interval
    return {"gain": float(differences.mean()), "interval": [float(i) for i in interval]}


def plot(rows, pairs, path):
    """Benign and adversarial accuracy on the test split."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axis = figure.subplots()
    chosen = {pair["designed"] for pair in pairs}

    def points(predicate):
        selected = [r["test"] for r in rows if predicate(r)]
        return [r["benign"] for r in selected], [r["adversarial"] for r in selected]

    axis.scatter(*points(lambda r: r["kind"] == "designed"), s=8, color=PALE, label="designed")
    axis.scatter(
        *points(lambda r: r["defence"] in chosen),
        s=34,
        color=color_of("feature distillation"),
        label="designed, chosen on the validation split",
    )
    quality = points(lambda r: r["kind"] == "jpeg")
    axis.plot(*quality, "o-", color=color_of("JPEG"), markersize=4, label="JPEG (Pillow, 4:2:0)")
    for r in rows:
        if r["kind"] in ("preset", "none"):
            x, y = r["test"]["benign"], r["test"]["adversarial"]
            axis.plot(x, y, "k^", markersize=6)
            axis.annotate(
                r["defence"], (x, y), textcoords="offset points", xytext=(6, -3), fontsize=8
            )
    count = rows[0]["test"]["count"]
    axis.set(
        xlabel="benign accuracy",
        ylabel="mean accuracy under FGSM .0078 and BIM .004",
        title=f"MobileNetV2, {count} ImageNet images of the test split, gray-box",
    )
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def percent(gain):
    """A gain in points with its interval."""
    low, high = (100 * bound for bound in gain["interval"])
    return f"{100 * gain['gain']:+.1f} [{low:+.1f}, {high:+.1f}]"


def reservations(pairs):
    """Restrictions on the comparison."""
    lower = sum(pair["benign"]["gain"] < 0 for pair in pairs)
    gains = {pair["baseline"]: pair["adversarial"] for pair in pairs}
    unclear = [r for r, g in gains.items() if g["interval"][0] <= 0 <= g["interval"][1]]
    lost = [r for r, g in gains.items() if g["gain"] < 0]
    return (
        f"Benign accuracies were matched on the validation split: on the test split, {lower} of "
        f"the {len(pairs)} designed tables have lower benign accuracy than their baseline. Gains "
        f"whose interval includes zero: against {', '.join(unclear) or 'none'}. The designed table "
        f"has lower accuracy under attack than: {', '.join(lost) or 'none'}. JPEG baselines are "
        "files as Pillow writes them, with 4:2:0 chroma, which the layer does not have."
    )


def page(results):
    """The results as Markdown."""
    rows, pairs = results["rows"], results["comparisons"]
    by_name = {r["defence"]: r for r in rows}
    counts = {split: rows[0][split]["count"] for split in SPLITS}
    lines = [
        "# Designed tables on ImageNet",
        "",
        f"MobileNetV2 1.0/224, a test split of {counts['test']} ImageNet images that it classifies "
        f"correctly (validation split: {counts['validation']}). Threat model: gray-box, attacks on "
        f"the classifier without the layer: FGSM eps .0078; BIM eps .004, step .002, 10 "
        f"iterations (ART, L-inf, no randomness). Tables designed for epsilon = "
        f"{results['epsilon']:g}/255.",
        "",
        f"Command: `{results['command']}`. {results['environment']}.",
        "",
        "![benign against adversarial accuracy](design_imagenet.png)",
        "",
        "Below each baseline: the designed table that was best on the validation split at no less "
        "benign accuracy there. Accuracies on the test split in %, 95 % Wilson intervals in "
        "brackets. Difference and gain: of the designed table over the baseline above it in "
        "points, image by image, with a 95 % bootstrap interval; the gain is the mean of both "
        "attacks.",
        "",
        reservations(pairs),
        "",
        "| defence | benign | FGSM .0078 | BIM .004 | mean of both | benign difference | gain |",
        "|---|---|---|---|---|---|---|",
    ]

    def cells(r):
        test = r["test"]
        texts = []
        for attack in ("benign", "FGSM .0078", "BIM .004"):
            low, high = test["intervals"][attack]
            texts.append(f"{100 * test[attack]:.1f} [{100 * low:.0f}-{100 * high:.0f}]")
        return f"{' | '.join(texts)} | {100 * test['adversarial']:.1f}"

    lines.append(f"| none | {cells(by_name['none'])} | | |")
    for pair in pairs:
        gains = f"{percent(pair['benign'])} | {percent(pair['adversarial'])}"
        lines.append(f"| {pair['baseline']} | {cells(by_name[pair['baseline']])} | | |")
        lines.append(f"| *{pair['designed']}* | {cells(by_name[pair['designed']])} | {gains} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argument_parser(__doc__, cache=CACHE)
    parser.add_argument("--page", action="store_true")
    arguments = parsed(parser)
    path = arguments.out / "design_imagenet.json"
    if not arguments.page:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure(arguments.cache), indent=1) + "\n")
    results = json.loads(path.read_text())
    plot(results["rows"], results["comparisons"], path.with_suffix(".png"))
    path.with_suffix(".md").write_text(page(results))


def measure(cache):
    """Every defence on both splits of the images."""
    model = mobilenet()
    images = attacked_images(model, cache)
    splits = [images.split(name) for name in SPLITS]
    scorer = Scorer(model)
    rows = [row("none", "none", [scorer.correct_after(lambda p: p, split) for split in splits])]
    for name in ("liu2019", "zigzag15"):
        table = preset_table(name)
        rows.append(row(name, "preset", [scorer.correct(table, split) for split in splits], table))
    for quality in JPEG_QUALITIES:
        transform = functools.partial(jpeg, quality=quality)
        correct = [scorer.correct_after(transform, split) for split in splits]
        rows.append(row(f"JPEG q{quality}", "jpeg", correct))
    statistics = CoefficientStatistics.from_data(
        splits[0].sets["benign"],
        color_space="ycbcr",
        value_range=(0, 1),
        provenance={"data": "imagenet-sample, validation split"},
    )
    for name, table in track(list(designs(statistics)), description="Designed tables"):
        correct = [scorer.correct(table, split) for split in splits]
        rows.append(row(name, "designed", correct, table))
    pairs = comparisons(rows)
    kept = {pair["designed"] for pair in pairs}
    for r in rows:
        del r["correct"]
        if r["defence"] not in kept:
            r.pop("table", None)
    return {
        "command": "python -m experiments.design_sweep",
        "environment": f"Python {platform.python_version()}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}, {platform.machine()}, 2 cores",
        "epsilon": EPSILON,
        "comparisons": pairs,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
