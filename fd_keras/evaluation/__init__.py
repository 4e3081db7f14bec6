"""Attacks on classifiers, and their accuracies behind defences."""

from fd_keras.evaluation.accuracies import accuracy, predicted_classes
from fd_keras.evaluation.attacks import (
    Attack,
    autoattack,
    bim,
    carlini_wagner_l2,
    carlini_wagner_linf,
    deepfool,
    fgsm,
    half_step,
    pgd,
    square,
)
from fd_keras.evaluation.classifiers import art_classifier
from fd_keras.evaluation.evaluate import evaluate
from fd_keras.evaluation.protocols import PROTOCOLS, Protocol, attack_protocol, protocol_named
from fd_keras.evaluation.report import EvaluationReport

__all__ = [
    "PROTOCOLS",
    "Attack",
    "EvaluationReport",
    "Protocol",
    "accuracy",
    "art_classifier",
    "attack_protocol",
    "autoattack",
    "bim",
    "carlini_wagner_l2",
    "carlini_wagner_linf",
    "deepfool",
    "evaluate",
    "fgsm",
    "half_step",
    "pgd",
    "predicted_classes",
    "protocol_named",
    "square",
]
