"""Export protected models as graphs that need neither Python nor fd_keras, and prove them."""

from fd_keras.export.check import ExportCheck, ExportProofError
from fd_keras.export.saved_model import export_saved_model
from fd_keras.export.tflite import export_tflite
from fd_keras.export.verification import verify_export
from fd_keras.export.wrapping import wrap_saved_model

__all__ = [
    "ExportCheck",
    "ExportProofError",
    "export_saved_model",
    "export_tflite",
    "verify_export",
    "wrap_saved_model",
]
