"""Import model builders from ``../shared``, which is not a package."""

import importlib.util
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared"


def load_builder(name):
    """The module of that name in ``../shared/models``."""
    spec = importlib.util.spec_from_file_location(name, SHARED / "models" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
