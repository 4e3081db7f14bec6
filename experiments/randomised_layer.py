"""Measure a layer that is random at inference against an attacker who averages over its draws.

In each call, the block grid is shifted and the steps are multiplied at random; beside it, the
layer as it is, on ResNet-14 and CIFAR-10. The package has no such layer. Run: ``python -m
experiments.randomised_layer [--table liu2019] ...``; tables that were run earlier stay in the
results, attacked images in ``--cache``. With ``--smoke`` it takes a minute, and its figures mean
nothing.

Gray-box attacks are made on the classifier alone, by ART. Adaptive ones go through the layer: the
attacker draws anew in each step, as the layer does, and takes the gradient of the mean logits over
some draws (EOT). They are hardening's PGD, which takes a third of the time of ART's, with the
classifier's part of the gradient in bfloat16. What is attacked is then classified in float32 with
draws of the layer's own. Each image counts with the share of draws in which it is right; intervals
are over images.
"""

import json
import os
import platform
import shlex
import sys
import time
from importlib import metadata

import numpy as np
import tensorflow as tf
from rich.console import Console
from scipy import stats

from experiments import cifar10, harden_recipes
from experiments.harness import argument_parser, parsed, write_text
from fd_keras import CoefficientStatistics, design_table, preset_table
from fd_keras._console import text_table
from fd_keras.data.labelled import array_hash
from fd_keras.dct import BLOCK_SIZE
from fd_keras.evaluation import PROTOCOLS, art_classifier, predicted_classes
from fd_keras.evaluation.accuracies import wilson_interval
from fd_keras.evaluation.in_graph import pgd
from fd_keras.evaluation.store import ArrayStore
from fd_keras.hardening.model import clone_classifier
from fd_keras.kernels import clip_straight_through, distil, from_grey_levels, to_grey_levels

EPSILON = 2  # grey levels of 255
FILE = "randomised_layer.json"
NONE = "no quantisation"
TABLES = (NONE, "liu2019", "zigzag15", "designed")
SAME, RANDOM, SPUN = "as it is", "random grid and steps", "as it is, 4 grids"
STEPS_ONLY, GRID_ONLY = "random steps", "random grid"
JITTER = 0.3

# Arguments of ``drawn``.
VARIANTS = {
    SAME: {"step_jitter": 0.0, "random_grids": False},
    SPUN: {"step_jitter": 0.0, "random_grids": False},
    RANDOM: {"step_jitter": JITTER, "random_grids": True},
    GRID_ONLY: {"step_jitter": 0.0, "random_grids": True},
    STEPS_ONLY: {"step_jitter": JITTER, "random_grids": False},
}

# The adaptive attacker's draws and gradients: on one table all of them, on others those that harm
# each layer most there.
FULL = {
    SAME: ((1, "smooth"), (1, "straight-through")),
    SPUN: ((1, "smooth"),),
    RANDOM: ((1, "smooth"), (4, "smooth"), (16, "smooth"), (16, "straight-through")),
    GRID_ONLY: ((4, "straight-through"),),
    STEPS_ONLY: ((4, "straight-through"),),
}
STRONGEST = {
    SAME: ((1, "smooth"),),
    SPUN: ((1, "smooth"),),
    RANDOM: ((16, "smooth"),),
}
ADAPTIVE = {
    NONE: {SAME: ((1, "straight-through"),)},
    "liu2019": FULL,
    "zigzag15": STRONGEST,
    "designed": STRONGEST,
}

BATCH = 32


def drawn(seed, step_jitter, random_grids):
    """Factors of the steps, and an offset of the block grid in pixels; ``None``: neither."""
    factors = offset = None
    if step_jitter:
        shape = (3, BLOCK_SIZE, BLOCK_SIZE)
        factors = tf.exp(tf.random.stateless_uniform(shape, seed, -step_jitter, step_jitter))
    if random_grids:
        offset = tf.random.stateless_uniform((2,), seed, 0, BLOCK_SIZE, tf.int32)
    return factors, offset


def on_shifted_grid(images, offset, distilled):
    """Distil images on a block grid that begins ``offset`` pixels above and left of them."""
    height, width = images.shape[1:3]
    padded = images
    for axis, size in ((1, height), (2, width)):
        # The blocks that cover the image behind any offset.
        covered = (size + 2 * BLOCK_SIZE - 2) // BLOCK_SIZE * BLOCK_SIZE
        positions = tf.clip_by_value(tf.range(covered) - offset[axis - 1], 0, size - 1)
        padded = tf.gather(padded, positions, axis=axis)
    begin = tf.concat([[0], offset, [0]], 0)
    return tf.slice(distilled(padded), begin, tf.shape(images))


class RandomLayer:
    """A classifier behind a table whose grid and steps change with each call."""

    def __init__(self, models, table, variant, seed):
        self._model, self._attackers_model = models
        self._settings, self._seed = VARIANTS[variant], seed
        self._table, self._spins = table, 4 if variant == SPUN else 1
        # The attacker knows how the layer draws, but not what.
        self._layers, self._attackers = (
            tf.random.Generator.from_seed(seed, alg="philox") for _ in range(2)
        )
        self._logits = tf.function(
            lambda x: self._model(self._distilled(x, "smooth", self._layers), training=False)
        )
        self.identity = {
            "table": table.to_dict(),
            "spins": self._spins,
            "seed": seed,
            "tensorflow": tf.__version__,
            **self._settings,
        }

    def _distilled(self, images, gradient, generator):
        """A batch of images, all with the same draw."""
        seed = generator.uniform_full_int((2,), tf.int32)
        factors, offset = drawn(seed, **self._settings)
        steps = tf.constant(self._table.steps_for(3), tf.float32)
        if factors is not None:
            steps = steps * factors

        def distilled(pixels):
            return distil(
                pixels,
                steps,
                color_space=self._table.color_space,
                cycle_spins=self._spins,
                gradient=gradient,
            )

        pixels = to_grey_levels(images, 0, 1)
        pixels = distilled(pixels) if offset is None else on_shifted_grid(pixels, offset, distilled)
        return clip_straight_through(from_grey_levels(pixels, 0, 1), 0, 1)

    def attack(self, steps, draws, gradient):
        """A function of images, labels and a number, which attacks through the layer with PGD."""

        def mean_logits(x):
            drawn = [self._distilled(x, gradient, self._attackers) for _ in range(draws)]
            logits = tf.cast(self._attackers_model(tf.concat(drawn, 0), training=False), tf.float32)
            return tf.reduce_mean(tf.reshape(logits, (draws, -1, logits.shape[-1])), 0)

        @tf.function
        def graph(images, labels, number):
            return pgd(
                *(images, labels, mean_logits),
                epsilon=EPSILON,
                steps=steps,
                value_range=(0.0, 1.0),
                seed=tf.stack([self._seed, number]),
            )

        def attacked(images, labels, number):
            self._attackers.reset_from_seed([self._seed, 2, number])
            return graph(tf.constant(images), tf.constant(labels), tf.constant(number)).numpy()

        return attacked

    def right(self, images, labels, draws):
        """Which images are classified correctly in which draw, ``(draws, images)``."""
        self._layers.reset_from_seed([self._seed, 1, 0])
        count = draws if any(self._settings.values()) else 1
        pixels = tf.constant(images)
        return np.stack([np.argmax(self._logits(pixels), -1) == labels for _ in range(count)])


def attacked_through(layer, images, labels, steps, eot, store):
    """Images attacked through the layer, each part computed once and kept."""
    attack = layer.attack(steps, *eot)
    parts = []
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        origin = {
            "randomised layer": layer.identity,
            "images": array_hash(images[part], labels[part]),
            "steps": steps,
            "epsilon": EPSILON / 255,
            "eot": list(eot),
            "number": start,
        }
        parts.append(store.array(origin, lambda p=part, n=start: attack(images[p], labels[p], n)))
    return np.concatenate(parts)


def row(table, variant, threat_model, attack, right, eot=None):
    """One figure; the share of draws in which each image is right is for the differences."""
    shares = right.mean(0)
    count = len(shares)
    # Wilson's for one draw of each image; the mean over draws varies less.
    low, high = wilson_interval(round(float(shares.sum())), count)
    return {
        "table": table,
        "variant": variant,
        "threat_model": threat_model,
        "attack": attack,
        "eot_draws": eot and eot[0],
        "gradient": eot and eot[1],
        "accuracy": float(shares.mean()),
        "interval": [low, high],
        "right_in_all_draws": float(right.all(0).mean()),
        "draws": len(right),
        "count": count,
        "shares": [round(float(share), 4) for share in shares],
    }


def rows_of(table_name, table, models, images, labels, gray_box, arguments):
    """All figures behind one table."""
    rows, store = [], ArrayStore(arguments.cache)
    for variant, attackers in ADAPTIVE[table_name].items():
        layer = RandomLayer(models, table, variant, arguments.seed)
        rows.append(
            row(table_name, variant, "benign", "none", layer.right(images, labels, arguments.draws))
        )
        for attack, attacked in gray_box.items():
            right = layer.right(attacked, labels, arguments.draws)
            rows.append(row(table_name, variant, "gray-box", attack, right))
        for eot in attackers:
            attacked = attacked_through(layer, images, labels, arguments.steps, eot, store)
            right = layer.right(attacked, labels, arguments.draws)
            name = f"PGD-{arguments.steps} {EPSILON}/255"
            rows.append(row(table_name, variant, "adaptive", name, right, eot))
            report(rows[-1])
    return rows


def report(figure):
    draws, gradient = figure["eot_draws"], figure["gradient"]
    print(
        f"{figure['table']}, {figure['variant']}: {figure['threat_model']} {figure['attack']}, "
        f"EOT {draws}, {gradient}: {100 * figure['accuracy']:.1f} %",
        flush=True,
    )


def difference(figure, baseline, seed):
    """Gain over the baseline on the same images, and its 95 % bootstrap interval."""
    gains = np.subtract(figure["shares"], baseline["shares"])
    if np.ptp(gains) == 0:
        return float(gains.mean()), [float(gains.mean())] * 2
    found = stats.bootstrap(
        (gains,), np.mean, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(gains.mean()), [float(found.low), float(found.high)]


def with_differences(rows, seed):
    """The rows, each with its gain over the layer as it is under the attack that harms it most."""

    def key(figure):
        return figure["threat_model"], figure["attack"]

    baselines = {}
    for figure in sorted(rows, key=lambda figure: -figure["accuracy"]):
        if figure["variant"] == SAME:
            baselines[key(figure)] = figure
    complete = []
    for figure in rows:
        gain, interval = difference(figure, baselines[key(figure)], seed)
        complete.append({**figure, "gain": gain, "gain_interval": interval})
    return complete


def chosen_images(model, count, seed):
    """Some images that the classifier gets right, in a random order, and others to design on."""
    images, labels = cifar10.images_and_labels()
    order = np.random.default_rng(seed).permutation(len(labels))
    pixels = np.float32(images[order] / 255)
    right = predicted_classes(model, pixels) == labels[order]
    reported = np.flatnonzero(right)[:count]
    others = images[order[reported[-1] + 1 :]]
    return pixels[reported], labels[order[reported]], others


def tables_of(names, others):
    """The presets, and a table designed on images that are not reported."""
    tables = {}
    for name in names:
        if name == "designed":
            statistics = CoefficientStatistics.from_data(others, color_space="ycbcr")
            tables[name] = design_table(statistics, EPSILON)
        else:
            tables[name] = harden_recipes.TABLES["none"] if name == NONE else preset_table(name)
    return tables


def page(results):
    """The results as Markdown."""
    about = results["about"]
    lines = [
        "# A random layer",
        "",
        f"ResNet-14 on {about['images']} lossless CIFAR-10 images that it gets right alone. "
        f"{RANDOM.capitalize()}: in each call the block grid is shifted by 0 to 7 pixels down and "
        f"right, and every step is multiplied by a factor from exp(-{JITTER}) to exp({JITTER}). "
        "Accuracy in %, where the layer is random the mean over "
        f"{about['layer_draws']} draws of its own; in brackets 95 % intervals. All: right in "
        f"every one of these draws. Gain: in points over the layer `{SAME}` on the same images, "
        "under whichever gradient harms it more; bootstrap.",
        "",
        "Gray-box: made on the classifier alone. Adaptive: through the layer, EOT over so many "
        "draws in each step, with a smooth surrogate gradient of rounding or the identity's "
        "(BPDA); the classifier's part of the gradient in bfloat16.",
        "",
    ]
    heads = ["table", "layer", "threat model", "attack", "EOT", "gradient", "accuracy", "all"]
    table = []
    for figure in results["rows"]:
        cells = [figure[key] or "" for key in ("table", "variant", "threat_model")]
        cells += ["" if figure["attack"] == "none" else figure["attack"]]
        cells += [str(figure["eot_draws"] or ""), figure["gradient"] or ""]
        cells += [percent(figure["accuracy"], figure["interval"])]
        cells += [f"{100 * figure['right_in_all_draws']:.1f}" if figure["draws"] > 1 else ""]
        same = figure["variant"] == SAME
        cells += ["" if same else percent(figure["gain"], figure["gain_interval"], "+")]
        table.append(cells)
    lines += [
        text_table([*heads, "gain"], table, markdown=True),
        "",
        f"{about['command']}; seed {about['seed']}; {about['machine']}; {about['versions']}.",
        "",
    ]
    return "\n".join(lines)


def percent(value, interval, sign=""):
    low, high = (f"{100 * end:{sign}.1f}" for end in interval)
    return f"{100 * value:{sign}.1f} [{low}, {high}]"


def about(arguments, count):
    packages = ("tensorflow", "keras", "numpy", "adversarial-robustness-toolbox")
    command = shlex.join(["python", "-m", "experiments.randomised_layer", *sys.argv[1:]])
    return {
        "command": f"`{command}`",
        "seed": arguments.seed,
        "images": count,
        "layer_draws": arguments.draws,
        "jitter": JITTER,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": ", ".join(
            [f"python {platform.python_version()}"]
            + [f"{package} {metadata.version(package)}" for package in packages]
        ),
    }


def main():
    parser = argument_parser(__doc__, smoke=True)
    parser.add_argument("--table", action="append", choices=TABLES, help="default: all")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="of adaptive PGD")
    parser.add_argument("--draws", type=int, default=16, help="of the layer, on attacked images")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parsed(parser)
    names = arguments.table or TABLES
    if arguments.smoke:
        arguments.images, arguments.steps, arguments.draws, names = 8, 2, 2, TABLES[:2]
    model = cifar10.resnet14()
    models = (model, clone_classifier(model, dtype_policy="mixed_bfloat16"))
    images, labels, others = chosen_images(model, arguments.images, arguments.seed)
    bim = next(a for a in PROTOCOLS["evademl-cifar10"].gray_box if a.family == "BIM")
    victim = art_classifier(model, value_range=(0, 1))
    gray_box = {bim.name: bim.generate(victim, images, labels, seed=arguments.seed)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / FILE
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    for name, table in tables_of(names, others).items():
        started = time.monotonic()
        fresh = rows_of(name, table, models, images, labels, gray_box, arguments)
        fresh = with_differences(fresh, arguments.seed)
        kept = [figure for figure in kept if figure["table"] != name] + fresh
        kept.sort(key=lambda figure: TABLES.index(figure["table"]))
        results = {"about": about(arguments, len(labels)), "rows": kept}
        write_text(path, json.dumps(results) + "\n")  # one line: lists of shares are long
        write_text(path.with_suffix(".md"), page(results))
        Console().print(f"{name}: {time.monotonic() - started:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
