"""The paper's second step: search the quantisation table against the classifier itself.

``refine`` searches, and ``learn_table`` continues from a table by gradient descent. To run
Keras Tuner with an oracle of your own, use ``fd_keras.refinement.tuner.RefinementTuner``; it is
imported from there, because Keras Tuner is slow to import.
"""

from fd_keras.refinement.learn import LearnResult, learn_table
from fd_keras.refinement.plots import parameter_importance
from fd_keras.refinement.refine import Search, refine
from fd_keras.refinement.result import RefineResult
from fd_keras.refinement.space import band_space, certified_space

__all__ = [
    "LearnResult",
    "RefineResult",
    "Search",
    "band_space",
    "certified_space",
    "learn_table",
    "parameter_importance",
    "refine",
]
