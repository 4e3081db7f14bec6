"""The command line's words for what messages of the library call by Python's names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

# Arguments of the library, and the parameters of commands that stand for each.
_PARAMETERS = {
    "from_logits": ("probabilities",),
    "output": ("model_output",),
    "input_shape": ("image_size",),
    "classifier": ("model",),
    "class_names": ("classes",),
    "representative_data": ("representative",),
    "cache_dir": ("cache",),
    "directory": ("run",),
    "max_held_out": ("max_validation_images",),
    "validation_from_train_data": ("validation_data",),
    "limits": ("limit",),
    "names": ("attack",),
    "location": ("data", "train_data", "images", "representative"),
}

# The table of a message is named by the option that it came by.
_TABLE = re.compile(r"QuantizationTable\(('[^']*')([^()]*)\)")

# What is no option of the command, and no text that was given.
_ARGUMENT = re.compile(r"`([a-z]+(?:_[a-z]+)*)`")
_RECEIVED = re.compile(r"((?:Received: |, )[a-z]+(?:_[a-z]+)*)=(?=\S)")

# Arguments that stand for a file which the message names anyway.
_FILES = re.compile(r"`(?:path|source)`|(?<= )(?:path|source)=")

# The parameters of the command that runs, as the command line writes them.
_OPTIONS: ContextVar[Mapping[str, str]] = ContextVar("_OPTIONS", default={})  # noqa: B039

# Advice that is put in another way, with the parameter that it is about.
_ADVICE = (
    ("probabilities", "Pass from_logits=False", "Pass --probabilities"),
    ("probabilities", "Pass from_logits=True", "Pass --logits"),
    ("probabilities", " (from_logits, output)", " (--probabilities, --logits)"),
    ("probabilities", ", with from_logits=True", ", with --logits"),
    ("probabilities", ", with from_logits=False", ", with --probabilities"),
    ("strip_layer", "take it off with fd_keras.unprotect(model)", "take it off with --strip-layer"),
    ("value_range", "pixels (value_range)", "pixels (--value-range)"),
    ("value_range", "give 0, 255, or", "give --value-range 0,255, or"),
    ("classes", "(--classes, labels)", "(--classes)"),
    ("verify", "verify=False", "--no-verify"),
    ("overwrite", "overwrite=True", "--overwrite"),
    ("protocol", "must be a Protocol or one of", "must be one of"),
    ("attack", " without epsilon", " without --epsilon"),
    ("limit", "`limits` must map some of ", "`--limit` must be NAME=COUNT with NAME one of "),
    ("limit", ") to numbers of images", ")"),
    ("distortion_budget", "even with min_step=1", "even with steps of 1"),
    ("model", "`directory` must hold saved_model.pb", "`MODEL` must hold saved_model.pb"),
    ("max_benign_loss", "`directory`", "`--out`"),
    (
        "image_size",
        "give protect an `input_shape` such as (224, 224, 3)",
        "give --image-size, such as 224 224",
    ),
    ("image_size", "protect(..., input_shape=(224, 224, 3))", "--image-size 224 224"),
    (
        "value_range",
        "give layer and classifier the `value_range` that the model takes",
        "give the --value-range that MODEL takes",
    ),
)


def set_options(options: Mapping[str, str]) -> None:
    """Say which command's words messages are to use from here on.

    Args:
        options: The command's parameters by their Python names, such as ``"--max-images"`` for
            ``max_images``.

    Example:
        >>> set_options({})
    """
    _OPTIONS.set(options)


@contextmanager
def called(argument: str, name: str) -> Iterator[None]:
    """Let messages of the block call an argument by another name, those of its errors too.

    Args:
        argument: Name in Python.
        name: Name on the command line.

    Raises:
        ValueError: The block raised one.

    Example:
        >>> with called("location", "--images"):
        ...     in_options("`location` must be a directory")
        '`--images` must be a directory'
    """
    token = _OPTIONS.set({**_OPTIONS.get(), argument: name})
    try:
        yield
    except ValueError as error:
        raise ValueError(in_options(str(error))) from error
    finally:
        _OPTIONS.reset(token)


@contextmanager
def given(option: str, value: str) -> Iterator[None]:
    """Let errors of the block be about the value of an option that the block makes something of.

    Args:
        option: The option, as the command line writes it.
        value: What was given.

    Raises:
        ValueError: The block raised one.

    Example:
        >>> with given("--table", "jpeg:0"):
        ...     raise ValueError("`quality` must be at least 1. Received: quality=0")
        Traceback (most recent call last):
        ...
        ValueError: `--table`: quality must be at least 1. Received: --table jpeg:0
    """
    try:
        yield
    except ValueError as error:
        rule = str(error).partition(" Received: ")[0]
        found = _ARGUMENT.match(rule)
        if found is None:
            raise
        whole = found[1] in ("name", "spec", "table", "location")
        named = "" if whole else f": {found[1].replace('_', ' ')}"
        raise ValueError(
            f"`{option}`{named}{rule[found.end() :]} Received: {option} {value}"
        ) from error


def in_options(message: str) -> str:
    """A message with the options of the command in place of the library's arguments.

    Arguments that no option stands for become plain words.

    Args:
        message: Of an error or a warning of the library. Parts of paths stay as they are.

    Example:
        >>> set_options({"value_range": "--value-range", "probabilities": "--probabilities"})
        >>> in_options("`value_range` must be two numbers. Received: value_range=1")
        '`--value-range` must be two numbers. Received: --value-range 1'
        >>> in_options("Pass from_logits=False, or take off its softmax.")
        'Pass --probabilities, or take off its softmax.'
        >>> set_options({})
    """
    options = _OPTIONS.get()
    for parameter, advice, instead in _ADVICE:
        if parameter in options:
            message = message.replace(advice, instead)
    shown = dict(options)
    for name, parameters in _PARAMETERS.items():
        found = [options[parameter] for parameter in parameters if parameter in options]
        if found and name not in options:
            shown[name] = found[0]
    message = _renamed(message, shown) if shown else message
    message = _FILES.sub(lambda found: "the file" if found[0].startswith("`") else "", message)
    if not options:
        return message
    message = _TABLE.sub(lambda found: found[1] + _words(found[2].replace("=", " ")), message)
    message = _ARGUMENT.sub(lambda found: _words(found[1]), message)
    return _RECEIVED.sub(lambda found: _words(found[1]) + " ", message)


def _words(names: str) -> str:
    return names.replace("_", " ")


def _renamed(message: str, shown: Mapping[str, str]) -> str:
    names = sorted(shown, key=len, reverse=True)
    either = "|".join(map(re.escape, names))
    message = re.sub(f"`({either})`", lambda found: f"`{shown[found[1]]}`", message)
    before = r"(?<![\w`./'\"-])"
    message = re.sub(rf"{before}({either})=None\b", lambda f: f"no {shown[f[1]]}", message)
    message = re.sub(rf"{before}({either})=(?=\S)", lambda f: f"{shown[f[1]]} ", message)
    # Without quotes, names of one word may be mere words.
    either = "|".join(re.escape(name) for name in names if "_" in name)
    bare = rf"{before}({either})(?![\w`./'\"=-])"
    return re.sub(bare, lambda found: shown[found[1]], message) if either else message
