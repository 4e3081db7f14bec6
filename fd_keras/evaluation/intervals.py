"""How far an accuracy on a few images may be from the truth."""

from __future__ import annotations


def wilson_interval(correct: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for the share that ``correct`` of ``count`` estimates.

    It says what drawing other images would change, and nothing about better attacks.

    Args:
        correct: Number of images classified correctly.
        count: Number of images.
        confidence: Probability that such intervals hold the true share.

    Returns:
        ``(low, high)``, from 0 to 1.

    Raises:
        ValueError: ``correct`` is not from 0 to ``count``, or there are no images.

    Example:
        >>> low, high = wilson_interval(7, 200)
        >>> round(low, 3), round(high, 3)
        (0.017, 0.07)

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    if not (count > 0 and 0 <= correct <= count):
        raise ValueError(
            "`correct` must be from 0 to `count`, and `count` at least 1. "
            f"Received: correct={correct!r}, count={count!r}"
        )
    from scipy import stats  # slow to import

    test = stats.binomtest(int(correct), int(count))
    interval = test.proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
