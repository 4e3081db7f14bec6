"""Timing several functions side by side."""

import statistics
import time

# Rounds that a median takes at the least, however slow the functions are.
_LEAST_ROUNDS = 3


def median_seconds(functions, rounds=15, budget=float("inf")):
    """Median run time of each function, measured in turns so that drift hits all alike.

    Args:
        functions: Mapping of names to functions without arguments.
        rounds: How often each is timed, after one call to warm up.
        budget: Seconds after which no further round begins, once there were three.

    Returns:
        Mapping of the names to seconds.
    """
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    began = time.perf_counter()
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and time.perf_counter() - began > budget:
            break
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
