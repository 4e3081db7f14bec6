"""Which tables detect which attack in one pass, together and alone, and what an informed one finds.

ResNet-14 on the CIFAR-10 images of ``../shared``. Sets of one, two and three tables are scored as
``DistillationDetector(model, [layer, ...])`` scores them. Every second image belongs to the
validation split, which chooses the set of each size with the largest smallest AUC over the attacks;
figures are of the test split.
Only attacked images that fool the classifier count. Run: ``python -m experiments.detection``; what
was computed stays in ``--cache``. ``--smoke`` takes forty images and few steps.

The attack on the detector itself (He et al. 2017) has prediction and score in one loss, and the
gradient of both; it succeeds where the class is wrong and the score is not flagged.
"""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf
from scipy.special import softmax

from experiments.harness import argument_parser, parsed, write_json, write_text
from experiments.networks import classifier_and_data
from fd_keras import DistillationDetector, FeatureDistillation
from fd_keras._console import text_table
from fd_keras.data.labelled import array_hash
from fd_keras.detection import conformal_threshold, roc_curve
from fd_keras.evaluation import PROTOCOLS
from fd_keras.evaluation.classifiers import attackable
from fd_keras.evaluation.defences import defence
from fd_keras.evaluation.runners import targets
from fd_keras.evaluation.store import ArrayStore

FILE = "detection"
TABLES = ("liu2019", "zigzag15", "balanced", "soft8", "jpeg:90", "jpeg:75", "jpeg:50", "jpeg:25")
MOST = 3
RATE = 0.05
EPSILONS = (1.0, 2.0, 4.0)
CONFIDENCE = 0.5  # of the wrong class, beyond which the attack on the detector only mends its score
SCORE_WEIGHT = 1.0  # with 10, the same attack misclassified an eighth as many at 2 grey levels
CHUNK = 25


def chunks(images, *others):
    """The images and what belongs to them in pieces that are kept one by one."""
    for start in range(0, len(images), CHUNK):
        piece = slice(start, start + CHUNK)
        yield (images[piece], *(other[piece] for other in others))


def attacked_images(attack, attacker, images, labels, store):
    """The images under an attack on the classifier alone."""
    parts = []
    for pixels, classes in chunks(images, labels):
        identity = {"attack": attack.to_dict(), "images": array_hash(pixels), "of": FILE}

        def compute(pixels=pixels, classes=classes):
            return attack.generate(attacker, pixels, classes)

        parts.append(store.array(identity, compute))
    return np.concatenate(parts)


def scores_of(classifier, images):
    """Score of each table for each image, and which images keep their class behind all tables."""
    raw = softmax(np.float64(classifier.logits(images)), axis=-1)
    scores, keep = {}, np.ones(len(images), bool)
    for name in TABLES:
        distilled = classifier.logits(defence(name)(255 * images) / 255)
        scores[name] = np.abs(raw - softmax(np.float64(distilled), axis=-1)).sum(axis=-1)
        keep &= distilled.argmax(axis=-1) == raw.argmax(axis=-1)
    return scores, keep


def joint(scores, tables):
    """The score of a detector with several tables."""
    return np.max([scores[name] for name in tables], axis=0)


def areas(benign, attacked, tables):
    """AUC of a set of tables for each attack."""
    return {
        name: roc_curve(joint(benign, tables), joint(scores, tables)).auc
        for name, scores in attacked.items()
    }


def selected(scores, keep):
    """The scores of some of the images."""
    return {name: values[keep] for name, values in scores.items()}


def evading(detector, images, labels, epsilon, threshold, steps):
    """Images within a bound that are misclassified with a small score."""
    low, high = np.maximum(images - epsilon / 255, 0), np.minimum(images + epsilon / 255, 1)
    rng = np.random.default_rng(1)
    start = np.clip(images + rng.uniform(-1, 1, images.shape) * epsilon / 255, low, high)

    @tf.function
    def step(point, lowest, highest):
        with tf.GradientTape() as tape:
            tape.watch(point)
            outputs = detector(point, training=False)
            own = tf.one_hot(labels, outputs["logits"].shape[-1])
            others = tf.reduce_max(outputs["logits"] - 1e9 * own, axis=-1)
            lead = tf.reduce_sum(outputs["logits"] * own, axis=-1) - others
            loss = tf.nn.relu(lead + CONFIDENCE) + SCORE_WEIGHT * outputs["score"]
        evades = (lead < 0) & (outputs["score"] <= threshold)
        moved = point - 2.5 * epsilon / 255 / steps * tf.sign(tape.gradient(loss, point))
        return tf.clip_by_value(moved, lowest, highest), evades, lead < 0

    point = tf.constant(np.float32(start))
    low, high = tf.constant(np.float32(low)), tf.constant(np.float32(high))
    evaded = np.zeros(len(images), bool)
    fooled = np.zeros(len(images), bool)
    for _ in range(steps + 1):
        point, evades, wrong = step(point, low, high)
        evaded |= evades.numpy()
        fooled |= wrong.numpy()
    return {"evades": float(evaded.mean()), "fools": float(fooled.mean())}


def page(results):
    """The results as Markdown."""
    names = list(results["attacks"])
    body = [
        [", ".join(entry["tables"]), *(f"{entry['auc'][name]:.3f}" for name in names)]
        for entry in (*results["alone"], *results["chosen"])
    ]
    found = results["attacks"]
    counts = [
        [text, *(str(found[name][key]) for name in names)]
        for text, key in (("images that fool", "fooled"), ("of them, unmoved", "unmoved"))
    ]
    moved = ["AUC of the others", *(f"{found[name]['auc_moved']:.3f}" for name in names)]
    informed = [
        [f"{epsilon:g}/255", f"{100 * found['fools']:.0f}", f"{100 * found['evades']:.0f}"]
        for epsilon, found in ((float(e), f) for e, f in results["informed"].items())
    ]
    return "\n".join(
        [
            "# Detection in one pass by one table and by several",
            "",
            f"ResNet-14 on {results['images']} CIFAR-10 images of the test split (as many others, "
            "the validation split, chose the sets of tables). AUC of gray-box attacks, of those "
            f"images that fool the classifier. The last {len(results['chosen'])} rows of tables "
            "are the sets with the largest smallest AUC on the validation split.",
            "",
            text_table(["tables", *names], body, markdown=True),
            "",
            "## What limits it",
            "",
            f"An attacked image that keeps its wrong class behind each of the {len(TABLES)} tables "
            "looks like a benign one to every detector of this kind. AUC of the others is that of "
            f"`{', '.join(results['chosen'][-1]['tables'])}`.",
            "",
            text_table(["", *names], [*counts, moved], markdown=True),
            "",
            "## An attacker who knows the detector",
            "",
            f"PGD with {results['steps']} steps on prediction and score in one loss (He et al. "
            f"2017), against `{', '.join(results['chosen'][-1]['tables'])}` with a threshold for "
            f"{100 * RATE:.0f} % of false positives: the share of images that it gets "
            "misclassified at all, and misclassified without being flagged.",
            "",
            text_table(
                ["epsilon", "misclassified, %", "and not flagged, %"], informed, markdown=True
            ),
            "",
        ]
    )


def right_images(classifier, data, count):
    """The first images that the classifier gets right alone, with their classes."""
    images, labels = (part[: 2 * count] for part in data)
    right = classifier.logits(images).argmax(axis=-1) == labels
    return images[right][:count], labels[right][:count]


def shortened(attack, cw_steps):
    """An attack with at most so many iterations, if it is one that takes long."""
    if attack.target is None:
        return attack
    short = {"steps": cw_steps, "iterations": min(cw_steps, 200)}
    changed = {name: short.get(name, value) for name, value in attack.parameters.items()}
    return dataclasses.replace(attack, parameters=changed)


def attacked_by(attack, classifier, attacker, data, store):
    """Scores of attacked images, which of them fool, which are unmoved, and the success."""
    images, labels = data
    pixels = attacked_images(attack, attacker, images, labels, store)
    classes = attacker.predict(pixels).argmax(axis=-1)
    wrong = reached = classes != labels
    if attack.target is not None:
        reached = classes == targets(attack.target, attacker.predict(images), labels)
    scores, unmoved = scores_of(classifier, pixels)
    return {
        "scores": scores,
        "wrong": wrong,
        "unmoved": unmoved,
        "success": float(reached.mean()),
    }


def chosen_sets(benign, attacked):
    """Of each size, the tables with the largest smallest AUC over the attacks."""
    return [
        max(
            itertools.combinations(TABLES, size),
            key=lambda tables: min(areas(benign, attacked, tables).values()),
        )
        for size in range(1, MOST + 1)
    ]


def limits_of(found, reported, test, tables):
    """How many images fool on the test split, and what the others' AUC is without the unmoved."""
    moved = selected(found["scores"], found["wrong"] & ~found["unmoved"] & test)
    return {
        "fooled": int((found["wrong"] & test).sum()),
        "success": found["success"],
        "unmoved": int((found["wrong"] & found["unmoved"] & test).sum()),
        "auc_moved": areas(reported, {"others": moved}, tables)["others"],
    }


def main():
    """Run the experiment."""
    parser = argument_parser(__doc__, smoke=True)
    parser.add_argument("--images", type=int, default=200, help="of both splits together")
    parser.add_argument("--steps", type=int, default=100, help="of the attack on the detector")
    parser.add_argument("--cw-steps", type=int, default=1000)
    parser.add_argument("--attacks", nargs="*", help="families; all of the protocol by default")
    arguments = parsed(parser)
    steps = 3 if arguments.smoke else arguments.steps
    cw_steps = 2 if arguments.smoke else arguments.cw_steps
    classifier, data = classifier_and_data("cifar10")
    images, labels = right_images(classifier, data, 40 if arguments.smoke else arguments.images)
    attacker, store = attackable(classifier, images.shape[1:]), ArrayStore(arguments.cache)
    validation = np.arange(len(images)) % 2 == 0
    benign, _ = scores_of(classifier, images)
    found = {}
    for attack in PROTOCOLS["evademl-cifar10"].gray_box:
        if arguments.attacks and attack.family not in arguments.attacks:
            continue
        short = shortened(attack, cw_steps)
        found[attack.name] = attacked_by(short, classifier, attacker, (images, labels), store)
        print(attack.name, found[attack.name]["success"], flush=True)

    def fooling(split):
        return {n: selected(each["scores"], each["wrong"] & split) for n, each in found.items()}

    chosen = chosen_sets(selected(benign, validation), fooling(validation))
    reported, attacked = selected(benign, ~validation), fooling(~validation)
    results = {
        "images": int((~validation).sum()),
        "cw_steps": cw_steps,
        "steps": steps,
        "attacks": {
            name: limits_of(each, reported, ~validation, chosen[-1]) for name, each in found.items()
        },
        **{
            kind: [{"tables": s, "auc": areas(reported, attacked, s)} for s in sets]
            for kind, sets in (("alone", [(name,) for name in TABLES]), ("chosen", chosen))
        },
        "informed": {},
    }
    layers = [
        FeatureDistillation(name, value_range=(0, 1), gradient="smooth") for name in chosen[-1]
    ]
    detector = DistillationDetector(classifier.model, layers)
    threshold = conformal_threshold(joint(benign, chosen[-1])[validation], RATE)
    for epsilon in (None, *EPSILONS):  # figures of the tables are written first
        if epsilon is not None:
            kept = images[~validation], labels[~validation]
            evaded = evading(detector, *kept, epsilon, threshold, steps)
            results["informed"][f"{epsilon:g}"] = evaded
            print(epsilon, evaded, flush=True)
        write_json(arguments.out / f"{FILE}.json", results)
        write_text(arguments.out / f"{FILE}.md", page(results))


if __name__ == "__main__":
    main()
