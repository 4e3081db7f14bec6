"""Speed and memory of the package; run each module with ``python -m``."""
