"""The processes that train together under a strategy of ``tf.distribute``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import tensorflow as tf

from fd_keras._compat import trains_on_several_machines


@dataclass(frozen=True)
class Team:
    """The processes of the current strategy: one, but under ``MultiWorkerMirroredStrategy``.

    Args:
        strategy: The strategy.
        processes: How many there are.
        leads: Whether this is the one that writes.

    Example:
        >>> team = Team.current()
        >>> team.processes, team.leads
        (1, True)
    """

    strategy: tf.distribute.Strategy
    processes: int
    leads: bool

    @classmethod
    def current(cls) -> Team:
        """The processes of the strategy in whose scope this is called.

        Raises:
            ValueError: There are several, and Keras cannot train on them.
        """
        strategy = tf.distribute.get_strategy()
        resolver = strategy.cluster_resolver
        if resolver is None or not resolver.task_type:
            return cls(strategy, 1, True)
        jobs = resolver.cluster_spec().as_dict()
        processes = sum(len(jobs.get(job, ())) for job in ("chief", "worker"))
        if processes > 1 and not trains_on_several_machines():
            raise ValueError(
                "Keras 3 cannot train any model under MultiWorkerMirroredStrategy "
                "(https://github.com/keras-team/keras/issues/20585); train on one machine, or with "
                f"Keras 2. Received: a strategy of {processes} processes"
            )
        first = ("chief" if "chief" in jobs else "worker", 0)
        return cls(strategy, processes, (resolver.task_type, resolver.task_id) == first)

    def meet(self) -> None:
        """Wait until all processes are here."""
        self.check_same(0)

    def check_same(self, value: int) -> None:
        """Refuse to train where the processes do not go on from the same state.

        Args:
            value: What tells of the state that this process goes on from.

        Raises:
            ValueError: Another one goes on from another state.
        """
        if self.processes == 1:
            return
        if int(self._sum(tf.constant(value))) != value * self.strategy.num_replicas_in_sync:
            # A process that ends at once would take this error from the others.
            with suppress(tf.errors.OpError):
                self._sum(tf.constant(0))
            raise ValueError(
                "`directory` must be the same place for all processes that train together. "
                "Received: directories with different states of a training"
            )

    def shared_out(self, data: tf.data.Dataset) -> tf.data.Dataset:
        """Batches of which each process takes its part.

        Args:
            data: The same batches in every process.
        """
        if self.processes == 1:
            return data
        options = tf.data.Options()
        policy = tf.data.experimental.AutoShardPolicy.DATA
        options.experimental_distribute.auto_shard_policy = policy
        return data.with_options(options)

    @tf.function
    def _sum(self, value: tf.Tensor) -> tf.Tensor:
        return self.strategy.reduce("SUM", self.strategy.run(lambda: value), axis=None)
