"""Time several functions in turns."""

import statistics
import time

# Minimum number of rounds, however slow the functions are.
_LEAST_ROUNDS = 3

# Functions that take fewer seconds are called for as long before a call is timed in each round:
# that refills the caches that the other functions have used, and wakes the threads.
_SHORT = 0.1


def median_seconds(functions, rounds=15, budget=float("inf")):
    """Median run time of each function, measured in turns so that drift affects all equally.

    Args:
        functions: Mapping of names to functions without arguments.
        rounds: Number of times that each is timed, after one call to warm up. Short ones are warmed
            up again in each round.
        budget: Seconds after which no further round begins, but for the first three.

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
                _warm_up(function, _SHORT if rounds > 1 else 0)
            times[name].append(_seconds(function))
    return {name: statistics.median(values) for name, values in times.items()}


def _warm_up(function, seconds):
    until = time.perf_counter() + seconds
    function()
    while time.perf_counter() < until:
        function()


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
