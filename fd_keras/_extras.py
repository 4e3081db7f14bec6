"""Importing what an extra installs, with the way to install it in the error."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def import_extra(module: str, extra: str) -> Any:
    """Import a module that one of the package's extras brings.

    Args:
        module: Full name of the module.
        extra: The extra that installs it, such as ``"evaluate"``.

    Returns:
        The module.

    Raises:
        ImportError: It is missing; the message says what to install.

    Example:
        >>> import_extra("no_such_module", "evaluate")
        Traceback (most recent call last):
        ...
        ImportError: no_such_module is not installed; run: pip install "fd-keras[evaluate]"
    """
    try:
        with warnings.catch_warnings():
            # ART reports on every import that PyTorch, which nothing here needs, is missing.
            warnings.filterwarnings("ignore", "PyTorch not found", UserWarning)
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # it is there, and something else is missing
        raise ImportError(
            f'{package} is not installed; run: pip install "fd-keras[{extra}]"'
        ) from error
