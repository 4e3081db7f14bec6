"""The whole line on packaged data: train, attack, defend, export, compare, report."""

from fd_keras.demo.classifier import build_classifier, train_classifier
from fd_keras.demo.digits import Digits, ImageSet, load_digits
from fd_keras.demo.result import Accuracy, Agreement, Attack, DemoResult, Example
from fd_keras.demo.run import run_demo
from fd_keras.demo.runtimes import predict_with_saved_model, predict_with_tflite

__all__ = [
    "Accuracy",
    "Agreement",
    "Attack",
    "DemoResult",
    "Digits",
    "Example",
    "ImageSet",
    "build_classifier",
    "load_digits",
    "predict_with_saved_model",
    "predict_with_tflite",
    "run_demo",
    "train_classifier",
]
