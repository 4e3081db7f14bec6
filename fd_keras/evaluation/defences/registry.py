"""Defences by name, and the candidate settings of each family of baselines."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from fd_keras._checks import shown
from fd_keras.evaluation.defences.base import Defence, no_defence
from fd_keras.evaluation.defences.compression import (
    jpeg_compression,
    stochastic_local_quantisation,
)
from fd_keras.evaluation.defences.distillation import distillation
from fd_keras.evaluation.defences.quilting import image_quilting
from fd_keras.evaluation.defences.squeezing import bit_depth, median_smoothing
from fd_keras.evaluation.defences.total_variation import total_variation
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import PRESETS
from fd_keras.tables import QuantizationTable

# Parameters after the colon of a name, in order; SLQ takes any number of qualities.
_PARAMETERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "none": (),
        "jpeg": ("quality", "subsampling"),
        "bits": ("bits",),
        "median": ("size",),
        "slq": ("quality", "..."),
        "tvm": ("drop", "weight"),
        "quilting": ("patch_size", "neighbours"),
    }
)

#: Settings of each family of baselines, as ``defence`` takes them, to choose from on a validation
#: split. Slow families have few.
CANDIDATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "JPEG": (
            *(f"jpeg:{quality}" for quality in (98, 95, 90, 85, 80, 75, 70, 60, 50, 40, 30)),
            *(f"jpeg:{quality},4:4:4" for quality in (90, 75, 60, 50, 40, 30)),
        ),
        "bit depth": tuple(f"bits:{bits}" for bits in (7, 6, 5, 4, 3)),
        "median": ("median:2", "median:3", "median:5"),
        "SLQ": ("slq:20,40,60,80", "slq:40,50,60,70", "slq:60,70,80,90"),
        "TVM": ("tvm:0.5,0.03", "tvm:0.5,0.01", "tvm:0.3,0.01", "tvm:0,0.03", "tvm:0,0.06"),
        "quilting": ("quilting:5,1", "quilting:5,10", "quilting:3,1"),
    }
)


def defence(
    spec: str | os.PathLike[str] | QuantizationTable | FeatureDistillation | Defence,
    *,
    background: npt.ArrayLike | None = None,
    seed: int = 1,
) -> Defence:
    """Make the defence that a name, a table or a layer stands for.

    ==============================  =====================================================
    ``"none"``                      no defence
    ``"jpeg:75"``                   JPEG at a quality; ``"jpeg:75,4:4:4"``: full chroma
    ``"bits:5"``                    bit depth
    ``"median:2"``                  median filter with a window of this size
    ``"slq"``                       SHIELD's; ``"slq:50,70,90"``: other qualities
    ``"tvm"``                       Guo et al.'s; ``"tvm:0.3,0.01"``: drop rate, weight
    ``"quilting"``                  Guo et al.'s; ``"quilting:5,10"``: patch, neighbours
    ``"liu2019"``, ``"balanced"``   feature distillation with a preset
    ``"table.json"``                feature distillation with a table's file
    ==============================  =====================================================

    Here ``"jpeg"`` is a real codec. For the preset table of that name, pass
    ``preset_table("jpeg:75")``.

    Args:
        spec: A name, a path, a ``QuantizationTable``, a ``FeatureDistillation`` layer or a
            ``Defence``, which is returned as it is and must have ``settings``: by them and its
            family, results are told apart and kept.
        background: Benign images ``(n, height, width, channels)``, pixels from 0 to 255, that
            quilting takes its patches from; ignored by other defences.
        seed: Seed of a random defence, and of quilting's choice of patches.

    Returns:
        The defence.

    Raises:
        ValueError: There is no such name, or a setting is out of range.
        TypeError: ``spec`` is of another type.

    Example:
        >>> [defence(name).name for name in ("jpeg:40", "slq:50,90", "tvm:0.3,0.01")]
        ['JPEG q40', 'SLQ 50/90', 'TVM p .3 weight .01']
    """
    if isinstance(spec, Defence):
        if not spec.settings and spec.family != "none":
            raise ValueError(
                "`spec` must be a Defence with `settings` that tell it from others of its family: "
                f"results are kept by them. Received: spec={spec.name!r} with settings={{}}"
            )
        return spec
    if isinstance(spec, (QuantizationTable, FeatureDistillation)):
        return distillation(spec)
    if not isinstance(spec, (str, os.PathLike)):
        raise TypeError(
            "`spec` must be a name, a path, a QuantizationTable, a FeatureDistillation layer "
            f"or a Defence. Received: spec={shown(spec)}"
        )
    text = os.fspath(spec)
    kind, _, rest = text.partition(":")
    if kind in _PARAMETERS:
        return _constructor(kind, background, seed)(*_arguments(text, kind, rest))
    if kind in PRESETS or os.path.exists(text):
        return distillation(text)
    raise ValueError(
        f"`spec` must be one of {', '.join(map(_usage, _PARAMETERS))}, a preset table "
        f"({', '.join(name for name in PRESETS if name not in _PARAMETERS)}) or an existing "
        f"JSON file of a table. Received: spec={shown(text)}"
    )


def uniquely_named(defences: Sequence[Defence], specs: Sequence[Any]) -> list[Defence]:
    """The defences under names that differ, so that no row of a report hides another.

    Those that share a name are told apart by the file that they are from, or else by a number.

    Args:
        defences: The defences.
        specs: What each was made of, as for ``defence``.

    Returns:
        The same defences in the same order.

    Example:
        >>> twice = [defence("liu2019"), defence("liu2019")]
        >>> [found.name for found in uniquely_named(twice, ["liu2019", "liu2019"])]
        ['liu2019', 'liu2019 (2)']
    """
    counts = Counter(found.name for found in defences)
    named: dict[str, Defence] = {}
    for found, spec in zip(defences, specs):
        path = isinstance(spec, (str, os.PathLike)) and os.path.isfile(spec)
        if counts[found.name] > 1 and path:
            found = dataclasses.replace(found, name=f"{found.name} ({Path(spec).stem})")
        found = numbered(found, named)
        named[found.name] = found
    return list(named.values())


def numbered(found: Defence, taken: Container[str]) -> Defence:
    """A defence under its name, or with the first number that makes it another than some.

    Args:
        found: The defence.
        taken: Names that others have.

    Example:
        >>> numbered(defence("jpeg:75"), ["JPEG q75"]).name
        'JPEG q75 (2)'
    """
    names = (f"{found.name} ({number})" for number in itertools.count(2))
    name = next(name for name in itertools.chain([found.name], names) if name not in taken)
    return found if name == found.name else dataclasses.replace(found, name=name)


def same_defence(first: Defence, second: Defence) -> bool:
    """Whether two defences do the same, whatever their names.

    Args:
        first: A defence.
        second: Another.

    Example:
        >>> same_defence(defence("jpeg:75"), defence("jpeg"))
        True
    """
    return (first.family, first.settings, first.seed) == (
        second.family,
        second.settings,
        second.seed,
    )


def _constructor(kind: str, background: Any, seed: int) -> Callable[..., Defence]:
    def quilting(*values: Any) -> Defence:
        if background is None:
            raise ValueError(
                "`background` must hold benign images: quilting is made of their patches. "
                "Received: background=None"
            )
        return image_quilting(background, *values, seed=seed)

    constructors: dict[str, Callable[..., Defence]] = {
        "none": no_defence,
        "jpeg": lambda quality=75, chroma="4:2:0": jpeg_compression(quality, subsampling=chroma),
        "bits": bit_depth,
        "median": median_smoothing,
        "slq": lambda *values: stochastic_local_quantisation(*([values] * bool(values)), seed=seed),
        "tvm": lambda *values: total_variation(*values, seed=seed),
        "quilting": quilting,
    }
    return constructors[kind]


def _arguments(text: str, kind: str, rest: str) -> list[Any]:
    values = [_value(part.strip()) for part in rest.split(",")] if rest else []
    names = _PARAMETERS[kind]
    mistyped = any(isinstance(value, str) and value.count(":") != 2 for value in values)
    if mistyped or (len(values) > len(names) and "..." not in names):
        raise ValueError(
            f"`spec` must be {_usage(kind)}, with numbers after the colon. "
            f"Received: spec={shown(text)}"
        )
    return values


def _value(text: str) -> int | float | str:
    """A number, or text such as "4:4:4"."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _usage(kind: str) -> str:
    names = ",".join(_PARAMETERS[kind])
    return f"{kind}[:{names}]" if names else kind
