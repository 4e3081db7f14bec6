"""Compare predicted removal probabilities of every band with counts under real attacks.

Statistics and attack profiles come from the validation split, counts from the test split. Run:
``python -m experiments.removal_model [--out experiments/results]``
"""

import json

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from experiments.harness import argument_parser, parsed
from experiments.imagenet import ATTACKS, CACHE, attacked_images, mobilenet
from fd_keras import QuantizationTable, design_table, perturbation_profile, preset_table
from fd_keras.design import band_removal
from fd_keras.kernels import coefficients
from fd_keras.statistics import CoefficientStatistics

# L-inf size of each attack in grey levels of 255.
EPSILONS = {"FGSM .0078": 0.0078 * 255, "BIM .004": 0.004 * 255}


def counted_removal(benign, attacked, steps, color_space):
    """Share of coefficients that stay in their bin, (channels, 8, 8)."""
    grid = steps.transpose(1, 2, 0).reshape(8, 1, -1)  # as `coefficients` orders them

    def bins(image):
        pixels = tf.constant(255 * image[np.newaxis])
        return np.round(np.asarray(coefficients(pixels, color_space)) / grid)

    same = [(bins(x) == bins(y)).mean((0, 2)) for x, y in zip(benign, attacked)]
    return np.mean(same, 0).reshape(8, 8, -1).transpose(2, 0, 1)


def main():
    arguments = parsed(argument_parser(__doc__, cache=CACHE))
    images = attacked_images(mobilenet(), arguments.cache)
    validation, test = images.split("validation").sets, images.split("test").sets
    rows = []
    for color_space in ("rgb", "ycbcr"):
        statistics = CoefficientStatistics.from_data(
            validation["benign"], color_space=color_space, value_range=(0, 1)
        )
        tables = [
            preset_table("liu2019").with_settings(color_space=color_space),
            design_table(statistics, 2.0),
            QuantizationTable(np.full((8, 8), 8.0), color_space, provenance={"name": "flat 8"}),
        ]
        for table in tables:
            steps = table.steps_for(3)
            for attack in ATTACKS:
                counted = counted_removal(test["benign"], test[attack], steps, color_space)
                profile = perturbation_profile(
                    validation["benign"],
                    validation[attack],
                    color_space=color_space,
                    value_range=(0, 1),
                )
                for name, model in (("assumed signs", "sign"), ("measured profile", profile)):
                    predicted = band_removal(
                        statistics, steps, EPSILONS[attack], perturbation=model
                    )
                    error = np.abs(predicted - counted)
                    rows.append(
                        {
                            "table": table.name,
                            "color_space": color_space,
                            "attack": attack,
                            "threat_model": "gray-box",
                            "perturbation": name,
                            "bands_within_0.05": float(np.mean(error <= 0.05)),
                            "mean_error": float(error.mean()),
                            "largest_error": float(error.max()),
                        }
                    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = {
        "command": "python -m experiments.removal_model",
        "model": "MobileNetV2 1.0/224",
        "attacks": "ART, L-inf; FGSM eps .0078; BIM eps .004, step .002, 10 iterations",
        "images": len(test["benign"]),
        "rows": rows,
    }
    path = arguments.out / "removal_model.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    shown = Table(*rows[0], title=f"{len(test['benign'])} images of the test split")
    for row in rows:
        shown.add_row(*(f"{v:.3f}" if isinstance(v, float) else v for v in row.values()))
    Console(width=140).print(shown)


if __name__ == "__main__":
    main()
