"""Time per image of attacks that leave ART, against ART's, at equal strength.

CIFAR-10 images of ``../shared`` that ResNet-14 gets right: DeepFool and targeted CW-L2 from Foolbox
in whole batches against ART's, and PGD that leaves an image once it is misclassified against
ART's, alone and through soft thresholding. Both of a pair are run in turn, in one process, on the
same images. Run: ``python -m experiments.attack_speed``; finished rows stay in the JSON file.
``--smoke`` takes four images and few steps.
"""

import json
import time

import numpy as np

from experiments.harness import argument_parser, parsed, write_json, write_text
from experiments.networks import classifier_and_data
from fd_keras._console import text_table
from fd_keras._extras import import_extra
from fd_keras.evaluation import carlini_wagner_l2, deepfool, pgd
from fd_keras.evaluation.classifiers import attackable
from fd_keras.evaluation.defences import defence
from fd_keras.evaluation.runners import targets

FILE = "attack_speed.json"


def arts(attack, classifier, images, labels, aims):
    """ART's attack with the same parameters."""
    evasion = import_extra("art.attacks.evasion", "evaluate")
    given = attack.parameters
    if attack.family == "DeepFool":
        # ART takes gradients for the likely classes of a whole batch: one image at a time.
        options = {"epsilon": given["overshoot"], "nb_grads": given["candidates"]}
        made = evasion.DeepFool(
            classifier, max_iter=given["steps"], batch_size=1, verbose=False, **options
        )
        return made.generate(images, labels)
    made = evasion.CarliniL2Method(
        classifier,
        confidence=given["confidence"],
        targeted=True,
        learning_rate=given["stepsize"],
        binary_search_steps=given["binary_search_steps"],
        max_iter=given["steps"],
        initial_const=given["initial_const"],
        batch_size=len(images),
        verbose=False,
    )
    return made.generate(images, aims)


def pairs(steps):
    """Name, attack, the defence attacked through, and whether ART's is `Attack.generate`'s own."""
    cw = carlini_wagner_l2("next", iterations=steps)
    pgds = [(f"{pgd(level, 40).name}", pgd(level, 40)) for level in (1, 2)]
    return [
        ("DeepFool", deepfool(), "none"),
        (f"CW-L2 next, at most {steps} steps", cw, "none"),
        *((f"{name}, alone", attack, "none") for name, attack in pgds),
        *((f"{name}, through soft8", attack, "soft8") for name, attack in pgds),
    ]


def measured(classifier, images, labels, attack):
    """Both times, and what each of them did."""
    aims = targets("next", classifier.predict(images), labels)
    swapped = attack.family != "PGD"
    ways = {
        "art": (lambda x, y, t: arts(attack, classifier, x, y, t))
        if swapped
        else (lambda x, y, t: attack.generate(classifier, x, y)),
        "ours": lambda x, y, t: attack.generate(classifier, x, y, until_wrong=not swapped),
    }
    found = {}
    for name, run in ways.items():
        started = time.perf_counter()
        attacked = run(images, labels, aims)
        seconds = time.perf_counter() - started
        classes = classifier.predict(attacked).argmax(axis=-1)
        reached = classes == aims if attack.target else classes != labels
        change = (attacked - images)[reached].reshape(int(reached.sum()), -1)
        found[name] = {
            "seconds_per_image": seconds / len(images),
            "success": float(reached.mean()),
            "mean_l2": float(np.linalg.norm(change, axis=1).mean()) if len(change) else None,
        }
    return found


def page(results):
    """The results as Markdown."""
    body = []
    for name, row in results["attacks"].items():
        ours, art = row["ours"], row["art"]
        body.append(
            [
                name,
                str(row["images"]),
                *(f"{way['seconds_per_image']:.2f}" for way in (art, ours)),
                f"{art['seconds_per_image'] / ours['seconds_per_image']:.1f}",
                *(f"{100 * way['success']:.0f}" for way in (art, ours)),
                *("-" if w["mean_l2"] is None else f"{w['mean_l2']:.3f}" for w in (art, ours)),
            ]
        )
    heads = ["attack", "images", "ART, s per image", "ours, s per image", "ratio"]
    heads += ["ART succeeds, %", "ours, %", "ART, mean L2", "ours, mean L2"]
    return "\n".join(
        [
            "# Speed of attacks",
            "",
            "ResNet-14 on CIFAR-10 images that it gets right; both of a pair in turn, in one "
            "process, on the same images, compilation included. Ours are Foolbox's DeepFool and "
            "CW-L2, and PGD that leaves an image once it is misclassified. Norms are of pixels "
            "from 0 to 1.",
            "",
            text_table(heads, body, markdown=True),
            "",
            f"{results['machine']}",
            "",
        ]
    )


def main():
    """Run the experiment."""
    parser = argument_parser(__doc__, cache=None, smoke=True)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1000, help="of CW-L2, for each constant")
    parser.add_argument("--machine", default="2 cores", help="what the page says of the machine")
    parser.add_argument("--attacks", nargs="*", help="only those whose names begin so")
    arguments = parsed(parser)
    count, steps = (4, 5) if arguments.smoke else (arguments.images, arguments.steps)
    path = arguments.out / FILE
    results = json.loads(path.read_text()) if path.exists() else {"attacks": {}}
    results["machine"] = arguments.machine
    classifier, (images, labels) = classifier_and_data("cifar10")
    right = classifier.logits(images[: 2 * count]).argmax(axis=-1) == labels[: 2 * count]
    images, labels = images[: 2 * count][right][:count], labels[: 2 * count][right][:count]
    for name, attack, through in pairs(steps):
        wanted = arguments.attacks is None or name.startswith(tuple(arguments.attacks))
        if name in results["attacks"] or not wanted:
            continue
        obstacle = None if through == "none" else defence(through)
        attacked = attackable(classifier, images.shape[1:], obstacle)
        attacked.predict(images)
        row = measured(attacked, images, labels, attack)
        results["attacks"][name] = {"images": len(images), **row}
        write_json(path, results)
        write_text(path.with_suffix(".md"), page(results))
        print(name, results["attacks"][name], flush=True)


if __name__ == "__main__":
    main()
