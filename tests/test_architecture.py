"""The structure of the code: which module may import which, and how wide public signatures are."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The order of layers, from the bottom up; the only place where it is written down. A module may
# import what stands in its own row or in a row above it here. Rooms that are parted by | are
# siblings and may not import each other; `_*` is every private module, and `fd_keras` the
# package's own __init__, which collects the public names.
LAYERS = """
    _*, dct
    tables, kernels, data, distribution
    statistics, presets, design
    layer, protection, plots
    classifier
    certification
    lattice, jpeg, detection, art
    encoding
    evaluation | export
    refinement | hardening | demo
    fd_keras
    fd_keras_cli
    experiments, benchmarks
"""

TOP_LEVEL = ("fd_keras", "fd_keras_cli", "experiments", "benchmarks")
PUBLIC_PACKAGES = (
    "fd_keras",
    "fd_keras.design",
    "fd_keras.evaluation",
    "fd_keras.export",
    "fd_keras.hardening",
    "fd_keras.refinement",
)
MOST_MODULES = 103
MOST_PARAMETERS = 12

# Room -> number of its row, and -> names of its siblings.
LEVELS: dict[str, int] = {}
SIBLINGS: dict[str, set[str]] = {}
for level, row in enumerate(LAYERS.split("\n")[1:-1]):
    rooms = [room.strip() for room in row.replace("|", ",").split(",")]
    LEVELS.update(dict.fromkeys(rooms, level))
    SIBLINGS.update(dict.fromkeys(rooms, set(rooms) if "|" in row else set()))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for top in TOP_LEVEL for path in sorted((ROOT / top).rglob("*.py"))}


def room_of(module: str) -> str:
    """``fd_keras.export.check`` is in the room ``export``, ``fd_keras._files`` in ``_*``."""
    top, *below = module.split(".")
    if below == ["__main__"]:  # what ``python -m`` runs is a program, and no part of the package
        return "fd_keras_cli"
    if top != "fd_keras" or not below:
        return top
    return "_*" if below[0].startswith("_") else below[0]


def imported(module: str, path: Path) -> Iterator[str]:
    """Modules of ours that a module names, also in its functions and under TYPE_CHECKING."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            source = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                found = f"{source}.{alias.name}"
                if found in FILES or source in FILES:
                    yield found if found in FILES else source


IMPORTS = {module: sorted(set(imported(module, path))) for module, path in FILES.items()}


def broken_rule(importer: str, module: str) -> str | None:
    one, other = room_of(importer), room_of(module)
    if one == other:
        return None
    if other in SIBLINGS[one]:
        return f"`{one}` and `{other}` are siblings and may not import each other"
    if LEVELS[other] > LEVELS[one]:
        return f"`{one}` stands below `{other}` and may not import it"
    return None


def shortest_circle(start: str) -> list[str] | None:
    paths = [[start]]
    seen = set()
    for path in paths:
        for module in IMPORTS[path[-1]]:
            if module == start:
                return [*path, start]
            if module not in seen:
                seen.add(module)
                paths.append([*path, module])
    return None


@pytest.mark.parametrize(
    ("importer", "module", "rule"),
    [
        ("fd_keras.data.files", "fd_keras._files", None),
        ("fd_keras.presets", "fd_keras.statistics", None),
        ("fd_keras.kernels", "fd_keras.layer", "`kernels` stands below `layer`"),
        ("fd_keras.export.check", "fd_keras.evaluation", "`export` and `evaluation` are siblings"),
        ("fd_keras.demo.run", "fd_keras.export.check", None),
        ("fd_keras.demo.run", "fd_keras", "`demo` stands below `fd_keras`"),
        ("fd_keras", "fd_keras_cli.app", "`fd_keras` stands below `fd_keras_cli`"),
    ],
)
def test_rules(importer, module, rule):
    found = broken_rule(importer, module)
    assert found is None if rule is None else found.startswith(rule)


def test_imports_are_found_wherever_they_are(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import numpy, fd_keras.dct\n"
        "from fd_keras import jpeg, __version__\n"
        "if TYPE_CHECKING:\n    from fd_keras.layer import FeatureDistillation\n"
        "def late():\n    from .kernels import distil\n"
    )
    assert sorted(imported("fd_keras.module", path)) == [
        *("fd_keras", "fd_keras.dct", "fd_keras.jpeg", "fd_keras.kernels", "fd_keras.layer")
    ]


def test_every_module_has_its_layer():
    without = sorted(module for module in FILES if room_of(module) not in LEVELS)
    assert not without, f"give these modules a place in LAYERS: {without}"


def test_nothing_is_imported_upward():
    broken = [
        f"{importer} -> {module}: {rule}"
        for importer, modules in IMPORTS.items()
        for module in modules
        if (rule := broken_rule(importer, module))
    ]
    assert not broken, "imports against the order of LAYERS:\n" + "\n".join(broken)


def test_no_modules_import_each_other_in_a_circle():
    circles = {frozenset(c): c for module in IMPORTS if (c := shortest_circle(module))}
    lines = [" -> ".join(circle) for circle in circles.values()]
    assert not lines, "modules that import each other in a circle:\n" + "\n".join(lines)


def test_the_package_stays_small():
    count = sum(module.partition(".")[0] == "fd_keras" for module in FILES)
    assert count <= MOST_MODULES, (
        f"fd_keras has {count} modules, more than {MOST_MODULES}: merge two that hold one idea"
    )


def parameters_of(thing: object) -> list[str]:
    if inspect.isclass(thing):
        return list(inspect.signature(thing.__init__).parameters)[1:]
    return list(inspect.signature(thing).parameters)


@pytest.mark.parametrize("package", PUBLIC_PACKAGES)
def test_public_signatures_are_narrow(package):
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    wide = [
        f"{package}.{name} has {len(parameters)} parameters: {', '.join(parameters)}"
        for name, thing in public.items()
        if inspect.isclass(thing) or inspect.isfunction(thing)
        if len(parameters := parameters_of(thing)) > MOST_PARAMETERS
    ]
    assert not wide, (
        f"more than {MOST_PARAMETERS} parameters; put what belongs together into an object:\n"
        + "\n".join(wide)
    )
