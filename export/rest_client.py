"""Classify image files with TF Serving over REST; needs nothing but Python.

Usage: python rest_client.py IMAGE... [--url http://localhost:8501] [--model classifier]
       [--labels served/classifier]
"""

import argparse
import base64
import json
import urllib.request
from pathlib import Path

from class_names import class_names, described


def predict(url, model, files):
    """What the signature ``serving_bytes`` returns for each file."""
    contents = [base64.b64encode(Path(file).read_bytes()).decode() for file in files]
    body = {
        "signature_name": "serving_bytes",
        "instances": [{"image_bytes": {"b64": content}} for content in contents],
    }
    request = urllib.request.Request(
        f"{url}/v1/models/{model}:predict",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["predictions"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--url", default="http://localhost:8501")
    parser.add_argument("--model", default="classifier")
    parser.add_argument(
        "--labels", help="a text file, or the export; default: served/MODEL, where it is here"
    )
    arguments = parser.parse_args()
    results = predict(arguments.url, arguments.model, arguments.images)
    names = class_names(arguments.labels or Path("served", arguments.model), len(results[0]))
    for image, scores in zip(arguments.images, results):
        best = max(range(len(scores)), key=scores.__getitem__)
        print(f"{image}: {described(best, names)}, score {scores[best]:.4g}")


if __name__ == "__main__":
    main()
