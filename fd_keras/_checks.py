"""Checks of arguments, pixels and model outputs.

``checked...`` and ``validate_...`` return the value in the type that the caller needs;
``check_...`` return nothing. All raise ``ValueError`` with a message that names the argument and
what was received.
"""

from __future__ import annotations

import numbers
import reprlib
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

Choice = TypeVar("Choice", bound=str)

# Smallest perturbation in grey levels of 255. Smaller numbers are refused, because they were
# almost certainly meant for pixels from 0 to 1.
SMALLEST_EPSILON = 0.1

# Sums of probabilities in half precision differ from 1 by up to this much.
_SUM_TOLERANCE = 1e-3

# Longest value in an error message, in characters.
_MOST_SHOWN = 200

# Numbers of channels that images have; other arrays with channels are rare.
_USUAL_CHANNELS = (1, 3, 4)


def shown(value: object) -> str:
    """``repr`` of a value in an error message, whose length is bounded.

    Args:
        value: What was received: of any type and size.

    Returns:
        Its ``repr``, shortened if that is long; of a large array, type, shape and dtype.

    Example:
        >>> shown((0, "x")), shown(list(range(1000)))
        ("(0, 'x')", '[0, 1, 2, 3, 4, 5, ...]')
        >>> shown(np.zeros((512, 512)))
        'ndarray of shape (512, 512) and dtype float64'
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(value, np.ndarray) and value.size <= 64:
        return shortened(repr(value))
    if shape is not None and dtype is not None and not isinstance(value, np.generic):
        return shortened(f"{type(value).__name__} of shape {shape} and dtype {dtype}")
    short = reprlib.Repr()
    short.maxlevel = 3
    short.maxstring = short.maxother = short.maxlong = _MOST_SHOWN
    return shortened(short.repr(value))


def shortened(text: str, most: int = _MOST_SHOWN) -> str:
    """A text of an error message, cut to a length.

    Args:
        text: Any text.
        most: Maximum number of characters.

    Example:
        >>> shortened("x" * 9, 6)
        'xxx...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str) -> str:
    r"""A name as one line without control characters, which terminals and plots would obey.

    Args:
        text: Any text.

    Returns:
        ``text`` with escapes such as ``\x1b`` and ``\u2028`` for what cannot be printed.

    Example:
        >>> printable("grün\x1b[31m")
        'grün\\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def checked_choice(argument: str, value: object, choices: Sequence[Choice]) -> Choice:
    """Return ``value`` if it is one of some names.

    Args:
        argument: Name of the argument in the error message.
        value: Candidate.
        choices: The names.

    Raises:
        ValueError: ``value`` is anything else.

    Example:
        >>> checked_choice("gradient", "smooth", ("straight-through", "smooth"))
        'smooth'
    """
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    raise ValueError(
        f"`{argument}` must be one of {tuple(choices)}. Received: {argument}={shown(value)}"
    )


def is_real(dtype: Any) -> bool:
    """Whether a dtype is one of integers or floats: not complex, boolean, text or object.

    Args:
        dtype: A numpy dtype, also one of ``ml_dtypes`` such as bfloat16.

    Example:
        >>> is_real(np.uint8), is_real(np.float16), is_real(bool), is_real(complex), is_real("U1")
        (True, True, False, False, False)
    """
    dtype = np.dtype(dtype)
    return dtype.kind in "iuf" or (dtype.kind == "V" and np.can_cast(dtype, np.float64))


def real_numbers(name: str, value: Any) -> Array:
    """Return ``value`` as float64 if it holds real numbers.

    Args:
        name: Name of the argument in the error message.
        value: A number, or numbers of any shape; no text, truth values or complex numbers.

    Raises:
        ValueError: ``value`` is anything else.

    Example:
        >>> real_numbers("steps", "30")
        Traceback (most recent call last):
        ...
        ValueError: `steps` must be numbers. Received: steps='30'
    """
    try:
        array = np.asarray(value)
        if array.dtype == object:
            # Fractions, or whole numbers beyond 64 bits; numpy would also parse text.
            real = all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in array.flat)
        else:
            real = is_real(array.dtype)
        if real:
            return np.asarray(array, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`{name}` must be numbers. Received: {name}={shown(value)}") from error
    raise ValueError(f"`{name}` must be numbers. Received: {name}={shown(value)}")


def checked(
    name: str,
    value: npt.ArrayLike,
    low: float = 0.0,
    high: float = np.inf,
    *,
    positive: bool = False,
    finite: bool = True,
) -> Array:
    """Return ``value`` as float64 if all of its numbers lie within ``[low, high]``.

    Args:
        name: Name of the argument in the error message.
        value: Numbers of any shape.
        low: Smallest permitted number.
        high: Largest permitted number.
        positive: Whether zero is refused.
        finite: Whether infinity is refused.

    Returns:
        Array of the shape of ``value``.

    Raises:
        ValueError: A number is outside the range or NaN.

    Example:
        >>> checked("step", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: `step` must be finite and not negative. Received: step=-1.0
    """
    array = real_numbers(name, value)
    valid = (array >= low) & (array <= high)
    if positive:
        valid &= array > 0
    if finite:
        valid &= np.isfinite(array)
    if not valid.all():
        rule = _rule(low, high, positive, finite)
        received = array[~valid].ravel()[0]
        raise ValueError(f"`{name}` must {rule}. Received: {name}={received}")
    return array


def _rule(low: float, high: float, positive: bool, finite: bool) -> str:
    if np.isfinite(high):
        return f"lie between {low:g} and {high:g}"
    sign = "positive" if positive else "not negative" if np.isfinite(low) else ""
    return "be " + " and ".join(filter(None, ("finite" if finite else "", sign)))


def checked_together(**arrays: Array) -> tuple[Array, ...]:
    """Return arrays in one shape, if they broadcast.

    Args:
        **arrays: By the names of the arguments that they are.

    Raises:
        ValueError: They do not broadcast.

    Example:
        >>> step, scale = checked_together(step=np.ones(2), scale=np.ones((3, 1)))
        >>> step.shape, scale.shape
        ((3, 2), (3, 2))
    """
    try:
        return tuple(np.broadcast_arrays(*arrays.values()))
    except ValueError:
        shapes = ", ".join(f"{name} of shape {np.shape(array)}" for name, array in arrays.items())
        *others, last = (f"`{name}`" for name in arrays)
        raise ValueError(
            f"{', '.join(others)} and {last} must have shapes that broadcast. Received: {shapes}"
        ) from None


def checked_whole(argument: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int if it is a whole number in a range.

    Args:
        argument: Name of the argument in the error message.
        value: Candidate.
        low: Smallest permitted number.
        high: Largest permitted number; ``None``: no limit.

    Raises:
        ValueError: ``value`` is anything else.

    Example:
        >>> checked_whole("bits", np.int64(5), 1, 8)
        5
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < low or (high is not None and int(value) > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(
            f"`{argument}` must be a whole number {limits}. Received: {argument}={shown(value)}"
        )
    return int(value)


def checked_labels(labels: npt.ArrayLike, count: int) -> npt.NDArray[np.integer]:
    """Return ``labels`` as integers, one for each of ``count`` images.

    Args:
        labels: Whole numbers ``(count,)`` or ``(count, 1)``, integers or floats, as
            ``keras.utils.image_dataset_from_directory`` gives them with ``label_mode="binary"``.
        count: Number of images, at least one.

    Raises:
        ValueError: ``labels`` are anything else, such as one-hot or fractions.

    Example:
        >>> checked_labels([3, 1], 2), checked_labels([[0.0], [1.0]], 2)
        (array([3, 1]), array([0, 1]))
    """
    array = np.asarray(labels)
    whole = whole_numbers(array)
    if count == 0 or array.shape not in ((count,), (count, 1)) or whole is None:
        raise ValueError(
            "`labels` must be one integer class per image, for at least one image. "
            f"Received: labels of shape {array.shape} and dtype {array.dtype} for {count} images"
        )
    return whole.reshape(-1)


def whole_numbers(array: npt.NDArray[Any]) -> npt.NDArray[np.integer] | None:
    """Integers as they are, and floats that are whole numbers as int64; of others, ``None``.

    Args:
        array: Of any shape and dtype.

    Example:
        >>> whole_numbers(np.array([0.0, 1.0])), whole_numbers(np.array([0.5])) is None
        (array([0, 1]), True)
    """
    if np.issubdtype(array.dtype, np.integer):
        return array
    if not is_real(array.dtype):
        return None
    wide = array.astype(np.float64)
    # Beyond 2**53, neighbouring classes could not be told from each other.
    if not ((wide == np.rint(wide)) & (np.abs(wide) <= 2**53)).all():
        return None
    return wide.astype(np.int64)


def validate_epsilon(epsilon: float, name: str = "epsilon") -> float:
    """Return ``epsilon`` as a float if it is the size of a perturbation in grey levels of 255.

    Args:
        epsilon: Candidate, from 0.1 to 255.
        name: Of the argument, for the error.

    Raises:
        ValueError: ``epsilon`` is anything else.

    Example:
        >>> validate_epsilon(2)
        2.0
    """
    value = _one_number(epsilon)
    if not SMALLEST_EPSILON <= value <= 255:
        raise ValueError(
            f"`{name}` must be one finite number of grey levels of 255, from {SMALLEST_EPSILON} "
            "to 255: for 0.0078 of pixels from 0 to 1, write 2. "
            f"Received: {name}={shown(epsilon)}"
        )
    return value


def _one_number(value: Any) -> float:
    """``value`` as a float; NaN if it is no single real number."""
    try:
        number = real_numbers("value", value)
    except ValueError:
        return np.nan
    return float(number) if number.ndim == 0 else np.nan


def checked_epsilons(epsilon: npt.ArrayLike) -> Array:
    """Return sizes of perturbations in grey levels of 255 as an array; 0 is none at all.

    Args:
        epsilon: Candidates of any shape, each 0 or at least 0.1.

    Raises:
        ValueError: A number is negative, not finite, or between 0 and 0.1.

    Example:
        >>> checked_epsilons([0, 2])
        array([0., 2.])
    """
    array = checked("epsilon", epsilon)
    too_small = (array > 0) & (array < SMALLEST_EPSILON)
    if too_small.any():
        raise ValueError(
            f"`epsilon` must be 0 or at least {SMALLEST_EPSILON} grey levels of 255: for 0.0078 "
            f"of pixels from 0 to 1, write 2. Received: epsilon={array[too_small].ravel()[0]}"
        )
    return array


def validate_value_range(value_range: Sequence[float]) -> tuple[float, float]:
    """Return ``value_range`` as two floats if it is a range of pixel values.

    Args:
        value_range: Lowest and highest pixel value.

    Raises:
        ValueError: It is not two finite numbers, the lower first, whose 255 grey levels float32
            can hold.

    Example:
        >>> validate_value_range((0, 255))
        (0.0, 255.0)
    """
    try:
        bounds = real_numbers("value_range", value_range)
    except ValueError:
        bounds = np.empty(0)
    received = f"Received: value_range={shown(value_range)}"
    if bounds.shape != (2,) or not np.isfinite(bounds).all() or not bounds[0] < bounds[1]:
        raise ValueError(f"`value_range` must be two finite numbers, the lower first. {received}")
    low, high = bounds.tolist()
    with np.errstate(over="ignore", invalid="ignore"):
        spacing = np.spacing(np.float32(max(-low, high)))
        wide = (high - low) / 255 >= max(4 * spacing, np.finfo(np.float32).tiny)
        if not (wide and np.isfinite(np.float32(high - low))):
            raise ValueError(
                f"`value_range` must be a range whose 255 grey levels float32 can hold. {received}"
            )
    return low, high


def check_pixels(pixels: npt.NDArray[Any], value_range: tuple[float, float]) -> None:
    """Refuse pixels outside ``value_range``, and pixels that were scaled to a narrower range.

    Pixels may exceed the range by half a grey level (a 255th of the range), as interpolation and
    rounding cause it. Pixels that all lie within one grey level of black, some of them strictly in
    between, were almost certainly scaled to another range, such as 0..1.

    Args:
        pixels: Images that are checked together; not empty.
        value_range: Lowest and highest pixel value.

    Raises:
        ValueError: Pixels are no integers or floats, one is outside the range or NaN, or they are
            of another scale.

    Example:
        >>> check_pixels(np.array([0.0, 0.25, 1.0]), (0.0, 255.0))
        Traceback (most recent call last):
        ...
        ValueError: `data` must be scaled to value_range, 0 to 255. Received: images from 0 to 1
    """
    if not is_real(pixels.dtype):
        raise ValueError(
            f"`data` must hold pixels as integers or floats. Received: dtype {pixels.dtype}"
        )
    low, high = value_range
    grey_level = (high - low) / 255
    darkest, brightest = float(pixels.min()), float(pixels.max())
    received = f"Received: images from {darkest:g} to {brightest:g}"
    # Comparisons with NaN are false, so this refuses NaN too.
    if not (low - grey_level / 2 <= darkest and brightest <= high + grey_level / 2):
        raise ValueError(
            f"`data` must be finite and lie within value_range, {low:g} to {high:g}. {received}"
        )
    if _within_a_grey_level(pixels, value_range):
        raise ValueError(f"`data` must be scaled to value_range, {low:g} to {high:g}. {received}")


def check_range(argument: str, images: npt.NDArray[Any], value_range: tuple[float, float]) -> None:
    """Refuse images that are not in a model's value range, and say what to do about it.

    Args:
        argument: Name of the argument in the error message.
        images: Not empty.
        value_range: Lowest and highest pixel value.

    Raises:
        ValueError: As for ``check_pixels``.

    Example:
        >>> check_range("images", np.array([0.0, 200.0]), (0, 255))
    """
    try:
        check_pixels(images, value_range)
    except ValueError as error:
        if "value_range" not in str(error):
            raise
        low, high = value_range
        darkest, brightest = float(images.min()), float(images.max())
        inside = darkest >= low and brightest <= high
        rule = "be scaled to" if inside else "be finite and lie within"
        way = "give layer and classifier the `value_range` that the model takes"
        if darkest < min(low, 0):
            way = (
                "preprocessing such as that of preprocess_input belongs inside the model, as "
                "layers in front of it (keras.layers.Rescaling, Normalization)"
            )
        raise ValueError(
            f"`{argument}` must {rule} value_range, {low:g} to {high:g}; {way}. "
            f"Received: images from {darkest:g} to {brightest:g}"
        ) from error


def of_another_scale(pixels: npt.NDArray[Any], value_range: tuple[float, float]) -> bool:
    """Whether pixels were almost certainly scaled to another range than ``value_range``.

    Unlike ``check_pixels``, this permits what augmentation, interpolation and attacks make of
    pixels: values up to a quarter of the range outside it.

    Args:
        pixels: Images; not empty.
        value_range: Lowest and highest pixel value.

    Example:
        >>> of_another_scale(np.array([0.0, 0.25, 1.0]), (0.0, 255.0))
        True
        >>> of_another_scale(np.array([0.0, 1.0]), (0.0, 255.0))  # black, with noise of a camera
        False
    """
    low, high = value_range
    darkest, brightest = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(darkest) and np.isfinite(brightest)):
        return False
    if darkest < low - (high - low) / 4 or brightest > high + (high - low) / 4:
        return True
    # Divided by their standard deviation, as for many networks that PyTorch trained.
    grey_level = (high - low) / 255
    if darkest < low - grey_level / 2 and brightest <= low + 8 * grey_level:
        return True
    return _within_a_grey_level(pixels, value_range)


def _within_a_grey_level(pixels: npt.NDArray[Any], value_range: tuple[float, float]) -> bool:
    """Whether no pixel is brighter than one grey level, and some lie in between."""
    low, high = value_range
    grey_level = (high - low) / 255
    if not float(pixels.max()) <= low + 1.001 * grey_level:
        return False
    share = (pixels - low) / grey_level
    return bool(((share > 0.01) & (share < 0.99)).any())


def layout_doubt(shape: Sequence[int | None], data_format: str) -> str:
    """What images look like that are probably no images in ``data_format``.

    Args:
        shape: Of one image or a batch, rank 3 or 4.
        data_format: ``"channels_last"`` or ``"channels_first"``.

    Returns:
        The end of an error message or a warning; empty where there is no doubt.

    Example:
        >>> layout_doubt((2, 3, 32, 32), "channels_last")
        "look like data_format='channels_first'"
        >>> layout_doubt((2, 32, 32, 3), "channels_last")
        ''
    """
    first, last = shape[-3], shape[-1]
    channels, opposite = (last, first) if data_format == "channels_last" else (first, last)
    if channels is None or channels in (2, *_USUAL_CHANNELS):
        return ""
    if opposite in _USUAL_CHANNELS:
        other = "channels_first" if data_format == "channels_last" else "channels_last"
        return f"look like data_format={other!r}"
    if len(shape) == 3:
        return "look like grey images without a channel axis"
    return ""


def looks_normalised(outputs: npt.NDArray[np.floating]) -> bool:
    """Whether outputs of a classifier lie from 0 to 1 and sum to 1, as probabilities do.

    Args:
        outputs: Outputs ``(batch, classes)``; not empty.

    Example:
        >>> looks_normalised(np.array([[0.25, 0.75]])), looks_normalised(np.array([[-1.0, 2.0]]))
        (True, False)
    """
    sums = outputs.sum(axis=-1, dtype=np.float64)
    return bool(outputs.min() >= 0 and np.abs(sums - 1).max() <= _SUM_TOLERANCE)


def check_outputs(outputs: npt.NDArray[np.floating], *, from_logits: bool) -> None:
    """Refuse outputs of a classifier that are not what ``from_logits`` says.

    Args:
        outputs: Outputs ``(batch, classes)``.
        from_logits: Whether they should be logits; otherwise probabilities.

    Raises:
        ValueError: They are not finite, or the other of the two.

    Example:
        >>> check_outputs(np.array([[-1.0, 2.0]]), from_logits=True)
    """
    received = f"Received: outputs from {outputs.min():g} to {outputs.max():g}"
    if not np.isfinite(outputs).all():
        raise ValueError(f"`model` must return finite outputs. {received}")
    looks_normal = looks_normalised(outputs)
    if looks_normal and from_logits:
        raise ValueError(
            "`model` must return logits, and these are probabilities: they lie from 0 to 1 "
            "and sum to 1. Pass from_logits=False, or take off its softmax. "
            f"{received}, with from_logits=True"
        )
    if not looks_normal and not from_logits:
        raise ValueError(
            "`model` must return probabilities, which lie from 0 to 1 and sum to 1. Pass "
            f"from_logits=True for logits. {received}, with from_logits=False"
        )


def callers_level() -> int:
    """The ``stacklevel`` of the code that called this package.

    Example:
        >>> callers_level() > 0
        True
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].startswith("fd_keras"):
        frame, level = frame.f_back, level + 1
    return level
