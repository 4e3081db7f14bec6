"""Harden with as many processes as ``TF_CONFIG`` says; run by ``test_team.py``."""

import json
import os
import sys

import keras
import numpy as np
import tensorflow as tf

from fd_keras import FeatureDistillation, harden
from fd_keras.hardening import Recipe, Training


class Killed(keras.callbacks.Callback):
    """Ends the process in the middle of its second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 0):
            os._exit(9)


def main(directory, out, killed):
    together = "TF_CONFIG" in os.environ
    # A strategy must be made before anything else of TensorFlow.
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if together else None
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 1))
    pixels = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(pixels))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (64, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, 3, 64)
    training = Training(
        epochs=3,
        batch_size=16,
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9),
        callbacks=[Killed()] * killed,
    )
    with strategy.scope() if strategy else tf.distribute.get_strategy().scope():
        result = harden(
            *(model, FeatureDistillation("liu2019"), (images[:48], labels[:48])),
            *((images[48:], labels[48:]), Recipe(epsilon=0), training),
            directory=directory or None,
            max_benign_loss=1.0,
        )
    weights = [float(np.abs(weight).sum()) for weight in result.model.get_weights()]
    with open(out, "w") as file:
        json.dump({"history": result.history, "weights": weights}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] == ["killed"])
