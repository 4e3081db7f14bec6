"""The published hardening results: their page, and recipes that can be made."""

import json

from experiments import harden_cifar10
from experiments.harness import RESULTS
from fd_keras.hardening import Recipe


def test_the_page_agrees_with_the_json_file():
    results = json.loads((RESULTS / "harden_cifar10.json").read_text())
    page = (RESULTS / "harden_cifar10.md").read_text(encoding="utf-8")
    assert page == harden_cifar10.page(results)


def test_published_recipes_are_those_of_the_script():
    results = json.loads((RESULTS / "harden_cifar10.json").read_text())
    for name, entry in results["recipes"].items():
        if "arguments" in entry:
            table, arguments = harden_cifar10.RECIPES[name]
            assert (table.name, arguments) == (entry["table"], entry["arguments"])


def test_every_recipe_can_be_made():
    for _, arguments in harden_cifar10.RECIPES.values():
        Recipe(**arguments)
