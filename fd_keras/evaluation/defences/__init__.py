"""Feature distillation and the baselines to compare it with, as defences of one type."""

from fd_keras.evaluation.defences.base import Defence, Encoder, no_defence
from fd_keras.evaluation.defences.compression import (
    jpeg_compression,
    stochastic_local_quantisation,
)
from fd_keras.evaluation.defences.distillation import distillation
from fd_keras.evaluation.defences.quilting import image_quilting
from fd_keras.evaluation.defences.registry import (
    CANDIDATES,
    defence,
    numbered,
    same_defence,
    uniquely_named,
)
from fd_keras.evaluation.defences.squeezing import bit_depth, median_smoothing
from fd_keras.evaluation.defences.total_variation import total_variation

__all__ = [
    "CANDIDATES",
    "Defence",
    "Encoder",
    "bit_depth",
    "defence",
    "distillation",
    "image_quilting",
    "jpeg_compression",
    "median_smoothing",
    "no_defence",
    "numbered",
    "same_defence",
    "stochastic_local_quantisation",
    "total_variation",
    "uniquely_named",
]
