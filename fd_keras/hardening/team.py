"""The processes that train together under a strategy of ``tf.distribute``."""

from __future__ import annotations

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

    def check_same(self, epochs: int) -> None:
        """Refuse to train where the processes do not go on from the same epoch.

        Args:
            epochs: After how many epochs this process goes on; -1: it begins.

        Raises:
            ValueError: Another one goes on from another epoch.
        """
        if self.processes == 1:
            return
        total = self._sum(tf.constant(epochs))
        if int(total) != epochs * self.strategy.num_replicas_in_sync:
            raise ValueError(
                "`directory` must be the same place for all processes that train together. "
                f"Received: a directory with {max(0, epochs)} epochs in this process, and with "
                "others elsewhere"
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
