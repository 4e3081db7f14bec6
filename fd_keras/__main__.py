"""``python -m fd_keras``: the command line."""

from fd_keras_cli import main

if __name__ == "__main__":
    main()
