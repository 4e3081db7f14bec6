"""Feature distillation for Keras: quantise the DCT of images against adversarial perturbations."""

from fd_keras import jpeg
from fd_keras._version import __version__ as __version__
from fd_keras.certification import Certificate, certified_table, certify
from fd_keras.classifier import Classifier
from fd_keras.design import design_table, perturbation_profile, rank_bands, removal_probability
from fd_keras.detection import DistillationDetector, TamperDetector
from fd_keras.encoding import Pipeline, encode, make_pipeline
from fd_keras.evaluation import EvaluationReport, evaluate
from fd_keras.export import (
    ExportCheck,
    ExportProofError,
    export_saved_model,
    export_tflite,
    verify_export,
    wrap_saved_model,
)
from fd_keras.hardening import HardenResult, harden
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import PRESETS, preset_table
from fd_keras.protection import protect, unprotect
from fd_keras.refinement import RefineResult, learn_table, refine
from fd_keras.statistics import CoefficientStatistics
from fd_keras.tables import QuantizationTable

__all__ = [
    "PRESETS",
    "Certificate",
    "Classifier",
    "CoefficientStatistics",
    "DistillationDetector",
    "EvaluationReport",
    "ExportCheck",
    "ExportProofError",
    "FeatureDistillation",
    "HardenResult",
    "Pipeline",
    "QuantizationTable",
    "RefineResult",
    "TamperDetector",
    "certified_table",
    "certify",
    "design_table",
    "encode",
    "evaluate",
    "export_saved_model",
    "export_tflite",
    "harden",
    "jpeg",
    "learn_table",
    "make_pipeline",
    "perturbation_profile",
    "preset_table",
    "protect",
    "rank_bands",
    "refine",
    "removal_probability",
    "unprotect",
    "verify_export",
    "wrap_saved_model",
]
