"""Hardened MobileNetV2 on ImageNet: its own student behind its table, on a few unlabelled images.

The 500 images of ``../shared`` are one of every second class. Every second of these trains the
student without labels: what the classifier answers for a crop is what the student learns to answer
for the distilled crop, with batch normalisation frozen. Part of them chooses the epoch. The other
250 images are of other classes, and are reported. Run: ``python -m experiments.harden_imagenet``;
trainings resume from ``--cache``, and rows that are in the JSON file already stay. With ``--smoke``
it takes a minute or two, and its figures mean nothing.
"""

import json
import platform

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from experiments import imagenet
from experiments.guided_encoding import loss
from experiments.harness import argument_parser, parsed, write_json, write_text
from fd_keras import Classifier, FeatureDistillation, encode, harden
from fd_keras._console import text_table
from fd_keras.hardening import Recipe, Training
from fd_keras.hardening.recipe import warm_up_cosine

FILE = "harden_imagenet"
CHOOSING = 50
EPOCHS = 30
BATCH = 20
LEARNING_RATE = 2e-5
SHIFT = 16
# Table, and number of training images.
ROWS = (
    *(("liu2019", 200), ("soft8", 200), ("certified:1", 200)),
    *(("liu2019", 100), ("liu2019", 50)),
)
TWO_PASSES = ("certified:1",)
RECIPE = Recipe(epsilon=0, soft_labels=1.0)  # the labels count for nothing


def cropped(images, seed):
    """Each image flipped or not, and shifted by up to 16 pixels over its mirrored edge."""
    images = tf.image.stateless_random_flip_left_right(images, seed)
    around = [(0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)]
    padded = tf.pad(images, around, "REFLECT")
    return tf.image.stateless_random_crop(padded, tf.shape(images), seed)


def frozen_norms():
    """The classifier, with batch normalisation that keeps its statistics and weights."""
    model = imagenet.mobilenet()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return model


def student(table, count, data, arguments, console):
    """The classifier, trained behind a table."""
    images, labels = (part[: CHOOSING + count] for part in data)
    epochs = 1 if arguments.smoke else EPOCHS * 200 // count
    schedule = warm_up_cosine(LEARNING_RATE, -(-count // BATCH) * epochs)
    model = frozen_norms()
    # Any labels would do; these keep the shape.
    taught = np.zeros(count, np.int64)
    smoke = "-smoke" if arguments.smoke else ""
    result = harden(
        Classifier(model, value_range=(0, 1), from_logits=True),
        FeatureDistillation(table, value_range=(0, 1)),
        (images[CHOOSING:], taught),
        (images[:CHOOSING], labels[:CHOOSING]),
        RECIPE,
        Training(
            epochs=epochs,
            batch_size=BATCH,
            optimizer=keras.optimizers.Adam(schedule),
            augment=cropped,
        ),
        directory=arguments.cache / FILE / f"{table}-{count}{smoke}".replace(":", "-"),
        verbose=console,
    )
    return result, epochs


def right(model, images, labels, layer=None):
    """Which images in [0, 1] are classified correctly behind a layer."""
    found = []
    for start in range(0, len(images), 50):
        part = images[start : start + 50]
        distilled = part if layer is None else layer(part)
        found.append(model.predict_on_batch(np.asarray(distilled)).argmax(axis=-1))
    return np.concatenate(found) == labels


def compared(before, behind):
    """Counts, as ``experiments.guided_encoding`` has them."""
    lost, won = int((before & ~behind).sum()), int((~before & behind).sum())
    return {"right": int(behind.sum()), "lost": lost, "won": won}


def entry(table, count, split, arguments, console):
    """Benign accuracy of one table on the test split, before and after."""
    training, (images, labels) = split
    layer = FeatureDistillation(table, value_range=(0, 1))
    original = imagenet.mobilenet()
    result, epochs = student(table, count, training, arguments, console)
    before = right(original, images, labels)
    row = {
        "table": table,
        "training_images": count,
        "epochs": epochs,
        "best_epoch": result.best_epoch,
        "images": len(labels),
        "undefended": int(before.sum()),
        "layer only": compared(before, right(original, images, labels, layer)),
        "hardened": compared(before, right(result.model, images, labels, layer)),
        "without layer": compared(before, right(result.model, images, labels)),
    }
    if table in TWO_PASSES:
        for name, guide in (("two passes", None), ("two passes, guided", original)):
            known = guide and Classifier(guide, value_range=(0, 1), from_logits=True)
            parts = [
                encode(images[i : i + 25], table, value_range=(0, 1), classifier=known)
                for i in range(0, len(images), 25)
            ]
            encoded = np.concatenate(parts)
            for who, model in (("layer only", original), ("hardened", result.model)):
                row[f"{who}, {name}"] = compared(before, right(model, encoded, labels, layer))
    return row


def page(results):
    """The results as Markdown."""
    about, rows = results["about"], results["rows"]
    heads = ["table", "training images", "undefended", "layer only", "loss", "hardened", "loss"]
    heads += ["hardened, no layer"]
    lines, two = [], []
    for row in rows:
        count = row["images"]

        def share(name, row=row, count=count):
            return f"{100 * row[name]['right'] / count:.1f}"

        lines.append(
            [
                *(row["table"], str(row["training_images"])),
                f"{100 * row['undefended'] / count:.1f}",
                *(share("layer only"), loss(row, "layer only")),
                *(share("hardened"), loss(row, "hardened"), share("without layer")),
            ]
        )
        two += [
            [name, share(name), loss(row, name)]
            for name in row
            if name.endswith(("two passes", "guided"))
        ]
    parts = [
        "# Hardened MobileNetV2 on ImageNet",
        "",
        f"{rows[0]['images']} ImageNet images of classes that trained and chose nothing; benign "
        "accuracy in %, and points lost against the undefended classifier, with 95 % intervals of "
        "paired differences. The student learns, on unlabelled images of other classes, to answer "
        "for distilled crops what the classifier answers for the crops themselves; batch "
        f"normalisation is frozen; {CHOOSING} labelled images of these classes choose the epoch. "
        "There is no attack: what hardening gives back here is the benign accuracy that the table "
        "costs.",
        "",
        text_table(heads, lines, markdown=True),
        "",
    ]
    if two:
        parts += [
            "Two passes within 1/255, `certified:1`: what is right is provably so.",
            "",
            text_table(["", "right and certified, %", "loss"], two, markdown=True),
            "",
        ]
    parts += [
        f"`python -m experiments.{FILE}`; Adam, learning rate {LEARNING_RATE:g}, batches of "
        f"{BATCH}, {EPOCHS} epochs of 200 images or as many batches of fewer; {about['machine']}; "
        f"{about['versions']}.",
        "",
    ]
    return "\n".join(parts)


def main():
    parser = argument_parser(__doc__, smoke=True)
    arguments = parsed(parser)
    console = Console(stderr=True)
    images, labels = imagenet.images_and_labels()
    images = np.float32(images / 255)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(images[::2]))
    training = images[::2][order], labels[::2][order]
    test = images[1::2], labels[1::2]
    planned = ROWS
    if arguments.smoke:
        test, planned = tuple(part[:10] for part in test), (("certified:1", 20),)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{FILE}.json"
    results = json.loads(path.read_text()) if path.exists() else {"rows": []}
    results["about"] = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": f"tensorflow {tf.__version__}, keras {keras.__version__}",
    }
    done = {(row["table"], row["training_images"]) for row in results["rows"]}
    for table, count in planned:
        if (table, count) in done:
            continue
        results["rows"].append(entry(table, count, (training, test), arguments, console))
        write_json(path, results)
        write_text(path.with_suffix(".md"), page(results))
        print(table, count, results["rows"][-1], flush=True)


if __name__ == "__main__":
    main()
