"""Feature distillation for Keras: an in-graph DCT quantiser that rounds attacks away."""

from fd_keras.export import export_saved_model, export_tflite
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import PRESETS, preset_table
from fd_keras.protection import protect
from fd_keras.tables import QuantizationTable

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "FeatureDistillation",
    "QuantizationTable",
    "export_saved_model",
    "export_tflite",
    "preset_table",
    "protect",
]
