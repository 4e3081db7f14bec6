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
KINDS = (("worker", "workers"), ("process", "processes"))

# A process that measures the files on a line of its input, then says how many MB it has held.
PROCESS = """
import resource
import sys
from fd_keras.data.shards import find_shards
from fd_keras.statistics import measure_shards
for line in sys.stdin:
    measure_shards(find_shards(line.rstrip("\\n").split("\\t")), color_space="ycbcr")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, flush=True)
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
        answers = [process.stdout.readline() for process in self._processes]
        if not all(answers):
            raise RuntimeError("a plain process has died")
        self._megabytes = max(map(float, answers))

    def memory(self):
        """Most memory that a process has held so far."""
        return self._megabytes

    def close(self):
        for process in self._processes:
            process.stdin.close()
            process.wait()


WAYS = {
    "1 worker": (Cluster, 1),
    "2 workers": (Cluster, 2),
    "1 process": (Processes, 1),
    "2 processes": (Processes, 2),
}


def seconds_of(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def measured(files, counts, rounds, progress):
    """Seconds of each way for each number of files, and the memory of workers after it."""
    seconds = {(name, count): [] for name in WAYS for count in counts}
    memory = {}
    with bar(progress, "Measuring", len(seconds) * rounds) as advance:
        for _ in range(rounds):  # in turn, so that a slow minute is everybody's
            for name, (kind, size) in WAYS.items():
                way = kind(size, files[:4])  # alone: workers that wait take time from others
                try:
                    for count in counts:
                        seconds[name, count].append(seconds_of(way.measure, files[:count]))
                        memory[name, count] = way.memory()
                        advance(1)
                finally:
                    way.close()
    return [
        {
            "files": count,
            "seconds": {name: statistics.median(seconds[name, count]) for name in WAYS},
            "megabytes": {name: memory[name, count] for name in WAYS},
        }
        for count in counts
    ]


def markdown(results):
    """The page of the results."""
    rows = []
    for row in results["rows"]:
        seconds, count = row["seconds"], row["files"] * results["images_in_file"]
        rows.append(
            [
                str(count),
                *(f"{1e3 * seconds[name] / count:.2f}" for name in WAYS),
                *(f"{ratio:.2f}" for ratio in speed_ups(seconds)),
                *(f"{row['megabytes'][name]:.0f}" for name in WAYS),
            ]
        )
    heads = [
        "images",
        *(f"{name}, ms/image" for name in WAYS),
        *("speed-up of 2 workers", "of 2 processes"),
        *(f"peak MB, {name}" for name in WAYS),
    ]
    workers, processes = speed_ups(results["rows"][-1]["seconds"])
    lines = [
        "# Statistics on a cluster of workers",
        "",
        f"`{results['command']}` on {results['machine']}, Dask {results['distributed']}, "
        f"TensorFlow {results['tensorflow']}. JPEG images of {SIZE}x{SIZE} pixels in TFRecord "
        f"files of {results['images_in_file']}; medians of {results['rounds']} rounds in turn, "
        "start-up left out, one thread in each worker and process. Speed-ups are those of two "
        "over one of the same kind. Memory is the most that one worker or process has held so far.",
        "",
        text_table(heads, rows, markdown=True),
        "",
        f"Goal: two workers {GOAL} times as fast as one. "
        f"{'Reached' if workers >= GOAL else 'Missed'}: {workers:.2f} on the largest set, where "
        f"plain processes reach {processes:.2f}.",
    ]
    return "\n".join(lines) + "\n"


def speed_ups(seconds):
    """How much faster two workers are than one, and two processes than one."""
    return [seconds[f"1 {one}"] / seconds[f"2 {two}"] for one, two in KINDS]


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
