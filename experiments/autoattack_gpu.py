"""Run standard AutoAttack on the cells of ``experiments.autoattack`` on a GPU, in PyTorch.

AutoAttack's four parts take hours for one classifier on two processor cores, and seconds here. The
parts are those of torchattacks, with the steps and queries of AutoAttack's standard version; layers
and classifiers are those of ``experiments/harden_gpu.py``. The attacked images go back to fd_keras,
which counts those that are still right. It needs PyTorch, numpy, Pillow and torchattacks, and
neither TensorFlow nor fd_keras:

1. ``python -m experiments.autoattack --pack DIRECTORY`` writes images, weights and cells.
2. ``python experiments/autoattack_gpu.py DIRECTORY OUT`` attacks, anywhere: all cells that are not
   complete in OUT, and whose weights are there.
3. ``python -m experiments.autoattack --attacked OUT`` reports.
"""

import argparse
import copy
import json
import pathlib
import time

import numpy as np
import torch
import torch.multiprocessing
import torchattacks
from harden_gpu import Layer, Weights, no_layer

STEPS = 100
QUERIES = 5000
SEED = 1
LAST = "Square"  # the last part


class Behind(torch.nn.Module):
    """A classifier behind a layer, for images from 0 to 1."""

    def __init__(self, cell, directory, device):
        super().__init__()
        self.layer = Layer(cell["table"]).to(device) if cell["table"] else no_layer
        self.gradient = "smooth"
        with np.load(directory / cell["weights"]) as archive:
            self._weights = Weights(dict(archive), device)
        for value in self._weights.tensors.values():
            value.requires_grad_(False)
        # What torchattacks finds the device by.
        self.place = torch.nn.Parameter(torch.zeros((), device=device), requires_grad=False)

    def forward(self, images):
        return self._weights.logits(self.layer(255 * images, self.gradient), half=False)


def parts(model, cell, steps, queries):
    """The name and the attack of each part, in the order in which they run."""
    settings = {"eps": cell["epsilon"] / 255, "seed": SEED}
    if cell["table"] and not model.layer.soft:
        # BPDA with the identity's gradient; the others take the smooth stand-in's.
        straight = copy.copy(model)
        straight.gradient = "straight-through"
        yield "APGD-CE, straight-through", torchattacks.APGD(straight, steps=steps, **settings)
    yield "APGD-CE", torchattacks.APGD(model, steps=steps, **settings)
    yield "APGD-T", torchattacks.APGDT(model, steps=steps, n_classes=10, **settings)
    fab = torchattacks.FAB(model, steps=steps, multi_targeted=True, n_classes=10, **settings)
    yield "FAB-T", fab
    yield LAST, torchattacks.Square(model, n_queries=queries, **settings)


def right(model, images, labels):
    """Which images are classified correctly, in single precision throughout."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return model(images).argmax(-1) == labels


def attacked(cell, directory, data, device, steps=STEPS, queries=QUERIES):
    """After each part: all images' changes in parts of epsilon, and how many were right so far."""
    images, labels = data
    model = Behind(cell, directory, device)
    changes = torch.zeros(images.shape, dtype=torch.int8, device=device)
    withstood = right(model, images, labels)
    counts = {"benign": int(withstood.sum())}
    levels = cell["levels"]
    unit = cell["epsilon"] / 255 / levels
    for name, attack in parts(model, cell, steps, queries):
        left = withstood.nonzero().flatten()
        if len(left):
            found = attack(images[left], labels[left])
            change = ((found - images[left]) / unit).round().clamp(-levels, levels)
            still = right(model, (images[left] + unit * change).clamp(0, 1), labels[left])
            changes[left] = change.to(torch.int8)
            withstood[left] = still
        counts[name] = int(withstood.sum())
        yield changes.cpu().numpy().transpose(0, 2, 3, 1), counts


def complete(path):
    """Whether all parts of a cell have run."""
    return path.exists() and LAST in json.loads(path.read_text())["counts"]


def work(number, directory, out, queue, deadline, count, limits):
    """Attack cells until there are none, or the time is up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with np.load(directory / "images.npz") as archive:
        pixels = torch.tensor(archive["images"].transpose(0, 3, 1, 2).copy(), device=device)
        labels = torch.tensor(archive["labels"], device=device)
    data = pixels[:count].float() / 255, labels[:count]
    while True:
        cell = queue.get()
        if cell is None or time.time() > deadline:
            return
        started = time.time()
        for changes, counts in attacked(cell, directory, data, device, **limits):
            name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
            about = {**cell, "counts": counts, "seconds": time.time() - started, "device": name}
            about.pop("table")
            np.savez_compressed(out / f"{cell['name']}.npz", changes=changes)
            (out / f"{cell['name']}.json").write_text(json.dumps(about))
        print(f"process {number}: {cell['name']}: {counts}, {about['seconds']:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--images", type=int, help="the first of them only")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a gradient attack")
    parser.add_argument("--queries", type=int, default=QUERIES, help="of Square")
    parser.add_argument("--only", help="cells whose names begin so")
    parser.add_argument("--processes", type=int, default=1, help="cells at the same time")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin none after these")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    cells = json.loads((arguments.directory / "cells.json").read_text())
    limits = {"steps": arguments.steps, "queries": arguments.queries}
    spawned = torch.multiprocessing.get_context("spawn")
    queue = spawned.Queue()
    for cell in cells:
        done = complete(arguments.out / f"{cell['name']}.json")
        ready = (arguments.directory / cell["weights"]).exists()
        if cell["name"].startswith(arguments.only or "") and ready and not done:
            queue.put(cell)
    for _ in range(arguments.processes):
        queue.put(None)
    deadline = time.time() + arguments.seconds
    places = arguments.directory, arguments.out
    workers = [
        spawned.Process(
            target=work, args=(number, *places, queue, deadline, arguments.images, limits)
        )
        for number in range(arguments.processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
