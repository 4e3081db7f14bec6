"""From a trained classifier to served files: harden, evaluate, export, verify.

A small classifier of handwritten digits stands for yours: replace ``digits`` and ``classifier``. It
takes a minute or two and needs the extras evaluate and export, but no network.

Usage: python harden_to_serving.py [--table liu2019] [--epsilon 8] [--out hardened] [--smoke]
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import fd_keras
from fd_keras.classifier import Classifier
from fd_keras.demo import load_digits
from fd_keras.evaluation import Protocol, art_classifier, bim, pgd, square
from fd_keras.hardening import Recipe, Training

VALUE_RANGE = (0, 1)
LABELS = [str(digit) for digit in range(10)]


def digits(seed):
    """Labelled images for training and testing, in VALUE_RANGE."""
    data = load_digits(seed)
    train, test = ((part.images / 255, part.labels) for part in (data.train, data.test))
    return train, test


def residual(x, filters):
    """Two convolutions beside a strided one, at half the resolution."""
    layers = keras.layers
    inner = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
    inner = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(inner))
    inner = layers.Conv2D(filters, 3, padding="same", use_bias=False)(inner)
    inner = layers.BatchNormalization(momentum=0.9)(inner)
    return layers.ReLU()(layers.Add()([inner, layers.Conv2D(filters, 1, 2)(x)]))


def classifier(train, epochs):
    """A trained functional model that returns logits."""
    inputs = keras.Input(train[0].shape[1:], name="image")
    # A strided block straight behind the single channel crashed TensorFlow 2.21 in training.
    x = keras.layers.Conv2D(16, 3, padding="same")(inputs)
    x = residual(residual(x, 16), 32)
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, keras.layers.Dense(len(LABELS))(x), name="digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    model.fit(*train, batch_size=32, epochs=epochs, verbose=0)
    return model


def evaluated(result, test, arguments):
    """What gray-box, adaptive and black-box attackers leave of the classifier behind its layer."""
    epsilon = arguments.epsilon
    protocol = Protocol(
        "digits",
        "BIM, PGD and Square at one strength, and PGD at one that nothing withstands.",
        gray_box=(bim(epsilon, epsilon / 4),),
        adaptive=(pgd(epsilon, 20), pgd(127.5, 20)),
        black_box=(square(epsilon, 100),),
    )
    return fd_keras.evaluate(
        Classifier(result.model, value_range=VALUE_RANGE),
        test,
        [result.layer],
        protocol,
        max_images=arguments.images,
        seed=arguments.seed,
        cache_dir=arguments.out / "evaluation",
    )


def exported(result, out):
    """A SavedModel version for TF Serving and a TFLite file of the classifier and its layer."""
    # Not proven here: both are compared with Keras on attacked images below.
    model = result.protected
    yield fd_keras.export_saved_model(model, out / "served" / "digits", labels=LABELS, verify=False)
    yield fd_keras.export_tflite(model, out / "digits.tflite", labels=LABELS, verify=False)


def verified(paths, result, test, arguments):
    """How the files compare with Keras on attacked images; raises unless they are proven."""
    attack = bim(arguments.epsilon, arguments.epsilon / 4)
    images, labels = (part[: arguments.images] for part in test)
    attacker = art_classifier(result.model, value_range=VALUE_RANGE)
    attacked = attack.generate(attacker, np.float32(images), labels, seed=arguments.seed)
    for path in paths:
        check = fd_keras.verify_export(
            path, result.protected, attacked, labels, threat_model=f"gray-box {attack.name}"
        )
        check.raise_for_problems()
        yield check


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default="liu2019", help="a preset")
    parser.add_argument("--epsilon", type=int, default=8, help="of attacks, in grey levels of 255")
    parser.add_argument("--epochs", type=int, default=10, help="of the training")
    parser.add_argument("--harden-epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=100, help="under attack")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("hardened"))
    parser.add_argument("--smoke", action="store_true", help="seconds, without meaning")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.epochs, arguments.harden_epochs, arguments.images = 6, 1, 8
    keras.utils.set_random_seed(arguments.seed)
    train, test = digits(arguments.seed)
    if arguments.smoke:
        train = tuple(part[:400] for part in train)
    model = classifier(train, arguments.epochs)
    layer = fd_keras.FeatureDistillation(arguments.table, value_range=VALUE_RANGE)

    result = fd_keras.harden(
        model,
        layer,
        train,
        recipe=Recipe(epsilon=arguments.epsilon),
        training=Training(epochs=arguments.harden_epochs, batch_size=32),
        seed=arguments.seed,
    )
    result.save(arguments.out / "hardening")
    print(
        f"Hardened behind {result.table.name}, attacks of {arguments.epsilon}/255", result, sep="\n"
    )

    report = evaluated(result, test, arguments)
    report.to_html(arguments.out / "report.html")
    print(
        "\nThe hardened classifier on test images that it gets right alone",
        report.table(),
        sep="\n",
    )
    for check in report.checks:
        if not check["passed"]:
            print(f"CHECK FAILED: {check['name']}: {check['detail']}")

    print("\nExported")
    for check in verified(exported(result, arguments.out), result, test, arguments):
        print(check)


if __name__ == "__main__":
    main()
