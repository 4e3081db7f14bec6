"""A demonstration on packaged images: train, attack, defend, export and report."""

from fd_keras.demo.digits import Digits, build_classifier, load_digits, train_classifier
from fd_keras.demo.run import DemoResult, run_demo

__all__ = [
    "DemoResult",
    "Digits",
    "build_classifier",
    "load_digits",
    "run_demo",
    "train_classifier",
]
