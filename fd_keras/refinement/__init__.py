"""The paper's second step: searching the quantisation table against the network itself.

``refine`` is the search, and ``learn_table`` goes on from its table by gradient.
``fd_keras.refinement.space`` holds the spaces to search. For users of Keras Tuner who bring
their own oracle there is ``fd_keras.refinement.tuner.RefinementTuner``; it is imported from
there, because Keras Tuner is slow to import.
"""

from fd_keras.refinement.learn import LearnResult, learn_table
from fd_keras.refinement.plots import parameter_importance
from fd_keras.refinement.refine import refine
from fd_keras.refinement.result import RefineResult
from fd_keras.refinement.space import band_space, curve_space, group_space

__all__ = [
    "LearnResult",
    "RefineResult",
    "band_space",
    "curve_space",
    "group_space",
    "learn_table",
    "parameter_importance",
    "refine",
]
