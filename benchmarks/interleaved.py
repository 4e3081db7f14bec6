"""Timing several functions side by side."""

import statistics
import time

# Rounds that a median takes at the least, however slow the functions are.
_LEAST_ROUNDS = 3

# Seconds below which a function is called twice in its turn, and the second call is timed: the
# first one fetches back what the others drove from the caches, and wakes the threads.
_SHORT = 0.1


def median_seconds(functions, rounds=15, budget=float("inf")):
    """Median run time of each function, measured in turns so that drift hits all alike.

    Args:
        functions: Mapping of names to functions without arguments.
        rounds: How often each is timed, after one call to warm up. Short ones are warmed up again
            in each turn.
        budget: Seconds after which no further round begins, once there were three.

    Returns:
        Mapping of the names to seconds.
    """
    for function in functions.values():
        function()
    short = {name for name, function in functions.items() if _seconds(function) < _SHORT}
    times = {name: [] for name in functions}
    began = time.perf_counter()
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and time.perf_counter() - began > budget:
            break
        for name, function in functions.items():
            if name in short:
                function()
            times[name].append(_seconds(function))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
