"""Timing several functions side by side."""

import statistics
import time


def median_seconds(functions, rounds=15):
    """Median run time of each function, measured in turns so that drift hits all alike.

    Args:
        functions: Mapping of names to functions without arguments.
        rounds: How often each is timed, after one call to warm up.

    Returns:
        Mapping of the names to seconds.
    """
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
