"""``python -m fd_keras_cli``."""

from fd_keras_cli.app import main

if __name__ == "__main__":
    main()
