"""The published hardening results: their page, recipes that can be made, and the GPU's step."""

import importlib.util
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments import harden_cifar10, harden_imagenet
from experiments.harden_recipes import PLANS, TABLES, grey_level_model, job, named_variables
from experiments.harness import RESULTS
from experiments.shared_models import SHARED
from fd_keras import FeatureDistillation
from fd_keras.hardening import Recipe
from fd_keras.hardening.model import AverageWeights, HardeningModel
from fd_keras.kernels import clip_straight_through, distil

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared is missing")


@pytest.mark.parametrize("experiment", [harden_cifar10, harden_imagenet])
def test_the_page_agrees_with_the_json_file(experiment):
    results = json.loads((RESULTS / f"{experiment.FILE}.json").read_text())
    page = (RESULTS / f"{experiment.FILE}.md").read_text(encoding="utf-8")
    assert page == experiment.page(results)


def test_published_recipes_are_those_of_the_script():
    results = json.loads((RESULTS / "harden_cifar10.json").read_text())
    for name, entry in results["recipes"].items():
        if "settings" in entry:
            plan = PLANS[name]
            known = (TABLES[plan.table].name, plan.text(), plan.epochs)
            assert known == (entry["table"], entry["settings"], entry["epochs"])


def test_the_default_recipe_is_the_published_one():
    plan = PLANS[harden_cifar10.PUBLISHED[0]]
    assert plan.recipe == Recipe()
    assert not plan.trials


@needs_torch
@pytest.mark.parametrize("name", sorted(set(TABLES) - {"none"}))
def test_the_gpus_layer_is_the_layer(name):
    import torch

    from experiments import harden_gpu

    rng = np.random.default_rng(3)
    images = rng.uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
    upstream = rng.normal(size=images.shape).astype(np.float32)
    table = TABLES[name]
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        options = (table.color_space, table.cycle_spins, table.quantizer)
        settings = dict(zip(("color_space", "cycle_spins", "quantizer"), options))
        steps = tf.constant(table.steps_for(3), tf.float32)
        expected = clip_straight_through(distil(x, steps, gradient="smooth", **settings), 0, 255)
        total = tf.reduce_sum(expected * upstream)
    y = torch.tensor(images).permute(0, 3, 1, 2).requires_grad_()
    plan = next(plan for plan in PLANS.values() if plan.table == name)
    found = harden_gpu.Layer(job(plan, 0.9)["table"])(y)
    (slope,) = torch.autograd.grad((found * torch.tensor(upstream).permute(0, 3, 1, 2)).sum(), y)
    for theirs, ours, tolerance in (
        (found.detach(), expected.numpy(), 0.01),
        (slope, tape.gradient(total, x).numpy(), 0.05),
    ):
        away = np.abs(theirs.permute(0, 2, 3, 1).numpy() - ours)
        assert np.quantile(away, 0.999) < tolerance  # a coefficient may lie on a tie


@needs_torch
@needs_shared
def test_the_gpus_step_is_that_of_harden(monkeypatch):
    """Three steps with momentum, decay, a teacher and averaging, but nothing random."""
    import torch

    from experiments import harden_gpu

    monkeypatch.setattr(harden_gpu, "augmented", lambda images: images)
    monkeypatch.setattr(harden_gpu, "BATCH", 32)
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (32, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 32)
    plan = PLANS["soft-4-eps2-teacher"]
    model = grey_level_model()
    start = {
        n: np.asarray(tf.convert_to_tensor(v)) for n, v in named_variables(model.layers[-1]).items()
    }
    layer = FeatureDistillation(TABLES["soft-4"])
    training = HardeningModel(model, layer, Recipe(epsilon=0, soft_labels=0.5))
    training.compile(keras.optimizers.SGD(0.05, 0.9, nesterov=True, weight_decay=plan.decay))
    batches = tf.data.Dataset.from_tensors((images.astype(np.float32), labels)).repeat(3)
    training.fit(batches, callbacks=[AverageWeights()], verbose=0)

    described = job(plan, 0.9)
    described["recipe"]["epsilon"] = 0
    data = torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels)
    theirs = harden_gpu.Job("", described, start, data, None, torch.device("cpu"))
    theirs._rates.fill_(0.05)
    theirs._order.copy_(torch.arange(32)[None])
    for _ in range(3):
        theirs.step()

    for ours, found in (
        (training.classifier, theirs.weights),
        (training.averaged, theirs.averages),
    ):
        arrays = found.arrays()
        for name, variable in named_variables(ours.layers[-1]).items():
            value = np.asarray(tf.convert_to_tensor(variable))
            moved = np.linalg.norm(value - start[name])
            away = np.linalg.norm(value - arrays[name])
            assert away <= 0.03 * moved, (name, away / moved)  # float32 in three steps
