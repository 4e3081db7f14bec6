"""Train ``experiments.harden_recipes`` side by side on one GPU, in PyTorch.

What ``fd_keras.harden`` trains in an hour a recipe on two processor cores takes seconds here, so
that a whole front of recipes can be compared. Only the training is repeated in PyTorch: the
weights go back to Keras, where ``experiments.harden_cifar10 --trained DIRECTORY`` reports on them
with fd_keras' own attacks. It needs PyTorch, numpy and Pillow, and neither TensorFlow nor fd_keras:

1. ``python -m experiments.harden_recipes DIRECTORY`` writes images, weights and recipes.
2. ``python experiments/harden_gpu.py DIRECTORY OUT`` trains, anywhere.

The step is that of ``fd_keras.hardening.model.HardeningModel``, operation by operation; random
numbers and the order of the images are others.
"""

import argparse
import functools
import io
import json
import math
import pathlib
import time

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

BATCH = 128
MOMENTUM = 0.9  # of SGD
BLOCKS = ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1))  # channels and stride
TIE_OFFSET = 1 / 997
CHECK_STEPS = 10


class Layer(torch.nn.Module):
    """Feature distillation of images ``(batch, 3, size, size)`` from 0 to 255."""

    def __init__(self, table, size=32):
        super().__init__()
        self.soft = table["quantizer"] == "soft"
        self.spins = len(table["offsets"])
        mix = np.asarray(table["mix"])  # rows: the channels whose DCT is quantised
        n = np.arange(8)
        basis = np.cos(np.pi * (2 * n + 1) * n[:, None] / 16) * math.sqrt(2 / 8)
        basis[0] /= math.sqrt(2)
        steps = np.asarray(table["steps"]).reshape(3, 1, 64)
        gathered, back, total = [], [], 0
        for dy, dx in table["offsets"]:
            rows, columns = (self._continued(size, before) for before in (dy, dx))
            index = rows[:, None] * size + columns
            high, wide = (len(axis) // 8 for axis in (rows, columns))
            blocks = index.reshape(high, 8, wide, 8).transpose(0, 2, 1, 3)
            place = np.arange(blocks.size).reshape(blocks.shape).transpose(0, 2, 1, 3)
            place = place.reshape(index.shape)[dy : dy + size, dx : dx + size]
            gathered.append(blocks.reshape(-1, 64))
            back.append(total + place.ravel())
            total += blocks.size
        constants = {
            "mix": mix,
            "unmix": np.linalg.inv(mix),
            "dct": np.kron(basis, basis).T,
            "steps": steps,
            "thresholds": np.where(np.arange(64) > 0, steps / 2, 0),
            "shift": np.full((1, 1, 1), table["shift"]),
        }
        for name, value in constants.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))
        self.register_buffer("gathered", torch.tensor(np.concatenate(gathered).ravel()))
        self.register_buffer("back", torch.tensor(np.concatenate(back)))

    def _continued(self, size, before):
        index = np.arange((before + size + 7) // 8 * 8) - before
        if self.soft:
            index %= 2 * size
            return np.minimum(index, 2 * size - 1 - index)
        return np.clip(index, 0, size - 1)

    def forward(self, images, gradient="smooth"):
        count = len(images)
        pixels = images.reshape(count, 3, -1)
        shift = 0 if self.soft else self.shift
        mixed = self.mix @ (pixels - shift)
        blocks = mixed.index_select(2, self.gathered).reshape(count, 3, -1, 64) @ self.dct
        if self.soft:
            changed = torch.minimum(self.thresholds, torch.maximum(-self.thresholds, blocks))
        else:
            scaled = blocks / self.steps
            rounded = torch.round(scaled + TIE_OFFSET).detach()
            if gradient == "smooth":
                rounded = rounded + (scaled - rounded) ** 3 - ((scaled - rounded) ** 3).detach()
            else:
                rounded = rounded + scaled - scaled.detach()
            changed = rounded * self.steps
        found = (changed @ self.dct.T).reshape(count, 3, -1).index_select(2, self.back)
        mean = found.reshape(count, 3, self.spins, -1).mean(2)
        mean = self.unmix @ mean + shift
        out = pixels - mean if self.soft else mean
        out = out + (out.clamp(0, 255) - out).detach()
        return out.reshape(images.shape)


def no_layer(images, gradient="smooth"):
    """Images as they are."""
    return images


class Weights:
    """The ResNet-14's variables: what is trained, and batch normalisation's statistics."""

    def __init__(self, arrays, device):
        self.device = device
        self.tensors = {}
        for name, array in arrays.items():
            value = torch.tensor(array, dtype=torch.float32, device=device)
            if value.ndim == 4:
                value = value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
            self.tensors[name] = value
        self.trained = [n for n in arrays if not n.endswith(("mean", "variance"))]
        for name in self.trained:
            self.tensors[name].requires_grad_()

    def arrays(self):
        """As they came."""
        found = {name: value.detach().float().cpu() for name, value in self.tensors.items()}
        return {n: (v.permute(2, 3, 1, 0) if v.ndim == 4 else v).numpy() for n, v in found.items()}

    def logits(self, images, *, training=False, half=True):
        """Logits of images from 0 to 255."""
        weights = self.tensors
        x = images * (4 / 255) - 2
        x = x.contiguous(memory_format=torch.channels_last)
        dtype = torch.bfloat16 if half else torch.float32
        x = x.to(dtype)
        numbers = iter(range(99))

        def conv(x, stride=1):
            number = next(numbers)
            kernel = weights[f"conv{number}"].to(dtype)
            if kernel.shape[-1] == 3:
                # TensorFlow's "same": with a stride of 2, only the lower and right edges.
                x = (
                    functional.conv2d(functional.pad(x, (0, 1, 0, 1)), kernel, stride=2)
                    if stride == 2
                    else (functional.conv2d(x, kernel, padding=1))
                )
            else:
                x = functional.conv2d(x, kernel, stride=stride)
            parts = (weights[f"norm{number}_{p}"] for p in ("mean", "variance", "gamma", "beta"))
            mean, variance, gamma, beta = parts
            return functional.batch_norm(
                x, mean, variance, gamma, beta, training=training, momentum=0.01, eps=1e-3
            )

        x = functional.relu(conv(x))
        for filters, stride in BLOCKS:
            y = conv(functional.relu(conv(x, stride)))
            if stride != 1 or x.shape[1] != filters:
                x = conv(x, stride)
            x = functional.relu(x + y)
        x = x.mean((2, 3))
        return functional.linear(x.float(), weights["kernel"].T, weights["bias"])


def log_odds(logits, labels):
    """Of the wrong classes, as ``fd_keras.evaluation.classifiers.LogOdds``."""
    own = functional.one_hot(labels, 10).bool()
    others = torch.logsumexp(logits.masked_fill(own, -1e30), -1)
    return others - (logits * own).sum(-1)


def attacked(images, labels, logits, epsilon, steps=1, *, wide=False):
    """FGSM from a random start, or PGD; ``wide``: N-FGSM."""
    stride = epsilon if wide else 1.25 * epsilon if steps == 1 else 2.5 * epsilon / steps
    radius = 2 * epsilon if wide else epsilon
    lowest, highest = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=255)
    x = images + (2 * torch.rand_like(images) - 1) * radius
    if not wide:
        x = torch.minimum(torch.maximum(x, lowest), highest)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_odds(logits(x), labels).sum(), x)
        x = x + stride * gradient.sign()
        x = x.clamp(0, 255) if wide else torch.minimum(torch.maximum(x, lowest), highest)
    return x.detach()


def augmented(images):
    """Flipped or not, and shifted by up to four pixels over the repeated edge."""
    count, _, size, _ = images.shape
    device = images.device
    positions = torch.arange(size, device=device)
    flip = torch.rand((count, 1), device=device) < 0.5
    columns, rows = (
        (positions + torch.randint(-4, 5, (count, 1), device=device)).clamp(0, size - 1)
        for _ in range(2)
    )
    columns = torch.where(flip, size - 1 - columns, columns)
    index = (rows[:, :, None] * size + columns[:, None, :]).reshape(count, 1, -1)
    return images.reshape(count, 3, -1).gather(2, index.expand(-1, 3, -1)).reshape(images.shape)


class Job:
    """One recipe, with everything that its training changes."""

    def __init__(self, name, job, arrays, data, validation, device):
        self.name, self.job, self.recipe, self._data = name, job, job["recipe"], data
        self.validation = validation
        self.layer = Layer(job["table"]).to(device) if job["table"] else no_layer
        self.gradients = ("smooth", "straight-through")
        if not job["table"] or self.layer.soft:
            self.gradients = self.gradients[:1]
        self.weights, self.averages, self.original = (Weights(arrays, device) for _ in range(3))
        for value in [*self.averages.tensors.values(), *self.original.tensors.values()]:
            value.requires_grad_(False)
        trained = [self.weights.tensors[n] for n in self.weights.trained]
        self._trained, self._moved = trained, [torch.zeros_like(w) for w in trained]
        self.batches = len(data[1]) // BATCH
        self.epochs, self.epoch = job["epochs"], 0
        schedule = self._schedule(job["learning_rate"], self.epochs * self.batches)
        self._rates = torch.tensor(schedule, dtype=torch.float32, device=device)
        self._decay = job["weight_decay"]
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._order = torch.zeros((self.batches, BATCH), dtype=torch.int64, device=device)
        self.loss = torch.zeros((), device=device)
        self.half = device.type == "cuda"
        self.history, self.best = [], None
        self._device = device

    @staticmethod
    def _schedule(highest, steps):
        """As ``fd_keras.hardening.recipe.warm_up_cosine``."""
        warm_up = max(1, round(0.05 * steps))
        numbers = np.arange(steps)
        rising = highest * numbers / warm_up
        done = (numbers - warm_up) / (steps - warm_up)
        return np.where(numbers < warm_up, rising, highest * (1 + np.cos(np.pi * done)) / 2)

    def behind(self, weights, images, gradient="smooth", **options):
        """Logits behind the layer."""
        return weights.logits(self.layer(images, gradient), half=self.half, **options)

    def shuffle(self):
        """A new order of the images."""
        count = len(self._data[1])
        order = torch.randperm(count, device=self._device)[: self.batches * BATCH]
        self._order.copy_(order.reshape(self.batches, BATCH))

    def step(self):
        """One batch; no value leaves the device, so that it can be captured as a graph."""
        recipe, weights = self.recipe, self.weights
        chosen = self._order.index_select(0, (self._count % self.batches)[None])[0]
        images, labels = (part.index_select(0, chosen) for part in self._data)
        images = augmented(images.float())
        mixed = torch.cat(self._attacked_in_part(images, labels))
        targets = functional.one_hot(labels, 10).float()
        with torch.no_grad():
            if recipe["soft_labels"]:
                soft = self.original.logits(images, half=self.half).softmax(-1)
                targets = torch.lerp(targets, soft, recipe["soft_labels"])
            distilled = self.layer(mixed)
        logits = weights.logits(distilled, training=True, half=self.half)
        loss = -(targets * logits.log_softmax(-1)).sum(-1).mean()
        gradients = torch.autograd.grad(loss, self._trained)
        self._descend(gradients)
        self.loss.copy_(loss.detach())

    def _attacked_in_part(self, images, labels):
        """A batch in parts: attacked through the layer, on the undefended one, and benign."""
        recipe = self.recipe
        if not recipe["epsilon"]:
            return [images]
        count = math.ceil(recipe["attacked_share"] * BATCH)
        parts = [
            attacked(
                *(images[:count], labels[:count]),
                functools.partial(self.behind, self.weights),
                recipe["epsilon"],
                recipe["attack_steps"],
                wide=recipe.get("wide", False),
            )
        ]
        moved = math.ceil(recipe["transferred_share"] * BATCH)
        if moved:
            mine = slice(count, count + moved)
            alone = functools.partial(self.original.logits, half=self.half)
            parts.append(attacked(images[mine], labels[mine], alone, recipe["transferred_epsilon"]))
        return [*parts, images[count + moved :]]

    @torch.no_grad()
    def _descend(self, gradients):
        """Keras' SGD with Nesterov's momentum and decoupled decay, then the moving averages."""
        rate = self._rates.index_select(0, self._count[None])[0]
        if self._decay:
            torch._foreach_mul_(self._trained, 1 - rate * self._decay)
        scaled = torch._foreach_mul(list(gradients), rate)
        torch._foreach_mul_(self._moved, MOMENTUM)
        torch._foreach_sub_(self._moved, scaled)
        torch._foreach_add_(self._trained, self._moved, alpha=MOMENTUM)
        torch._foreach_sub_(self._trained, scaled)
        self._count += 1
        batches = self._count.float()
        kept = torch.clamp((1 + batches) / (10 + batches), max=self.recipe["averaging"])
        averages = list(self.averages.tensors.values())
        new = [value.detach() for value in self.weights.tensors.values()]
        torch._foreach_mul_(averages, kept)
        torch._foreach_add_(averages, torch._foreach_mul(new, 1 - kept))

    def check(self):
        """Benign accuracy of the averaged weights on the validation split, and under PGD."""
        images, labels = self.validation
        with torch.no_grad():
            right = self.behind(self.averages, images).argmax(-1) == labels
        benign, withstood = right.float().mean().item(), right
        if self.recipe["epsilon"]:
            for gradient in self.gradients:
                through = functools.partial(self.behind, self.averages, gradient=gradient)
                found = attacked(images, labels, through, self.recipe["epsilon"], CHECK_STEPS)
                with torch.no_grad():
                    withstood = withstood & (through(found).argmax(-1) == labels)
        adaptive = withstood.float().mean().item()
        self.history.append(
            {"epoch": self.epoch, "loss": self.loss.item(), "benign": benign, "adaptive": adaptive}
        )
        # Chosen as in fd_keras.harden: the best under attack where benign accuracy is kept, else
        # the best benign one.
        within = benign >= self.job["benign"] - self.job["max_benign_loss"]
        rank = (within, adaptive if within and self.recipe["epsilon"] else benign)
        if self.best is None or rank >= self.best[0]:
            self.best = rank, self.epoch, self.averages.arrays()


def training_images(path):
    """Decoded images ``(count, 3, 32, 32)`` as bytes, and their classes."""
    with np.load(path) as archive:
        files, ends, labels = archive["files"], archive["ends"], archive["labels"]
    starts = np.concatenate([[0], ends[:-1]])
    images = [
        np.asarray(Image.open(io.BytesIO(files[start:end].tobytes())))
        for start, end in zip(starts, ends)
    ]
    return np.stack(images).transpose(0, 3, 1, 2), labels


def captured(job):
    """A function that trains on one batch: a graph on a GPU, where kernels are short."""
    if job._device.type != "cuda":
        return job.step
    stream = torch.cuda.Stream()
    kept = [t.detach().clone() for t in _state(job)]
    with torch.cuda.stream(stream):
        for _ in range(3):
            job.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        job.step()
    with torch.no_grad():
        for tensor, value in zip(_state(job), kept):
            tensor.copy_(value)
    torch.cuda.synchronize()

    def replay():
        with torch.cuda.stream(stream):
            graph.replay()

    return replay


def _state(job):
    return [
        *job.weights.tensors.values(),
        *job.averages.tensors.values(),
        *job._moved,
        job._count,
    ]


def trained(jobs, every, done):
    """Train jobs of equal length at the same time, each in a stream of its own."""
    steps = [captured(job) for job in jobs]
    for epoch in range(1, jobs[0].epochs + 1):
        for job in jobs:
            job.shuffle()
        synchronise()
        for _ in range(jobs[0].batches):
            for step in steps:
                step()
        synchronise()
        for job in jobs:
            job.epoch = epoch
            if epoch % every == 0 or epoch == job.epochs:
                job.check()
        synchronise()
        if epoch in (1, 2, jobs[0].epochs):
            done(epoch)


def synchronise():
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", nargs="*", help="names of recipes")
    parser.add_argument("--epochs", type=int, help="instead of each recipe's own")
    parser.add_argument("--images", type=int, help="training images")
    parser.add_argument("--together", type=int, default=6, help="recipes at the same time")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin none after these")
    parser.add_argument("--every", type=int, default=2, help="epochs between two validations")
    arguments = parser.parse_args()
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    arrays, data, validation = packed(arguments.directory, arguments.images, device)
    print(f"{len(data[1])} images read, {time.monotonic() - started:.0f} s", flush=True)
    jobs = json.loads((arguments.directory / "jobs.json").read_text())
    names = [name for name in jobs if not arguments.only or name in arguments.only]
    for name in names:
        jobs[name]["epochs"] = arguments.epochs or jobs[name]["epochs"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    while names:
        epochs = jobs[names[0]]["epochs"]
        group = [name for name in names if jobs[name]["epochs"] == epochs][: arguments.together]
        names = [name for name in names if name not in group]
        if time.monotonic() - started > arguments.seconds:
            print("not begun:", *group, *names)
            break
        begun = time.monotonic()
        running = [Job(n, jobs[n], arrays, data, validation, device) for n in group]

        def done(epoch, begun=begun, group=group):
            spent = time.monotonic() - begun
            print(f"{len(group)} recipes, epoch {epoch}: {spent:.1f} s", flush=True)

        trained(running, arguments.every, done)
        for job in running:
            write(job, arguments.out, device)
        del running


def packed(directory, limit, device):
    """Weights, and training and validation images with their classes, on the device."""
    with np.load(directory / "weights.npz") as archive:
        arrays = dict(archive)
    with np.load(directory / "validation.npz") as archive:
        validation = (
            torch.tensor(archive["images"], dtype=torch.float32, device=device).permute(0, 3, 1, 2),
            torch.tensor(archive["labels"], device=device),
        )
    parts = training_images(directory / "training.npz")
    return arrays, tuple(torch.tensor(part[:limit], device=device) for part in parts), validation


def write(job, out, device):
    """Write the weights of a job's best epoch, and what is known of all."""
    rank, epoch, found = job.best
    np.savez(out / f"{job.name}.npz", **found)
    about = {"epochs": job.epochs, "best_epoch": epoch, "within_benign_loss": rank[0]}
    about |= {"history": job.history, "job": job.job, "device": device_name(device)}
    (out / f"{job.name}.json").write_text(json.dumps(about))
    print(f"{job.name}: epoch {epoch}, last {job.history[-1]}", flush=True)


def device_name(device):
    """Its name."""
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


if __name__ == "__main__":
    main()
