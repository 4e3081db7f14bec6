"""Work on many shards on a Dask cluster: retried, resumed, and what keeps failing is named."""

from __future__ import annotations

import functools
import logging
import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fd_keras._checks import checked_whole, shown
from fd_keras._extras import import_extra
from fd_keras._files import DocumentFormat, RunDirectory

if TYPE_CHECKING:
    from distributed import Client

# Typing alias: what is done with a shard; returns plain JSON types.
Work = Callable[[Any], "dict[str, Any]"]

# How often an error in a shard is tried again, on any worker.
_RETRIES = 1
_SECONDS_TO_CONNECT = 5
_ADDRESS = re.compile(r"((tcp|tls|ws|wss|ucx)://)?([^/:\s]+|\[[0-9a-fA-F:.]+(%\w+)?\]):\d{1,5}")

_RUN = RunDirectory(
    DocumentFormat("fd_keras.shards", 1, "run over shards"),
    "shards.json",
    ("shards/*.json",),
    replaceable=False,
)
_SHARD = DocumentFormat("fd_keras.shard", 1, "finished shard")


class ShardWarning(UserWarning):
    """A shard keeps failing and is left out.

    Example:
        >>> issubclass(ShardWarning, UserWarning)  # to be silenced, or made an error
        True
    """


class Keyed(Protocol):
    """A shard, such as ``fd_keras.data.shards.Shard``; its text names it in messages."""

    @property
    def key(self) -> str:
        """A hash of all that the result depends on, but for the settings of the work."""

    @property
    def outputs(self) -> Sequence[str]:
        """Files that the work writes; a result is kept for as long as all of them exist."""


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: a result or an error.

    Args:
        shard: The shard.
        result: What the work returned.
        error: Why it failed.
    """

    shard: Any
    result: dict[str, Any] | None = None
    error: Exception | None = None

    @property
    def message(self) -> str:
        """What is to be said of a shard that failed."""
        return f"{self.shard} failed and is left out: {self.error}"


def raise_error(outcome: Outcome) -> None:
    """Raise what made a shard fail.

    Args:
        outcome: Of the shard.

    Raises:
        Exception: The shard failed.

    Example:
        >>> raise_error(Outcome("shard", error=ValueError("too dark")))
        Traceback (most recent call last):
        ...
        ValueError: too dark
    """
    if outcome.error is not None:
        raise outcome.error


@contextmanager
def connected(*, scheduler: str | None = None, workers: int | None = None) -> Iterator[Any]:
    """Connect to a Dask cluster, or start one on this machine.

    Args:
        scheduler: Address of a scheduler, such as ``"tcp://10.0.0.1:8786"``.
        workers: Number of processes on this machine, of one thread each, that end with the block.

    Yields:
        A ``distributed.Client``; ``None`` if neither is given.

    Raises:
        ValueError: Both are given, or no scheduler answers at that address.
        ImportError: Dask is not installed.

    Example:
        >>> with connected() as client:
        ...     print(client)
        None
    """
    if scheduler is None and workers is None:
        yield None
        return
    if scheduler is not None and workers is not None:
        raise ValueError(
            "`scheduler` must not be given with `workers`, which starts a cluster of its own. "
            f"Received: scheduler={shown(scheduler)}, workers={shown(workers)}"
        )
    distributed = import_extra("distributed", "distributed")
    if scheduler is not None:
        with _client_of(distributed, scheduler) as client:
            if not client.scheduler_info()["workers"]:
                warnings.warn(
                    f"The scheduler {scheduler} has no workers yet; the work begins with the first",
                    ShardWarning,
                    stacklevel=3,
                )
            yield client
        return
    count = checked_whole("workers", workers, 1)
    with (
        distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _client_of(distributed: Any, scheduler: str) -> Any:
    rule = "`scheduler` must be the address of a Dask scheduler, such as tcp://10.0.0.1:8786"
    received = f"Received: scheduler={shown(scheduler)}"
    port = int(scheduler.rpartition(":")[2]) if _ADDRESS.fullmatch(scheduler) else 0
    if not 0 < port < 2**16:
        raise ValueError(f"{rule}. {received}")
    try:
        return distributed.Client(scheduler, timeout=_SECONDS_TO_CONNECT)
    # Besides OSError: whatever another service's answer does to the protocol.
    except Exception as error:
        raise ValueError(
            f"{rule}; none answers there within {_SECONDS_TO_CONNECT} seconds. {received}"
        ) from error


def spread(
    work: Work,
    shards: Sequence[Keyed],
    client: Client | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    whole: Callable[[Outcome], bool] = lambda outcome: True,
) -> Iterator[Outcome]:
    """Do work on shards, on a cluster or one after another in this process.

    On a cluster, an error in a shard is tried again once. The shards of a worker that dies run
    again on others. Those that were running each time that a worker died, as often as the
    scheduler allows (its setting ``allowed-failures``), run again alone, one by one, so that only
    the one that kills its worker is called failed.

    Args:
        work: Function from a shard to plain JSON types. On a cluster, it and the shards are
            pickled, and all workers must see the same files.
        shards: The shards.
        client: Of the cluster; ``None``: this process.
        directory: Keeps the result of each shard as soon as it is there. Another run in the same
            directory, also one over more shards, does those only that are not kept.
        settings: All that results depend on besides the shards; must stay the same in
            ``directory``.
        whole: Whether an outcome has all of its shard; others are not kept, since what could not
            be read now may be readable in the next run.

    Yields:
        One outcome for each shard, kept ones first and the others in the order in which they end.

    Raises:
        ValueError: ``directory`` holds something else, or another run uses it.
        ConnectionError: The scheduler was lost. What is finished is kept.
        OSError: ``directory`` cannot be read or written to.

    Example:
        >>> from fd_keras.data.shards import Shard
        >>> shards = [Shard(("/a.png",)), Shard(("/a.png", "/b.png"))]
        >>> [outcome.result for outcome in spread(lambda shard: {"n": len(shard.paths)}, shards)]
        [{'n': 1}, {'n': 2}]
    """
    run = nullcontext(None) if directory is None else _RUN.claimed(directory, settings or {})
    with run as home:
        waiting: list[Any] = []
        for shard in shards:
            result = None if home is None else _kept(_path(home, shard), shard.outputs)
            if result is None:
                waiting.append(shard)
            else:
                yield Outcome(shard, result)
        task = functools.partial(_attempt, work)
        for outcome in map(task, waiting) if client is None else _on(client, task, waiting):
            if home is not None:
                path = _path(home, outcome.shard)
                if outcome.result is not None and whole(outcome):
                    _SHARD.write(path, {"shard": str(outcome.shard), "result": outcome.result})
                else:  # what an earlier run kept of it is no longer true
                    path.unlink(missing_ok=True)
            yield outcome


def _path(home: Path, shard: Keyed) -> Path:
    return home / "shards" / f"{shard.key}.json"


def _kept(path: Path, outputs: Sequence[str]) -> dict[str, Any] | None:
    """The result of a finished shard; ``None`` where there is none, or a damaged one."""
    if not all(map(os.path.lexists, outputs)):
        return None
    try:
        return _SHARD.read(path, lambda content: dict(content["result"]))
    except (OSError, ValueError):
        return None


def _attempt(work: Work, shard: Any) -> Outcome:
    """Do the work on one shard."""
    try:
        return Outcome(shard, work(shard))
    except (OSError, ValueError) as error:
        return Outcome(shard, error=error)


def _remotely(task: Callable[[Any], Outcome], shard: Any) -> dict[str, Any] | None:
    """The result of a shard; errors as Dask can send them, so that it tries again."""
    outcome = task(shard)
    if outcome.error is not None:
        kind = OSError if isinstance(outcome.error, OSError) else ValueError
        raise kind(str(outcome.error)) from None
    return outcome.result


def _on(client: Client, task: Callable[[Any], Outcome], shards: Sequence[Any]) -> Iterator[Outcome]:
    """Outcomes of shards on a cluster, as they come."""
    distributed = import_extra("distributed", "distributed")
    client.register_plugin(_one_thread_a_task(distributed), name="fd_keras")
    remote = functools.partial(_remotely, task)
    # Results must not be taken for those of another run on the same cluster.
    run = uuid.uuid4().hex
    keys = [f"fd_keras-{run}-{number}" for number in range(len(shards))]
    shard_of = dict(zip(keys, shards))
    # Nothing else refers to the futures, so that the cluster forgets what is finished or, once an
    # error or an interruption ends this function, no longer wanted.
    running = distributed.as_completed(
        client.map(remote, list(shards), key=keys, retries=_RETRIES, pure=False)
    )
    killed = []
    for future in running:
        outcome = _outcome_of(future, shard_of[future.key])
        if isinstance(outcome.error, distributed.scheduler.KilledWorker):
            killed.append(outcome.shard)
        else:
            yield outcome
        del future, outcome
    # Shards that wait on a worker when another one kills it are counted as its killers, too.
    for shard in killed:
        future = client.submit(remote, shard, key=f"fd_keras-{uuid.uuid4().hex}", pure=False)
        yield _outcome_of(future, shard)


def _outcome_of(future: Any, shard: Any) -> Outcome:
    """The outcome of a shard that has ended, or ends again where its result died with a worker."""
    try:
        return Outcome(shard, future.result())
    except Exception as error:
        if future.status == "error":
            return Outcome(shard, error=error)
        raise ConnectionError("the scheduler was lost, or cancelled the work") from error


def _one_thread_a_task(distributed: Any) -> Any:
    """A plugin that keeps each worker's TensorFlow to the threads which Dask gives the worker."""

    class Threads(distributed.WorkerPlugin):
        def setup(self, worker: Any) -> None:
            # Two workers on a GPU would else each take all of its memory.
            os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            import tensorflow as tf

            with suppress(RuntimeError):  # TensorFlow has started with other settings
                tf.config.threading.set_intra_op_parallelism_threads(1)
                tf.config.threading.set_inter_op_parallelism_threads(worker.state.nthreads)

    return Threads()
