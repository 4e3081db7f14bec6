"""What shows of changes to encoded images: attacks, and innocent handling.

Images of ``../shared`` are encoded with ``certified_table``, attacked gray-box (on the classifier
alone, by the EvadeML protocol's attacks) and scored by ``TamperDetector``, whose threshold a
validation split of the untouched images sets for 5 % false positives: the area under the ROC curve
of each attack against the test split, stored as whole pixels and as JPEG files, and the share of
innocently handled images that is flagged. Run: ``python -m experiments.tampering``; finished rows
stay in the JSON file. ``--smoke`` takes eight images.
"""

import io
import json

import numpy as np
from PIL import Image

from experiments.harness import argument_parser, parsed, write_json, write_text
from experiments.networks import RUNS, classifier_and_data
from fd_keras import TamperDetector, encode
from fd_keras.evaluation import art_classifier, predicted_classes
from fd_keras.evaluation.protocols import protocol_named
from fd_keras.jpeg import encode_jpeg

FILE = "tampering.json"
FALSE_POSITIVE_RATE = 0.05
TABLES = {"cifar10": "certified:2:ycbcr", "imagenet": "certified:1:ycbcr"}
IMAGES = {"cifar10": 200, "imagenet": 40}

# Attacks that take minutes get few images, and those that are kept without loss alone.
SLOW = {
    "DeepFool": {"cifar10": 100, "imagenet": 20},
    "CW-L2": {"cifar10": 12, "imagenet": 2},
    "CW-Linf": {"cifar10": 12, "imagenet": 2},
}


def jpeg_stored(images, table):
    """What libjpeg decodes of the file of each image."""
    files = [encode_jpeg(image, table) for image in images]
    return np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in files])


def recompressed(image):
    """The image in a JPEG file of quality 95 by another program, with its usual 4:2:0."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return np.asarray(Image.open(buffer))


def resized(image):
    """The image at 90 % of its size and back."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((round(0.9 * width), round(0.9 * height)))
    return np.asarray(small.resize((width, height)))


HANDLING = {
    "nothing": lambda image: image,
    "lossless copy": lambda image: image.copy(),
    "JPEG q95": recompressed,
    "resized to 90 % and back": resized,
    "brightness + 1": lambda image: np.uint8(np.minimum(np.int16(image) + 1, 255)),
    "mirrored": lambda image: image[:, ::-1],
    "shifted by a block": lambda image: np.roll(image, 8, axis=1),
    "shifted by a pixel": lambda image: np.roll(image, 1, axis=1),
}


def handled(detector, images):
    """The share of images that is flagged after each kind of handling."""
    return {
        kind: detector.detection_rate(np.stack([change(image) for image in images]))
        for kind, change in HANDLING.items()
    }


def page(results):
    """The results as Markdown."""
    lines = ["# Tampering shows", ""]
    for name, found in results.items():
        lines += [
            f"## {RUNS[name]['title']}",
            "",
            f"{found['images']} images that chose nothing, encoded with `{found['table']}`; the "
            f"threshold is set for {FALSE_POSITIVE_RATE:.0%} false positives on "
            f"{found['adapted']} of them, the rates are of the others. Gray-box attacks "
            "on the classifier alone, of images that it had right, in floats; 'stored': rounded to "
            "whole pixels afterwards.",
            "",
            "| attack | images | kept as | AUC | flagged | AUC stored | flagged stored |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {attack} | {row['images']} | {kind} | {row['auc']:.3f} | {row['flagged']:.1%} "
            f"| {row['auc_stored']:.3f} | {row['flagged_stored']:.1%} |"
            for attack, rows in found["attacks"].items()
            for kind, row in rows.items()
        ]
        lines += ["", "| handling | flagged, kept as PNG | kept as JPEG |", "|---|---|---|"]
        lines += [
            f"| {kind} | {share:.1%} | {found['handling']['JPEG'][kind]:.1%} |"
            for kind, share in found["handling"]["PNG"].items()
        ]
        lines.append("")
    return "\n".join([*lines, "`python -m experiments.tampering`", ""])


def scores_of(detector, benign, attacked):
    """Area under the curve and share flagged, of attacked images as floats and as whole pixels."""
    whole = np.uint8(np.clip(np.rint(attacked), 0, 255))
    return {
        "images": len(attacked),
        "auc": detector.roc(benign, attacked).auc,
        "flagged": detector.detection_rate(attacked),
        "auc_stored": detector.roc(benign, whole).auc,
        "flagged_stored": detector.detection_rate(whole),
    }


def main():
    parser = argument_parser(__doc__, cache=None, smoke=True)
    parser.add_argument("--only", choices=list(RUNS), help="run this network alone")
    arguments = parsed(parser)
    target = arguments.out / FILE
    results = json.loads(target.read_text()) if target.exists() else {}
    for name in [arguments.only] if arguments.only else list(RUNS):
        classifier, (scaled, labels) = classifier_and_data(name)
        count = 24 if arguments.smoke else IMAGES[name]
        chosen = np.linspace(0, len(scaled) - 1, count).astype(int)
        images, labels = np.uint8(np.rint(255 * scaled[chosen])), labels[chosen]
        table = TABLES[name]
        kept = {"PNG": encode(images, table), "JPEG": jpeg_stored(images, table)}
        # As few images as a threshold needs, so that the most are left to be judged.
        adapted = max(20, count // 2)
        detectors = {}
        for kind, stored in kept.items():
            detectors[kind] = TamperDetector(table, input_shape=stored.shape[1:])
            detectors[kind].adapt(stored[:adapted], FALSE_POSITIVE_RATE)
        found = results.setdefault(
            name, {"images": count, "table": table, "adapted": adapted, "attacks": {}}
        )
        found["handling"] = {
            kind: handled(detectors[kind], kept[kind][adapted:]) for kind in detectors
        }
        art = art_classifier(classifier.model, value_range=(0, 1))
        for attack in protocol_named(RUNS[name]["protocol"]).gray_box:
            if attack.name in found["attacks"]:
                continue
            most = next((n[name] for kind, n in SLOW.items() if kind in attack.name), None)
            rows = {}
            for kind in ["PNG"] if most else list(kept):
                judged, classes = kept[kind][adapted:], labels[adapted:]
                right = predicted_classes(classifier.model, np.float32(judged / 255)) == classes
                used = np.flatnonzero(right)[: 2 if arguments.smoke else most]
                attacked = attack.generate(art, np.float32(judged[used] / 255), classes[used])
                rows[kind] = scores_of(detectors[kind], judged, 255 * attacked)
            found["attacks"][attack.name] = rows
            write_json(target, results)
            write_text(arguments.out / "tampering.md", page(results))
            print(name, attack.name, rows, flush=True)


if __name__ == "__main__":
    main()
