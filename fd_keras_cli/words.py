"""The command line's words for what messages of the library call by Python's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Arguments of the library, and the parameter of a command that stands for each.
_PARAMETERS = {
    "from_logits": "probabilities",
    "output": "model_output",
    "input_shape": "image_size",
    "classifier": "model",
    "class_names": "classes",
    "representative_data": "representative",
    "cache_dir": "cache",
    "max_held_out": "max_validation_images",
}

# Advice that is put in another way, with the parameter that it is about.
_ADVICE = (
    ("probabilities", "Pass from_logits=False", "Pass --probabilities"),
    ("probabilities", "Pass from_logits=True", "Leave out --probabilities"),
    ("probabilities", ", with from_logits=True", ""),
    ("probabilities", ", with from_logits=False", ", with --probabilities"),
    ("verify", "verify=False", "--no-verify"),
    ("overwrite", "overwrite=True", "--overwrite"),
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


def in_options(message: str, options: Mapping[str, str]) -> str:
    """A message with the options of a command in place of the library's arguments.

    Args:
        message: Of an error of the library.
        options: The command's parameters by their Python names, such as ``"--max-images"`` for
            ``max_images``. Other words stay as they are.

    Example:
        >>> options = {"value_range": "--value-range", "probabilities": "--probabilities"}
        >>> in_options("`value_range` must be two numbers. Received: value_range=1", options)
        '`--value-range` must be two numbers. Received: --value-range 1'
        >>> in_options("Pass from_logits=False, or take off its softmax.", options)
        'Pass --probabilities, or take off its softmax.'
    """
    for parameter, advice, instead in _ADVICE:
        if parameter in options:
            message = message.replace(advice, instead)
    shown = {name: options[alias] for name, alias in _PARAMETERS.items() if alias in options}
    shown |= {name: option for name, option in options.items() if name not in shown}
    names = "|".join(map(re.escape, sorted(shown, key=len, reverse=True)))
    if not names:
        return message
    message = re.sub(f"`({names})`", lambda found: f"`{shown[found[1]]}`", message)
    return re.sub(rf"(?<![\w`./'\"-])({names})=(?=\S)", lambda f: f"{shown[f[1]]} ", message)
