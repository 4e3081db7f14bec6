"""Measure what a classifier that guides the encoder saves of the benign loss of certified tables.

Every image is encoded with and without the undefended classifier's guidance, and classified behind
the layer. No labels are used. The images are every second one of the lossless CIFAR-10 images and
of the ImageNet sample; the encoder's constants were chosen on others. CIFAR-10's encoded images are
classified by a second network, too: the hardened ResNet-14, which did not guide. Run: ``python -m
experiments.guided_encoding``; what is in the results already is not run again.
"""

import json
import platform
import time
from importlib import metadata

import numpy as np
from rich.console import Console

from experiments import cifar10, harden_cifar10, imagenet
from experiments.harness import RESULTS, argument_parser, parsed, write_json, write_text
from fd_keras import Classifier, FeatureDistillation, certify, encode
from fd_keras._console import bar, progress_bars, text_table

FILE = "guided_encoding.json"
ROWS = [
    *(("cifar10", f"certified:{name}") for name in ("1", "2", "4", "2:ycbcr")),
    *(("imagenet", f"certified:{name}") for name in ("1", "2")),
]
AT_ONCE = 50


def hardened():
    """ResNet-14 with the weights that hardening published."""
    model = cifar10.resnet14()
    model.load_weights(str(harden_cifar10.weights_file(RESULTS, harden_cifar10.PUBLISHED[0])))
    return Classifier(model, value_range=(0, 1))


def subjects(name):
    """The guiding classifier, another one or ``None``, images as uint8 and their classes."""
    if name == "cifar10":
        images, labels = cifar10.images_and_labels()
        guide, other = Classifier(cifar10.resnet14(), value_range=(0, 1)), hardened()
    else:
        images, labels = imagenet.images_and_labels()
        guide, other = Classifier(imagenet.mobilenet(), value_range=(0, 1)), None
    return guide, other, images[1::2], labels[1::2]


def right(classifier, images, labels):
    """Which images, from 0 to 255, are classified correctly."""
    predicted = classifier.logits(np.float32(images) / 255).argmax(axis=1)
    return predicted == labels


def measured(images, labels, table, classifiers, guide, progress):
    """Encode images and classify them behind the layer."""
    layer = FeatureDistillation(table)
    parts = np.array_split(np.arange(len(images)), -(-len(images) // AT_ONCE))
    encoded, seconds = [], time.perf_counter()
    with bar(progress, f"{table}, {'guided' if guide else 'not guided'}", len(images)) as advance:
        for part in parts:
            encoded.append(encode(images[part], table, classifier=guide))
            advance(len(part))
    seconds = (time.perf_counter() - seconds) / len(images)
    encoded = np.concatenate(encoded)
    distilled = np.concatenate([np.asarray(layer(np.float32(encoded[part]))) for part in parts])
    difference = np.float64(images) - encoded
    psnr = 10 * np.log10(255**2 / np.square(difference).mean(axis=(1, 2, 3)))
    return {
        "right": [right(classifier, distilled, labels) for classifier in classifiers],
        "radius": float(certify(encoded, table).linf_radius.min()),
        "psnr": float(psnr.mean()),
        "seconds": seconds,
    }


def entry(network, table, progress):
    """Accuracies of one table, as JSON."""
    guide, other, images, labels = subjects(network)
    classifiers = [guide, *([] if other is None else [other])]
    found = {
        "network": network,
        "table": table,
        "images": len(images),
        "undefended": [int(right(c, images, labels).sum()) for c in classifiers],
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": f"tensorflow {metadata.version('tensorflow')}",
    }
    before = right(guide, images, labels)
    for name, by in (("unguided", None), ("guided", guide)):
        result = measured(images, labels, table, classifiers, by, progress)
        behind = result.pop("right")
        lost, won = int((before & ~behind[0]).sum()), int((~before & behind[0]).sum())
        found[name] = result | {"right": [int(r.sum()) for r in behind], "lost": lost, "won": won}
    return found


def loss(row, name):
    """Points of benign accuracy lost, with the 95 % interval of paired differences."""
    count, lost, won = row["images"], row[name]["lost"], row[name]["won"]
    mean = (lost - won) / count
    deviation = np.sqrt((lost + won) / count - mean**2) / np.sqrt(count)
    return f"{100 * mean:.1f} ± {196 * deviation:.1f}"


def page(rows):
    """The results as Markdown."""
    head = ["network", "table", "images", "undefended", "encoded", "loss", "guided", "loss"]
    head += ["PSNR", "PSNR guided", "other network", "encoded", "guided", "least radius"]
    lines = []
    for row in rows:
        count = row["images"]
        plain, guided = row["unguided"], row["guided"]
        shares = [[100 * n / count for n in part["right"]] for part in (plain, guided)]
        before = [100 * n / count for n in row["undefended"]]
        others = [f"{x[1]:.1f}" if len(x) > 1 else "-" for x in (before, *shares)]
        cells = [row["network"], row["table"], str(count), f"{before[0]:.1f}"]
        cells += [f"{shares[0][0]:.1f}", loss(row, "unguided")]
        cells += [f"{shares[1][0]:.1f}", loss(row, "guided")]
        cells += [f"{part['psnr']:.1f}" for part in (plain, guided)]
        lines.append([*cells, *others, f"{min(plain['radius'], guided['radius']):.2f}"])
    return (
        "# The encoder, guided by the classifier\n\n"
        "Benign accuracy in % of all images behind the layer, after `encode` alone and with "
        "`encode(..., classifier=)`, and points lost with 95 % intervals of paired differences. "
        "No labels, no attack; `certify` gives the least radius of all images in grey levels. The "
        "other network is the hardened ResNet-14, which did not guide. Every second image; the "
        "encoder's constants were chosen on the rest.\n\n"
        "Command: `python -m experiments.guided_encoding`\n\n"
        + text_table(head, lines, markdown=True)
        + "\n"
    )


def main():
    parser = argument_parser(__doc__, cache=None)
    arguments = parsed(parser)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / FILE
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {(row["network"], row["table"]) for row in rows}
    with progress_bars(Console(stderr=True), unit="images") as progress:
        for network, table in ROWS:
            if (network, table) in done:
                continue
            rows.append(entry(network, table, progress))
            write_json(path, {"rows": rows})
            write_text(path.with_suffix(".md"), page(rows))


if __name__ == "__main__":
    main()
