"""Classify image files with an exported .tflite file; needs no TensorFlow and no fd_keras.

Usage: python run_tflite.py MODEL.tflite IMAGE... [--value-range 0 255]
"""

import argparse

import numpy as np
from ai_edge_litert.interpreter import Interpreter
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--value-range", nargs=2, type=float, default=(0, 255))
    arguments = parser.parse_args()

    interpreter = Interpreter(model_path=arguments.model)
    (details,) = interpreter.get_input_details()
    classify = interpreter.get_signature_runner("serving_default")
    for path in arguments.images:
        image = read(path, details["shape_signature"][1:], arguments.value_range)
        (scores,) = classify(images=image[np.newaxis])["predictions"]
        print(f"{path}: class {int(np.argmax(scores))}, score {float(np.max(scores)):.4g}")


if __name__ == "__main__":
    main()
