"""Compare the speed of measuring coefficients with that of the layer's forward pass.

Run: ``python -m benchmarks.statistics_speed``
"""

import numpy as np
import tensorflow as tf

from benchmarks.interleaved import median_seconds
from fd_keras import FeatureDistillation
from fd_keras.statistics import CoefficientStatistics


def main():
    images = np.random.default_rng(1).integers(0, 256, (128, 224, 224, 3), np.uint8)
    layer = tf.function(FeatureDistillation("jpeg"))

    def forward():
        for start in range(0, len(images), 32):
            layer(tf.cast(images[start : start + 32], tf.float32))

    def measure():
        CoefficientStatistics.from_data(images, color_space="ycbcr")

    seconds = median_seconds({"forward": forward, "measure": measure}, rounds=7)
    for name, value in seconds.items():
        print(f"{name}: {1e3 * value / len(images):.3f} ms per image of 224x224x3")
    print(f"measuring runs at {seconds['forward'] / seconds['measure']:.2f}x the forward pass")


if __name__ == "__main__":
    main()
