"""The command line of fd_keras.

It is a package of its own because ``import fd_keras`` imports TensorFlow, which takes seconds:
``--help`` and usage errors answer at once, and each command imports what it needs.
"""

from fd_keras_cli.app import main

__all__ = ["main"]
