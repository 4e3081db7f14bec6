"""Classify image files with TF Serving over REST; needs nothing but Python.

Usage: python rest_client.py IMAGE... [--url http://localhost:8501] [--model classifier]
       [--labels served/classifier] [--output predictions] [--threshold 0.5]
"""

import argparse
import base64
import json
import urllib.request
from pathlib import Path

from decisions import add_options, described, exported_details


def predict(url, model, files):
    """What the signature ``serving_bytes`` returns for all files, by output."""
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
        rows = json.load(answer)["predictions"]
    if isinstance(rows[0], dict):  # several outputs
        return {name: [row[name] for row in rows] for name in rows[0]}
    return {"predictions": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--url", default="http://localhost:8501")
    parser.add_argument("--model", default="classifier")
    add_options(parser, "a text file, or the export; default: served/MODEL, where it is here")
    arguments = parser.parse_args()
    outputs = predict(arguments.url, arguments.model, arguments.images)
    details = exported_details(arguments.labels or "") or exported_details(
        Path("served", arguments.model)
    )
    for image, line in zip(arguments.images, described(outputs, details, arguments)):
        print(f"{image}: {line}")


if __name__ == "__main__":
    main()
