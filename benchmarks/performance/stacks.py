"""A sampling profiler that sums time by place."""

import collections
import sys
import threading
import time
from contextlib import contextmanager

_INTERVAL = 0.002  # seconds


class StackSampler:
    """Seconds by the place of the innermost known frame.

    Args:
        place_of: Function of a frame's file name and function name that returns its place, or
            ``None`` to ask the calling frame.
    """

    def __init__(self, place_of):
        self._place_of = place_of
        self.seconds = collections.Counter()

    @contextmanager
    def watching(self):
        """Sample the calling thread while the block runs."""
        over, thread = threading.Event(), threading.get_ident()
        sampler = threading.Thread(target=self._sample, args=(thread, over), daemon=True)
        sampler.start()
        try:
            yield
        finally:
            over.set()
            sampler.join()

    def _sample(self, thread, over):
        before = time.perf_counter()
        while not over.wait(_INTERVAL):
            frame = sys._current_frames()[thread]
            now = time.perf_counter()
            # A sample that waited for the GIL counts for all the time since the last one.
            self.seconds[self._place(frame)] += now - before
            before = now

    def _place(self, frame):
        while frame is not None:
            code = frame.f_code
            place = self._place_of(code.co_filename, code.co_name)
            if place is not None:
                return place
            frame = frame.f_back
        return "elsewhere"
