"""Classify image files with an exported .tflite file; needs no TensorFlow and no fd_keras.

Usage: python run_tflite.py MODEL.tflite IMAGE... [--value-range 0 255] [--labels labels.txt]
       [--output predictions] [--threshold 0.5]
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from decisions import add_options, described
from PIL import Image


def read(path, shape, value_range):
    """One image as the model takes it: (height, width, channels) in its value range."""
    height, width, channels = shape
    picture = Image.open(path).convert("L" if channels == 1 else "RGB")
    if height > 0:  # a model with a fixed size; -1 means any
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture, np.float32).reshape(picture.height, picture.width, channels)
    low, high = value_range
    return low + pixels / 255 * (high - low)


def details_of(content):
    """What the exporter wrote about the file; {} for a file of another origin."""
    model = schema.Model.GetRootAs(content, 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == b"fd_keras.json":
            return json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
    return {}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--value-range", nargs=2, type=float, help="default: the file's own")
    add_options(parser, "text file with a name on each line; default: the file's")
    arguments = parser.parse_args()

    content = Path(arguments.model).read_bytes()
    try:
        interpreter = Interpreter(model_content=content)
        exported = details_of(content)
    except Exception as error:  # the reader raises many types on damaged files
        raise SystemExit(f"{arguments.model} is not a whole TFLite file ({error})") from error
    value_range = arguments.value_range or exported.get("value_range")
    if value_range is None:
        value_range = (0, 255)
        print("The file does not say its value range, 0 to 255 is taken", file=sys.stderr)
    (details,) = interpreter.get_input_details()
    classify = interpreter.get_signature_runner("serving_default")
    for path in arguments.images:
        image = read(path, details["shape_signature"][1:], value_range)
        outputs = classify(images=image[np.newaxis])
        by_name = {name: values.tolist() for name, values in outputs.items()}
        (line,) = described(by_name, exported, arguments)
        print(f"{path}: {line}")


if __name__ == "__main__":
    main()
