"""Fine-tune a classifier behind its layer, on distilled and attacked images.

``harden`` does it all. ``HardeningModel`` is the Keras model that it fits, for those who want
``compile`` and ``fit`` in their own hands, with ``AverageWeights`` among the callbacks.
"""

from fd_keras.hardening.harden import harden
from fd_keras.hardening.model import AverageWeights, HardeningModel
from fd_keras.hardening.recipe import Recipe, Training
from fd_keras.hardening.result import HardenResult

__all__ = ["AverageWeights", "HardenResult", "HardeningModel", "Recipe", "Training", "harden"]
