"""What an export says about its classes, and how its outputs decide; needs nothing but Python."""

import json
import sys
from pathlib import Path

# The outputs that classify, by name, where there are others beside them.
CLASSIFYING = ("predictions", "logits", "probabilities")


def add_options(parser, labels):
    """Options about classes; ``labels`` is the help text of ``--labels``."""
    parser.add_argument("--labels", help=labels)
    parser.add_argument("--output", help="the output that classifies, of a model with several")
    parser.add_argument(
        "--threshold",
        type=float,
        help="what a single output must exceed for class 1: 0.5 for a probability, 0 for a logit; "
        "default: what the export says",
    )


def exported_details(place):
    """What an exported SavedModel, or the newest version in a directory, says about itself."""
    place = Path(place)
    versions = [path for path in place.glob("*") if path.name.isdecimal()]
    newest = max(versions, key=lambda path: int(path.name), default=place)
    files = [folder / "assets.extra" / "fd_keras.json" for folder in (place, newest)]
    found = [file for file in files if file.is_file()]
    return json.loads(found[0].read_text(encoding="utf-8")) if found else {}


def described(outputs, details, arguments):
    """A line about each image: its class, with the class's name and score.

    ``outputs`` holds a list of numbers for each image, by the name of the output, ``details`` what
    the export says about itself, and ``arguments`` the values of ``add_options``.
    """
    name = _classifying(outputs, arguments.output)
    rows = [scores if isinstance(scores, list) else [scores] for scores in outputs[name]]
    if any(isinstance(score, list) for score in rows[0]):
        raise SystemExit(f"The output {name} holds no scores of classes; --output names another")
    count = max(2, len(rows[0]))
    names = details.get("labels")
    if arguments.labels and Path(arguments.labels).is_file():
        names = Path(arguments.labels).read_text(encoding="utf-8-sig").splitlines()
    if names and len(names) != count:
        raise SystemExit(
            f"There are names of {len(names)} classes, and the model has {count}; give --labels"
        )
    named = [f"class {index}" + (f" ({names[index]})" if names else "") for index in range(count)]
    if len(rows[0]) > 1:
        best = [max(range(count), key=scores.__getitem__) for scores in rows]
        return [f"{named[index]}, score {row[index]:.4g}" for index, row in zip(best, rows)]
    known = details.get("thresholds") or {}
    if len(outputs) == len(known) == 1:
        known = dict(zip(outputs, known.values()))  # TF Serving's REST does not name a sole output
    threshold = known.get(name) if arguments.threshold is None else arguments.threshold
    if threshold is None:
        threshold = _assumed_threshold(rows)
    return [
        f"{named[score > threshold]}, output {score:.4g}, class 1 above {threshold:g}"
        for (score,) in rows
    ]


def _classifying(outputs, wanted):
    names = list(outputs) if len(outputs) == 1 else [n for n in CLASSIFYING if n in outputs]
    name = wanted or next(iter(names), None)
    if name not in outputs:
        raise SystemExit(f"--output must name one of {', '.join(sorted(outputs))}")
    return name


def _assumed_threshold(rows):
    probability = all(0 <= score <= 1 for (score,) in rows)
    kind = "probability" if probability else "logit"
    print(f"The output is taken for a {kind}; --threshold says otherwise", file=sys.stderr)
    return 0.5 if probability else 0.0
