"""Measure how the work on shards scales: workers, images, memory.

Statistics of JPEG images in TFRecord files, which are crops of scikit-learn's two photographs, are
measured by clusters of one and of two workers, and by two plain processes that take half of the
files each, every one with one thread. All are started, and have measured a file, before the
clock runs. Run on an idle machine with two cores, for a few minutes:
``python -m benchmarks.cluster_scale``.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import distributed
import numpy as np
import tensorflow as tf
from rich.console import Console

from experiments.harness import argument_parser, parsed, write_json, write_text
from fd_keras._console import bar, progress_bars, text_table
from fd_keras.data.shards import find_shards
from fd_keras.distribution import connected
from fd_keras.statistics import measure_shards

FILES = (8, 16, 32)
IMAGES_IN_FILE = 128
SIZE = 256
ROUNDS = 3
GOAL = 1.8
RESULTS = Path("benchmarks/results")
WAYS = ("1 worker", "2 workers", "2 processes")

# A process that measures a file, then waits for files on its input and says when it is done.
PROCESS = """
import sys
from fd_keras.data.shards import find_shards
from fd_keras.statistics import measure_shards
for line in sys.stdin:
    measure_shards(find_shards(line.rstrip("\\n").split("\\t")), color_space="ycbcr")
    print("done", flush=True)
"""


def write_files(folder, count, images, rng):
    """TFRecord files of JPEG images."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    paths = []
    for number in range(count):
        paths.append(folder / f"{number:03}.tfrecord")
        with tf.io.TFRecordWriter(str(paths[-1])) as writer:
            for _ in range(images):
                photo = photos[rng.integers(len(photos))]
                top, left = (rng.integers(n - SIZE) for n in photo.shape[:2])
                crop = photo[top : top + SIZE, left : left + SIZE]
                content = tf.io.encode_jpeg(crop, quality=90).numpy()
                feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
                features = tf.train.Features(feature={"image": feature})
                writer.write(tf.train.Example(features=features).SerializeToString())
    return paths


def peak_megabytes():
    """Most memory that this process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


class Cluster:
    """Workers of Dask, warmed up."""

    def __init__(self, workers, files):
        self._context = connected(workers=workers)
        self._client = self._context.__enter__()
        self.measure(files)

    def measure(self, paths):
        measure_shards(find_shards(paths), self._client, color_space="ycbcr")

    def memory(self):
        """Most memory that a worker has held so far."""
        return max(self._client.run(peak_megabytes).values())

    def close(self):
        self._context.__exit__(None, None, None)


class Processes:
    """Plain processes that share the files out before they begin, warmed up."""

    def __init__(self, count, files):
        one_thread = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **one_thread},
            )
            for _ in range(count)
        ]
        self.measure(files)

    def measure(self, paths):
        for number, process in enumerate(self._processes):
            shared_out = paths[number :: len(self._processes)]
            process.stdin.write("\t".join(map(str, shared_out)) + "\n")
            process.stdin.flush()
        for process in self._processes:
            if process.stdout.readline() != "done\n":
                raise RuntimeError("a plain process has died")

    def close(self):
        for process in self._processes:
            process.stdin.close()
            process.wait()


def seconds_of(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def measured(files, counts, rounds, progress):
    """Seconds of each way for each number of files, and memory after each number."""
    warm = files[:4]
    ways = {
        "1 worker": Cluster(1, warm),
        "2 workers": Cluster(2, warm),
        "2 processes": Processes(2, warm),
    }
    rows = []
    try:
        with bar(progress, "Measuring", len(counts) * rounds * len(ways)) as advance:
            for count in counts:
                seconds = {name: [] for name in ways}
                for _ in range(rounds):  # in turn, so that a slow minute is everybody's
                    for name, way in ways.items():
                        seconds[name].append(seconds_of(way.measure, files[:count]))
                        advance(1)
                rows.append(
                    {
                        "files": count,
                        "seconds": {
                            name: statistics.median(times) for name, times in seconds.items()
                        },
                        "worker_megabytes": {
                            name: way.memory()
                            for name, way in ways.items()
                            if isinstance(way, Cluster)
                        },
                    }
                )
    finally:
        for way in ways.values():
            way.close()
    return rows


def markdown(results):
    """The page of the results."""
    images = results["images_in_file"]
    rows = []
    for row in results["rows"]:
        one, two, plain = (
            row["seconds"][name] for name in ("1 worker", "2 workers", "2 processes")
        )
        count = row["files"] * images
        rows.append(
            [
                str(count),
                *(f"{1e3 * seconds / count:.2f}" for seconds in (one, two, plain)),
                f"{one / two:.2f}",
                f"{one / plain:.2f}",
                *(f"{row['worker_megabytes'][name]:.0f}" for name in ("1 worker", "2 workers")),
            ]
        )
    heads = [
        "images",
        *(f"{name}, ms/image" for name in WAYS),
        "speed-up of 2 workers",
        "of 2 processes",
        *(f"peak MB, {name}" for name in ("1 worker", "2 workers")),
    ]
    last = results["rows"][-1]["seconds"]
    speedup = last["1 worker"] / last["2 workers"]
    verdict = "reached" if speedup >= GOAL else "missed"
    lines = [
        "# Statistics on a cluster of workers",
        "",
        f"`{results['command']}` on {results['machine']}, Dask {results['distributed']}, "
        f"TensorFlow {results['tensorflow']}. JPEG images of {SIZE}x{SIZE} pixels in TFRecord "
        f"files of {images}; medians of {results['rounds']} rounds in turn, start-up left out, one "
        "thread in each worker and process. A worker's memory is the most that it has held so far.",
        "",
        text_table(heads, rows, markdown=True),
        "",
        f"Goal: two workers {GOAL} times as fast as one. {verdict.capitalize()}: {speedup:.2f} on "
        "the largest set.",
    ]
    return "\n".join(lines) + "\n"


def main():
    arguments = parsed(argument_parser(__doc__, cache=None, smoke=True, out=RESULTS))
    counts, images, rounds = (FILES, IMAGES_IN_FILE, ROUNDS)
    if arguments.smoke:
        counts, images, rounds = (4, 8), 16, 1
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bars(Console(stderr=True), unit="runs") as progress,
    ):
        rng = np.random.default_rng(1)
        files = write_files(Path(folder), max(counts), images, rng)
        rows = measured(files, counts, rounds, progress)
    results = {
        "command": "python -m benchmarks.cluster_scale",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "distributed": distributed.__version__,
        "tensorflow": tf.__version__,
        "images_in_file": images,
        "rounds": rounds,
        "rows": rows,
    }
    write_json(arguments.out / "scale.json", results)
    write_text(arguments.out / "scale.md", markdown(results))


if __name__ == "__main__":
    main()
