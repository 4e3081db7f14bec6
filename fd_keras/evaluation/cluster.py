"""Attacks on a Dask cluster, whose workers leave attacked images in the cache that all share."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fd_keras._compat import load_model_file, reason_of
from fd_keras._console import progress_bars
from fd_keras._files import atomic_path
from fd_keras.classifier import Classifier
from fd_keras.distribution import spread
from fd_keras.evaluation.store import ArrayStore
from fd_keras.evaluation.workbench import AttackedImages, Workbench

if TYPE_CHECKING:
    from distributed import Client

_MODELS = "models"


@dataclass(frozen=True)
class Attackers:
    """All that a worker needs to attack images as this process would.

    Args:
        model: Path of the saved classifier.
        settings: Arguments of ``Classifier`` besides the model.
        fingerprint: The classifier's.
        identity: See ``Workbench``.
        directory: The cache.
        seed: See ``Workbench``.
        eot_draws: See ``Workbench``.
    """

    model: str
    settings: tuple[tuple[str, Any], ...]
    fingerprint: str
    identity: str
    directory: str
    seed: int
    eot_draws: int


@dataclass(frozen=True, eq=False)
class AttackShard:
    """Images that one worker attacks.

    Args:
        attackers: How.
        images: The benign images and the attack.
        number: Number of the part in the attack, from 1.
    """

    attackers: Attackers
    images: AttackedImages
    number: int
    outputs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.images.title}, part {self.number}"

    @property
    def key(self) -> str:
        """A hash of what it is called; results are in the cache, which has hashes of its own."""
        return hashlib.sha256(str(self).encode()).hexdigest()


def attack_on(client: Client, bench: Workbench, chunks: Sequence[AttackedImages]) -> Iterator[int]:
    """Attack images on a cluster.

    Args:
        client: Of the cluster.
        bench: Of this process, whose store the workers see, too.
        chunks: Images that are attacked at once, each chunk by one worker.

    Yields:
        Number of images of a chunk, once they are in the store.

    Raises:
        RuntimeError: Some chunks could not be attacked; the others are in the store.
        ValueError: The model cannot be saved.
        ConnectionError: The scheduler was lost.
    """
    if not chunks:
        return
    attackers = _attackers(bench)
    shards = [AttackShard(attackers, chunk, number) for number, chunk in enumerate(chunks, 1)]
    failed = []
    for outcome in spread(_attack, shards, client):
        if outcome.error is not None:
            failed.append(f"{outcome.shard}: {outcome.error}")
        elif not bench.keeps(outcome.shard.images):
            failed.append(f"{outcome.shard}: it is not in {attackers.directory}, as others see it")
        else:
            yield len(outcome.shard.images.images)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(chunks)} parts of an attack failed on the cluster, and the "
            f"same call tries them again; {failed[0]}"
        )


def _attack(shard: AttackShard) -> dict[str, Any]:
    """Attack images on a worker."""
    _bench(shard.attackers).pixels(shard.images)
    return {}


@functools.lru_cache(maxsize=1)
def _bench(attackers: Attackers) -> Workbench:
    """The workbench of a worker, kept with its compiled attacks."""
    model = load_model_file(attackers.model)
    classifier = Classifier(model, **dict(attackers.settings))
    if classifier.fingerprint != attackers.fingerprint:
        raise ValueError(f"{attackers.model} is not the model that is evaluated")
    with progress_bars(None) as progress:
        return Workbench(
            classifier,
            ArrayStore(attackers.directory),
            seed=attackers.seed,
            eot_draws=attackers.eot_draws,
            progress=progress,
            identity=attackers.identity,
        )


def _attackers(bench: Workbench) -> Attackers:
    classifier, home = bench.classifier, bench.store.directory.parent.resolve()
    return Attackers(
        str(_saved(classifier, home / _MODELS / f"{bench.identity}.keras")),
        (
            ("value_range", classifier.value_range),
            ("from_logits", classifier.from_logits),
            ("output", classifier.output),
        ),
        bench.fingerprint,
        bench.identity,
        os.fspath(home),
        bench.seed,
        bench.eot_draws,
    )


def _saved(classifier: Classifier, path: Path) -> Path:
    """The file of a classifier's model, written unless it is there."""
    if not path.is_file():
        try:
            with atomic_path(path) as temporary:
                classifier.model.save(temporary)
        except OSError:
            raise
        except Exception as error:  # Keras raises whatever a model's own code raises
            raise ValueError(
                "`classifier` must be a model that Keras can save, for the workers of `client` to "
                f"load. Received: model {classifier.model.name!r} ({reason_of(error)})"
            ) from error
    return path
