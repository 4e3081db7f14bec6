"""Run the chief of a distributed search until the search ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

# Seconds; a worker waits as long for the chief.
_WAIT_FOR_FIRST_WORKER = 60 * 60
_POLL_SECONDS = 0.2


def role() -> str:
    """The role of this process in a search: ``"alone"``, ``"chief"`` or ``"worker"``.

    It is read from Keras Tuner's environment variables, see ``fd_keras.refine``.

    Example:
        >>> role()
        'alone'
    """
    if "KERASTUNER_ORACLE_IP" not in os.environ:
        return "alone"
    return "chief" if "chief" in os.environ.get("KERASTUNER_TUNER_ID", "") else "worker"


def serve_until_over(search: Callable[[], None], oracle: Any, worker_timeout: float) -> None:
    """Serve the workers until all trials have ended.

    Keras Tuner's own chief waits for ever where a worker was killed or none came.

    Args:
        search: The tuner's blocking ``search``, which starts the server.
        oracle: One of ``fd_keras.refinement.oracles``.
        worker_timeout: Seconds of silence after which all workers are taken for lost.

    Raises:
        RuntimeError: All workers were lost, or none came; trials that ended are kept.
    """
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            search()
        except BaseException as error:  # it is raised again below, in the caller's thread
            failed.append(error)

    started = time.monotonic()
    threading.Thread(target=serve, daemon=True).start()
    while not failed:
        heard, now = oracle.last_heard, time.monotonic()
        silent = now - (started if heard is None else heard)
        if oracle.over and (not oracle.tuner_ids or silent > worker_timeout):
            return
        # A worker that is lost is waited for once, and the one that takes over once more.
        if silent > (_WAIT_FOR_FIRST_WORKER if heard is None else 2 * worker_timeout):
            ended = len(oracle.end_order)
            raise RuntimeError(
                f"No worker is left; {ended} of {oracle.max_trials} trials have ended. They are "
                "kept: start chief and workers again to go on"
            )
        time.sleep(_POLL_SECONDS)
    raise failed[0]
