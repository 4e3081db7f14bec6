"""Measure parts in this process with a given number of TensorFlow's threads.

Run by ``python -m benchmarks.performance``, as the number can be set only once in a process.
"""

import argparse
import importlib
import json
from pathlib import Path

from benchmarks.performance.scale import FULL, SMOKE


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    scale = SMOKE if arguments.smoke else FULL
    found = {}
    for part in arguments.parts:
        module = importlib.import_module(f"benchmarks.performance.{part}")
        found[part] = module.measure(scale)
        for row in found[part]["rows"]:
            row["threads"] = arguments.threads
    arguments.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
