"""Speed and memory comparisons; each module prints its table when run with ``python -m``."""
