"""Perturbations have one unit: grey levels of 255. Numbers for pixels from 0 to 1 are refused."""

import importlib
import inspect

import numpy as np
import pytest
import typer

from fd_keras import (
    CoefficientStatistics,
    FeatureDistillation,
    certified_table,
    certify,
)
from fd_keras.design import (
    PerturbationProfile,
    band_removal,
    design_table,
    empirical_removal_probability,
    perturbation_profile,
    perturbation_std,
    removal_probability,
)
from fd_keras.evaluation import Attack, autoattack, bim, fgsm, half_step, pgd, square
from fd_keras.hardening import Recipe
from fd_keras.refinement import certified_space
from fd_keras_cli.app import app

IMAGES = np.random.default_rng(2).integers(30, 220, (4, 32, 32, 3)).astype(float)
STATISTICS = CoefficientStatistics.from_data(IMAGES)
PROFILE = perturbation_profile(IMAGES, IMAGES + np.sign(IMAGES - 128))


def layer_with_statistics():
    layer = FeatureDistillation()
    layer.update_state(IMAGES)
    return layer


# Every public callable that takes an epsilon, as a function of it.
CALLS = {
    "design_table": lambda e: design_table(STATISTICS, e),
    "FeatureDistillation.adapt": lambda e: FeatureDistillation().adapt(IMAGES, e),
    "FeatureDistillation.finalize_state": lambda e: layer_with_statistics().finalize_state(e),
    "perturbation_std": lambda e: perturbation_std(e),
    "removal_probability": lambda e: removal_probability(30, 5, e),
    "empirical_removal_probability": lambda e: empirical_removal_probability(30, [1, 9], e),
    "band_removal": lambda e: band_removal(STATISTICS, 30, e),
    "PerturbationProfile": lambda e: PerturbationProfile(
        e, PROFILE.std, PROFILE.mean_abs, "rgb", 4
    ),
    "fgsm": fgsm,
    "bim": lambda e: bim(e, min(e, 0.5)),
    "pgd": pgd,
    "half_step": half_step,
    "square": square,
    "autoattack": autoattack,
    "certified_table": certified_table,
    "certified_space": certified_space,
    "Certificate.holds": lambda e: certify(IMAGES, "liu2019").holds(e),
    "Attack": lambda e: Attack("FGSM", "FGSM", "inf", e),
    "Recipe": lambda e: Recipe(epsilon=e),
}
FURTHER_CALLS = {
    "removal_probability, uniform": lambda e: removal_probability(
        30, 5, [2, e], perturbation="uniform"
    ),
    "perturbation_std, gaussian": lambda e: perturbation_std(e, "gaussian"),
    "band_removal, profile": lambda e: band_removal(STATISTICS, 30, e, perturbation=PROFILE),
    "perturbation_profile": lambda e: perturbation_profile(IMAGES, IMAGES + e),
    "perturbation_profile of another range": lambda e: perturbation_profile(
        IMAGES / 255, IMAGES / 255 + e / 255, value_range=(0, 1)
    ),
}
ALL_CALLS = {**CALLS, **FURTHER_CALLS}


@pytest.mark.parametrize("name", ALL_CALLS)
@pytest.mark.parametrize("epsilon", [0.004, 2 / 255, 0.031, 0.0999])
def test_numbers_for_pixels_from_0_to_1_are_refused(name, epsilon):
    with pytest.raises(ValueError, match=r"(`epsilon` must|differ from `benign` by 0\.1) .*grey"):
        ALL_CALLS[name](epsilon)


@pytest.mark.parametrize("name", ALL_CALLS)
@pytest.mark.parametrize("epsilon", [0.1001, 2])
def test_grey_levels_are_taken(name, epsilon):
    ALL_CALLS[name](epsilon)


PUBLIC_MODULES = ("fd_keras", *(f"fd_keras.{name}" for name in ("design", "evaluation", "export")))
PUBLIC_MODULES += ("fd_keras.hardening", "fd_keras.refinement")


def callables_with_epsilon():
    """Public functions, classes and methods that have a parameter ``epsilon``."""
    found = {}
    for module in map(importlib.import_module, PUBLIC_MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                found[name] = thing, thing
            elif inspect.isclass(thing):
                found[name] = thing, thing.__init__
                methods = inspect.getmembers(thing, inspect.isfunction)
                found.update({f"{name}.{m}": (f, f) for m, f in methods if not m.startswith("_")})
    return {
        name: documented
        for name, (documented, function) in found.items()
        if "epsilon" in inspect.signature(function).parameters
    }


def test_no_public_callable_is_forgotten_here():
    assert set(callables_with_epsilon()) == set(CALLS)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_docstrings_name_the_unit(name):
    documentation = " ".join(callables_with_epsilon()[name].__doc__.split())
    assert "grey levels of 255" in documentation


def test_help_names_the_unit():
    commands = typer.main.get_command(app).commands
    options = {
        name: option.help
        for name, command in commands.items()
        for option in command.params
        if option.name == "epsilon"
    }
    assert set(options) == {"calibrate", "certify", "evaluate", "harden"}
    for text in options.values():
        assert "grey levels of 255" in text
