"""Where a call's time goes, told from samples of its stack: nothing is slowed down or missed."""

import collections
import sys
import threading
import time
from contextlib import contextmanager

_INTERVAL = 0.002  # seconds


class StackSampler:
    """Shares of time by what the innermost known frame belongs to.

    Args:
        place_of: Maps a frame's file name and function to a place, or to ``None`` if the frame
            that called it should say.
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
            # A sample that had to wait for Python's lock stands for all the time it waited.
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
