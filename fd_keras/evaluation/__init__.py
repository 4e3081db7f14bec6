"""Attacking classifiers and counting what they still get right."""

from fd_keras.evaluation.accuracy import accuracy, predicted_classes
from fd_keras.evaluation.attacks import art_classifier, bim, fgsm

__all__ = ["accuracy", "art_classifier", "bim", "fgsm", "predicted_classes"]
