"""Import optional dependencies; the error says which extra installs them."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def import_extra(module: str, extra: str) -> Any:
    """Import a module that one of the package's extras installs.

    Args:
        module: Full name of the module.
        extra: Name of the extra, such as ``"evaluate"``.

    Returns:
        The module.

    Raises:
        ImportError: The module is not installed; the message says how to install it.

    Example:
        >>> import_extra("no_such_module", "evaluate")
        Traceback (most recent call last):
        ...
        ImportError: no_such_module is not installed; run: pip install "fd-keras[evaluate]"
    """
    try:
        with warnings.catch_warnings():
            # ART warns at every import that PyTorch is missing, which is not needed here.
            warnings.filterwarnings("ignore", "PyTorch not found", UserWarning)
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # the package is installed, but one of its own dependencies is missing
        raise ImportError(
            f'{package} is not installed; run: pip install "fd-keras[{extra}]"'
        ) from error
