"""Made-up reports, for tests and for looking at the page. No figure in them was measured."""

import numpy as np

from fd_keras.evaluation.accuracies import accuracy_row
from fd_keras.evaluation.report import EvaluationReport

EPSILONS = (1, 2, 4, 8)
# name, family, benign, strength against attacks, milliseconds
DEFENCES = [
    ("none", "none", 1.0, 0.0, 0.0),
    ("liu2019", "feature distillation", 0.92, 0.50, 0.31),
    ("zigzag15", "feature distillation", 0.92, 0.34, 0.32),
    ("designed 4 grids", "feature distillation", 0.955, 0.55, 1.2),
    ("JPEG q90", "JPEG", 0.955, 0.21, 0.73),
    ("JPEG q75", "JPEG", 0.905, 0.45, 0.69),
    ("JPEG q50", "JPEG", 0.86, 0.60, 0.66),
    ("JPEG q30", "JPEG", 0.80, 0.66, 0.63),
    ("bit depth 5", "bit depth", 0.98, 0.09, 0.05),
    ("median 3x3", "median", 0.88, 0.40, 2.1),
    ("SHIELD SLQ", "SLQ", 0.87, 0.52, 3.4),
    ("TVM 0.03", "TVM", 0.83, 0.48, 720.0),
    ("quilting", "quilting", 0.70, 0.55, 81.0),
]


def minimal_report():
    return EvaluationReport([row("none", "none", "benign", "none", 0.9)])


def row(defence, family, threat_model, attack, share, *, count=200, **attack_details):
    return accuracy_row(
        defence=defence,
        family=family,
        threat_model=threat_model,
        attack=attack,
        correct=round(share * count),
        count=count,
        **attack_details,
    )


def full_report(*, failed=1, picture_size=48):
    rows = []
    for name, family, benign, strength, _ in DEFENCES:
        rows.append(row(name, family, "benign", "none", benign))
        for model, left in (("gray-box", 1.0), ("adaptive", 0.15)):
            if model == "adaptive" and family in ("TVM", "quilting"):
                continue
            rows += _attacked(name, family, model, benign, strength * left)
        rows.append(row(name, family, "black-box", "Square 4/255", 0.6 * strength + 0.2))
    defences = [
        {
            "name": name,
            "family": family,
            "settings": {"color_space": "ycbcr", "cycle_spins": 4} if strength > 0.5 else {},
            "ms_per_image": time or None,
            "chosen_from": ["JPEG q90", "JPEG q75", "JPEG q50"] if family == "JPEG" else [],
        }
        for name, family, _, strength, time in DEFENCES
    ]
    return EvaluationReport(
        rows, defences, _checks(failed), _detection(), _settings(), _pictures(picture_size)
    )


def _attacked(name, family, model, benign, strength):
    linf = {"threat_model": model, "norm": "inf"}
    rows = [
        row(name, family, attack="FGSM .0078", share=0.8 * strength + 0.1, attack_family="FGSM",
            epsilon=0.0078, **linf),
        row(name, family, attack="BIM .004", share=1.1 * strength + 0.02, attack_family="BIM",
            epsilon=0.004, **linf),
        row(name, family, attack="CW-L2 next", share=min(1.0, 1.4 * strength),
            attack_family="CW-L2", threat_model=model,
            effect={"success": 0.995, "mean_l2": 0.4561, "mean_linf": 0.061}),
    ]  # fmt: skip
    for epsilon in EPSILONS:
        share = benign * strength * max(0.0, 1.8 - 0.5 * np.log2(2 * epsilon))
        rows.append(
            row(name, family, attack=f"PGD-20 {epsilon}/255", share=min(1.0, share),
                attack_family="PGD", epsilon=epsilon / 255, **linf)
        )  # fmt: skip
    return rows


def _checks(failed):
    names = ["adaptive no gentler than gray-box", "accuracy falls to 0 as epsilon grows"]
    names += ["more iterations do not help", "Square no stronger than adaptive PGD"]
    return [
        {
            "name": name,
            "passed": number >= failed,
            "detail": "Adaptive PGD-20 4/255 leaves 31.0 %, gray-box PGD-20 4/255 leaves 22.0 %.",
            "defence": "liu2019",
        }
        for number, name in enumerate(names)
    ]


def _detection():
    found = []
    for model, power in (("gray-box", 5.0), ("adaptive", 1.4)):
        for number, attack in enumerate(("FGSM .0078", "BIM .004", "CW-L2")):
            fpr = np.linspace(0, 1, 60)
            exponent = 1 / (power + number)
            found.append(
                {
                    "defence": "liu2019",
                    "attack": attack,
                    "threat_model": model,
                    "auc": 1 / (1 + exponent),
                    "detection_rate": 0.05**exponent,
                    "false_positive_rate_target": 0.05,
                    "false_positive_rate": 0.045,
                    "roc": {"fpr": fpr.tolist(), "tpr": (fpr**exponent).tolist()},
                }
            )
    return found


def _settings():
    return {
        "model": "made-up model",
        "data": "made-up data",
        "count": 200,
        "selection": "The first 200 images that the bare classifier reads correctly.",
        "protocol": "evademl-imagenet",
        "attacks": [
            {"name": "FGSM .0078", "epsilon": 0.0078, "norm": "inf"},
            {"name": "PGD-20", "epsilons": [1, 2, 4, 8], "iterations": 20, "restarts": 1},
        ],
        "seed": 7,
        "command": "fd-keras evaluate model.keras data --table liu2019 --table designed.json "
        "--protocol evademl-imagenet --out results",
        "versions": {"fd-keras": "0", "tensorflow": "2.21", "keras": "3.15"},
        "machine": "2 cores",
        "seconds": 5400,
    }


def _pictures(size):
    generator = np.random.default_rng(5)
    ramp = np.linspace(0, 1, size)
    waves = [np.outer(np.sin(k * ramp) ** 2, np.cos(k * ramp) ** 2) for k in (3, 5, 7)]
    benign = np.stack(waves, -1) * 200 + 20
    attacked = benign + generator.choice([-2, 2], benign.shape)
    distilled = benign + 9 * generator.standard_normal(benign.shape)
    to_bytes = {"benign": benign, "attacked": attacked, "distilled": distilled}
    return [
        {
            "attack": "BIM .004",
            "threat_model": model,
            "defence": "liu2019",
            "true": "sea lion",
            "predicted_benign": "sea lion",
            "predicted_attacked": "washing machine",
            "predicted_distilled": read,
            **{name: np.clip(np.rint(a), 0, 255).astype(np.uint8) for name, a in to_bytes.items()},
        }
        for model, read in (("gray-box", "sea lion"), ("adaptive", "washing machine"))
    ]
