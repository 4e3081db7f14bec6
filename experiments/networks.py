"""The two classifiers that experiments attack, with their images, protocols and limits."""

import numpy as np

from experiments import cifar10, imagenet
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages

# Limits keep slow attacks and defences to few images; each accuracy is printed with its count.
# Epsilon, in grey levels of 255, is what tables are designed for.
RUNS = {
    "imagenet": {
        "title": "MobileNetV2 1.0/224 on ImageNet images",
        "data": "500 ImageNet images, one for every second class",
        "protocol": "evademl-imagenet",
        "epsilon": 2.0,
        "max_images": 1000,
        "limits": {
            "DeepFool": 200,
            "CW-L2": 0,
            "CW-Linf": 0,
            "adaptive": 200,
            "Square": 200,
            "TVM": 200,
            "quilting": 200,
        },
        "two_passes": {
            "max_images": 272,
            "limits": {"DeepFool": 200, "CW-L2": 0, "CW-Linf": 0, "adaptive": 0, "Square": 0},
        },
    },
    "cifar10": {
        "title": "ResNet-14 on lossless CIFAR-10 images",
        "data": "2000 lossless CIFAR-10 images",
        "protocol": "evademl-cifar10",
        "epsilon": 2.0,
        "max_images": 600,
        "limits": {
            "DeepFool": 200,
            "CW-L2": 200,
            "CW-Linf": 200,
            "adaptive": 200,
            "Square": 200,
        },
        "two_passes": {
            "max_images": 320,
            "limits": {"DeepFool": 200, "CW-L2": 0, "CW-Linf": 0, "adaptive": 200, "Square": 0},
        },
    },
}

_LOADERS = {
    "imagenet": (imagenet.mobilenet, imagenet.images_and_labels),
    "cifar10": (cifar10.resnet14, cifar10.images_and_labels),
}


def classifier_and_data(name):
    """The classifier of a run, and its images in [0, 1] with their classes."""
    load_model, load_images = _LOADERS[name]
    images, labels = load_images()
    return Classifier(load_model(), value_range=(0, 1)), (np.float32(images / 255), labels)


def in_order(data):
    """The images of `classifier_and_data` as a sample of our own: the first ones are taken."""
    return LabelledImages(*data, (0.0, 1.0))
