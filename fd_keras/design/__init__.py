"""Design quantisation tables from benign statistics and a model of the perturbation.

``design_table`` designs the table. ``removal_probability`` and ``benign_distortion`` are the model
for one band, ``band_removal`` and ``band_distortion`` apply it to all bands of a table.
``perturbation_profile`` measures an attack, to be used in place of an assumed perturbation.
"""

from fd_keras.design.generalized_gaussian import generalized_gaussian_shape
from fd_keras.design.perturbation import (
    PERTURBATIONS,
    Perturbation,
    PerturbationProfile,
    perturbation_profile,
    perturbation_std,
)
from fd_keras.design.prediction import BandStatistics, band_distortion, band_removal
from fd_keras.design.removal import (
    benign_distortion,
    empirical_distortion,
    empirical_removal_probability,
    removal_probability,
)
from fd_keras.design.tables import RANKINGS, Ranking, design_table, rank_bands

__all__ = [
    "PERTURBATIONS",
    "RANKINGS",
    "BandStatistics",
    "Perturbation",
    "PerturbationProfile",
    "Ranking",
    "band_distortion",
    "band_removal",
    "benign_distortion",
    "design_table",
    "empirical_distortion",
    "empirical_removal_probability",
    "generalized_gaussian_shape",
    "perturbation_profile",
    "perturbation_std",
    "rank_bands",
    "removal_probability",
]
