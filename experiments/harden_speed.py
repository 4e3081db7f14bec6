"""Images per second of a training step of ``harden``, against the passes that it cannot do without.

The bound: forward and backward through the bare classifier for the whole batch, and for the part
of it that is attacked by one step, in the same precision. ResNet-14 of ``../shared``, batches of
128 random images, half of each attacked; steps and passes are timed in turns. Run: ``python -m
experiments.harden_speed`` on a machine that does nothing else. With ``--smoke``, its figures mean
nothing.
"""

import platform

import keras
import numpy as np
import tensorflow as tf

from benchmarks.interleaved import median_seconds
from experiments.harden_cifar10 import flipped_and_shifted
from experiments.harden_recipes import TABLES, grey_level_model
from experiments.harness import argument_parser, parsed, write_json, write_text
from fd_keras import FeatureDistillation
from fd_keras._console import text_table
from fd_keras.hardening import Recipe
from fd_keras.hardening.model import HardeningModel, clone_classifier

FILE = "harden_speed"
BATCH = 128
POLICIES = ("float32", "mixed_bfloat16")
SUBJECTS = ("none", "soft", "soft-4", "round-4")
RECIPE = Recipe(epsilon=2, attacked_share=0.5)


def step(table, policy, images, labels):
    """A training step, with augmentation, attack, layer, optimiser and averaging."""
    training = HardeningModel(
        grey_level_model(),
        FeatureDistillation(table),
        RECIPE,
        augment=flipped_and_shifted,
        dtype_policy=policy,
    )
    training.compile(keras.optimizers.SGD(0.01, 0.9, nesterov=True))
    training.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())

    def run():
        training.train_function(batches)
        training.average_weights()

    return run


def bare_passes(policy, images, labels):
    """Forward and backward through the classifier alone: to the weights, and to the pixels."""
    model = clone_classifier(grey_level_model(), dtype_policy=policy)
    count, _ = RECIPE.attacked_counts(len(images))

    def loss(x, y, training):
        logits = tf.cast(model(x, training=training), tf.float32)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)

    @tf.function
    def passes(x, y):
        with tf.GradientTape() as tape:
            tape.watch(x)
            attacked = loss(x[:count], y[:count], False)
        pixels = tape.gradient(attacked, x)
        with tf.GradientTape() as tape:
            trained = tf.reduce_mean(loss(x, y, True))
        weights = tape.gradient(trained, model.trainable_variables)
        return pixels, [tf.reduce_sum(tf.cast(weight, tf.float32)) for weight in weights]

    return lambda: passes(images, labels)


def page(results):
    """The results as Markdown."""
    heads = ["precision", "table", "images per second", "bound", "of the bound, %"]
    rows = []
    for policy, found in results["seconds"].items():
        bound = found["bound"]
        for name in SUBJECTS:
            seconds = found[name]
            rates = [f"{BATCH / s:.0f}" for s in (seconds, bound)]
            rows.append([policy, TABLES[name].name, *rates, f"{100 * bound / seconds:.0f}"])
    return "\n".join(
        [
            "# Speed of a training step",
            "",
            "`harden` on ResNet-14, 32 by 32 pixels, batches of 128, half of each attacked by one "
            "step: images per second, and what forward and backward passes of the bare classifier "
            "allow, for the whole batch and for the attacked half, in the same precision. Medians "
            f"of steps and passes in turns. {results['machine']}.",
            "",
            text_table(heads, rows, markdown=True),
            "",
            f"`python -m experiments.{FILE}`",
            "",
        ]
    )


def main():
    parser = argument_parser(__doc__, cache=None, smoke=True)
    arguments = parsed(parser)
    rng = np.random.default_rng(1)
    images = tf.constant(rng.integers(0, 256, (BATCH, 32, 32, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, 10, BATCH))
    seconds = {}
    for policy in POLICIES:
        functions = {"bound": bare_passes(policy, images, labels)}
        functions |= {name: step(TABLES[name], policy, images, labels) for name in SUBJECTS}
        seconds[policy] = median_seconds(functions, 3 if arguments.smoke else 11)
    machine = f"{platform.machine()}, TensorFlow {tf.__version__}"
    results = {"machine": machine, "seconds": seconds}
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / f"{FILE}.json", results)
    written = page(results)
    write_text(arguments.out / f"{FILE}.md", written)
    print(written)


if __name__ == "__main__":
    main()
