"""Writing a protected model as one graph that needs neither Python nor fd_keras."""

from fd_keras.export.saved_model import export_saved_model
from fd_keras.export.tflite import export_tflite

__all__ = ["export_saved_model", "export_tflite"]
