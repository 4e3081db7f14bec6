"""Certify images that were encoded, as whole pixels and as JPEG files, and what encoding costs.

Every image of ``../shared`` (2000 of CIFAR-10, 500 of ImageNet) is encoded with
``certified_table(e)`` for 1, 2 and 4 grey levels, in RGB and in YCbCr: how many certify, what it
costs in PSNR, bytes and benign accuracy behind the layer, and how many still certify after a JPEG
file was written and decoded by libjpeg. Run: ``python -m experiments.certificates``; finished
rows stay in the JSON file, so that a run that was stopped goes on. ``--smoke`` takes eight images
of each network.
"""

import io
import json

import numpy as np
from PIL import Image
from rich.progress import track

from experiments.harness import argument_parser, parsed, write_json, write_text
from experiments.networks import RUNS, classifier_and_data
from fd_keras import FeatureDistillation, certified_table, certify, encode
from fd_keras.evaluation import predicted_classes
from fd_keras.evaluation.accuracies import wilson_interval
from fd_keras.jpeg import encode_jpeg

EPSILONS = (1, 2, 4)
SPACES = ("rgb", "ycbcr")
FILE = "certificates.json"

# Blocks are chosen one by one, so that images of whole blocks can share a file; of these many,
# files of their own are written, to count bytes and to check just that.
_AT_ONCE = 2**20  # pixels
_OWN_FILES = 40


def psnr(images, originals):
    """Mean peak signal-to-noise ratio in dB."""
    errors = np.mean((np.float32(images) - originals) ** 2, axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / errors)))


def after_jpeg(images, table):
    """What libjpeg decodes of a JPEG file of each image, several to a file."""
    count, height, width, channels = images.shape
    per_file = max(1, _AT_ONCE // (height * width))
    decoded = []
    for start in track(range(0, count, per_file), description=f"JPEG, {table.name}"):
        part = images[start : start + per_file]
        content = encode_jpeg(part.reshape(-1, width, channels), table)
        decoded.append(np.asarray(Image.open(io.BytesIO(content))).reshape(part.shape))
    return np.concatenate(decoded)


def own_files(images, decoded, table):
    """Mean bytes of JPEG files of single images, and of PNG files of their encoded versions."""
    sizes = []
    for image, expected in zip(images[:_OWN_FILES], decoded):
        content = encode_jpeg(image, table)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), expected)
        sizes.append(len(content))
    return float(np.mean(sizes))


def png_bytes(images):
    """Mean bytes of PNG files."""
    sizes = []
    for image in images[:_OWN_FILES]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", optimize=True)
        sizes.append(len(buffer.getvalue()))
    return float(np.mean(sizes))


def reached(images, table, epsilon):
    """How many images certify the radius, and the least radius."""
    certificate = certify(images, table)
    return {
        "certified": int(certificate.holds(epsilon).sum()),
        "least_radius": float(certificate.linf_radius.min()),
    }


def correct(model, images, labels, table=None):
    """How many images are right, behind the layer where there is a table."""
    scaled = np.float32(images / 255)
    if table is not None:
        layer = FeatureDistillation(table, value_range=(0, 1))
        parts = [np.asarray(layer(scaled[i : i + 50])) for i in range(0, len(scaled), 50)]
        scaled = np.concatenate(parts)
    return int((predicted_classes(model, scaled) == labels).sum())


def measured(model, images, labels, table, epsilon):
    """One row: a table on all images of a network."""
    encoded = encode(images, table)
    decoded = after_jpeg(images, table)
    return {
        "png": {
            **reached(encoded, table, epsilon),
            "psnr": psnr(encoded, images),
            "bytes": png_bytes(encoded),
            "correct": correct(model, encoded, labels, table),
        },
        "jpeg": {
            **reached(decoded, table, epsilon),
            "psnr": psnr(decoded, images),
            "bytes": own_files(images, decoded, table),
        },
    }


def page(results):
    """The results as Markdown."""
    lines = ["# Certified images", ""]
    for name, found in results.items():
        count = found["images"]
        low, high = (100 * x for x in wilson_interval(found["correct"], count))
        lines += [
            f"## {RUNS[name]['title']}",
            "",
            f"{count} images that chose nothing, {found['png_bytes']:.0f} bytes each as PNG. "
            f"Undefended, {100 * found['correct'] / count:.1f} % ({low:.1f} to {high:.1f}) are "
            "right. Files: what libjpeg decodes. Accuracy: benign, of all images against their "
            "labels, encoded and then distilled (two passes).",
            "",
            "| table | PNG: certified | least radius | PSNR | bytes | accuracy "
            "| JPEG: certified | least radius | PSNR | bytes |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for table, row in found["rows"].items():
            cells = [table]
            for kind in ("png", "jpeg"):
                part = row[kind]
                cells += [
                    f"{part['certified']} of {count}",
                    f"{part['least_radius']:.3f}",
                    f"{part['psnr']:.1f} dB",
                    f"{part['bytes']:.0f}",
                ]
                if "correct" in part:
                    cells.append(f"{100 * part['correct'] / count:.1f} %")
            lines.append(f"| `{' | '.join([cells[0] + '`', *cells[1:]])} |")
        lines.append("")
    lines += [
        f"`python -m experiments.certificates`; bytes are means over {_OWN_FILES} files.",
        "",
    ]
    return "\n".join(lines)


def main():
    parser = argument_parser(__doc__, cache=None, smoke=True)
    parser.add_argument("--only", choices=list(RUNS), help="run this network alone")
    arguments = parsed(parser)
    target = arguments.out / FILE
    results = json.loads(target.read_text()) if target.exists() else {}
    for name in [arguments.only] if arguments.only else list(RUNS):
        classifier, (scaled, labels) = classifier_and_data(name)
        images = np.uint8(np.rint(255 * scaled))
        if arguments.smoke:
            images, labels = images[:8], labels[:8]
        if name not in results:
            results[name] = {
                "images": len(images),
                "correct": correct(classifier.model, images, labels),
                "png_bytes": png_bytes(images),
                "rows": {},
            }
        rows = results[name]["rows"]
        for epsilon in EPSILONS:
            for space in SPACES:
                table = certified_table(epsilon, color_space=space)
                if table.name in rows:
                    continue
                rows[table.name] = measured(classifier.model, images, labels, table, epsilon)
                write_json(target, results)
                write_text(arguments.out / "certificates.md", page(results))
                print(name, table.name, rows[table.name], flush=True)


if __name__ == "__main__":
    main()
