"""Export a model as a version that TF Serving loads."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy.typing as npt

from fd_keras._checks import shown
from fd_keras._files import held
from fd_keras.detection import DistillationDetector, TamperDetector, ThresholdDetector
from fd_keras.export.archive import (
    Labels,
    export_details,
    versions,
    write_archive,
    write_extras,
    write_warmup,
)
from fd_keras.export.check import ExportCheck, report
from fd_keras.export.signatures import (
    BYTES,
    CERTIFY,
    DETECT,
    GREY_LEVELS,
    SERVING,
    ResizePolicy,
    bytes_endpoint,
    certify_endpoint,
    detect_endpoint,
    exportable,
    known_value_range,
    model_endpoints,
    png_files,
)
from fd_keras.export.verification import proof_batch, verify_detector, verify_export
from fd_keras.export.wrapping import wrapped_resources
from fd_keras.layer import FeatureDistillation

_WARMUP_IMAGES = 4

# Names of versions that are being written.
_LEFTOVERS = r"\.\d+\.[0-9a-f]{32}"


def export_saved_model(
    model: keras.Model | FeatureDistillation,
    directory: str | os.PathLike[str],
    *,
    version: int | None = None,
    detector: DistillationDetector | TamperDetector | None = None,
    labels: Labels | None = None,
    resize: ResizePolicy = "crop",
    warmup: bool = False,
    value_range: Sequence[float] | None = None,
    images: npt.ArrayLike | None = None,
    verify: bool = True,
    on_check: Callable[[ExportCheck], object] | None = None,
) -> Path:
    """Write a model as a SavedModel version that TF Serving picks up by itself, and prove it.

    The graph holds the whole model, distillation included: a server needs no Python, no
    custom op and no fd_keras. The version appears in one rename, and only after its proof, so that
    a server that polls ``directory`` never loads an incomplete or a wrong one.

    Signatures:

    * ``serving_default``: ``images``, a batch of any size in the model's value range, to
      ``predictions`` (or the names of a model with several outputs);
    * ``serving_bytes``: ``image_bytes``, the content of JPEG or PNG files, to the same; for models
      of one or three channels, channels last;
    * ``distill``: ``images`` to ``distilled``; for models that distil;
    * ``certify``: ``images`` to the same as ``serving_default``, with ``linf_radius`` and
      ``l2_radius`` of each image in grey levels, as ``fd_keras.certify`` computes them; for models
      that see their images through one layer alone, such as ``protect`` returns;
    * ``detect``: ``images`` to what ``detector`` returns.

    ``assets.extra`` holds ``fd_keras.json`` (value range, tables, labels, version of fd_keras),
    ``labels.txt`` and the warm-up requests.

    Args:
        model: A built Keras model with one input, such as ``protect`` returns; or a
            ``FeatureDistillation`` alone, to put in front of a model of another origin.
        directory: Base directory of the served model; made if missing. Its name is the model's.
        version: Version number. Default: one more than the highest in ``directory``.
        detector: Adds the signature ``detect``. A detector as ``model`` has it anyway.
        labels: Names of the classes, or a text file with one on each line.
        resize: What ``serving_bytes`` does to images of another size than the model's:
            ``"crop"`` keeps the aspect ratio and cuts out the centre, ``"stretch"`` does not.
        warmup: Whether to write requests that TF Serving replays before it serves the version.
        value_range: The pixel values of black and white of ``model``, which ``serving_bytes``
            needs. Default: those of the layer in it; without one, 0 and 255, with a warning unless
            ``model`` itself shows that it takes them.
        images: Images for the proof and the warm-up. Default: those of ``verify_export``.
        verify: Whether to run ``verify_export`` and to refuse a model that fails it.
        on_check: Called with the ``ExportCheck`` that ``verify_export`` returned, and with that of
            ``detect``.

    Returns:
        ``directory/<version>``.

    Raises:
        FileExistsError: The version exists already.
        OSError: There is no room for it.
        ValueError: An argument does not fit, ``model`` is not built, or another export writes to
            ``directory``.
        ImportError: ``warmup`` needs the extra ``export``.
        ExportProofError: The file does not compute what the model does; nothing was written.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> export_saved_model(model, tempfile.mkdtemp(), value_range=(0, 255)).name
        '1'
    """
    model = exportable(model)
    if detector is None and isinstance(model, ThresholdDetector):
        detector = model
    known = known_value_range(model, value_range)
    pixels = known or GREY_LEVELS
    endpoints = model_endpoints(model)
    if from_bytes := bytes_endpoint(model, resize, pixels):
        endpoints[BYTES] = from_bytes
        if known is None:
            warnings.warn(
                "`value_range` is unknown, since no layer of `model` tells it; `serving_bytes` "
                "will decode files to pixels from 0 to 255. Give value_range=(0, 255), or what "
                "the model takes",
                stacklevel=2,
            )
    if certified := certify_endpoint(model):
        endpoints[CERTIFY] = certified
    if detector is not None:
        endpoints[DETECT] = detect_endpoint(model, detector)
    details = export_details(model, labels, known, resize=resize if from_bytes else None)
    tracked = [model, *wrapped_resources(model)]
    if detector not in (None, model):
        tracked.append(detector)
    with new_version(directory, version) as (temporary, target):
        write_archive(tracked, endpoints, temporary)
        write_extras(temporary, details)
        if warmup:
            batch = proof_batch(model, images, known)
            requests = _warmup_requests(batch, pixels, with_files=BYTES in endpoints)
            write_warmup(temporary, target.parent.resolve().name, requests)
        if verify:
            report(verify_export(temporary, model, images), target, on_check)
            if detector not in (None, model):
                batch = proof_batch(detector, images, known)
                report(verify_detector(temporary, detector, batch), target, on_check)
    return target


def _warmup_requests(
    images: npt.NDArray[Any], value_range: tuple[float, float], *, with_files: bool
) -> Mapping[str, Mapping[str, npt.NDArray[Any]]]:
    shown = images[:_WARMUP_IMAGES]
    requests: dict[str, Mapping[str, npt.NDArray[Any]]] = {SERVING: {"images": shown}}
    if with_files:
        requests[BYTES] = {"image_bytes": png_files(shown, value_range)}
    return requests


@contextlib.contextmanager
def new_version(
    directory: str | os.PathLike[str], version: int | None
) -> Iterator[tuple[Path, Path]]:
    """Yield a temporary directory that becomes a version when the block succeeds.

    Args:
        directory: Base directory of the served model; made if missing.
        version: Version number. Default: one more than the highest in ``directory``.

    Raises:
        FileExistsError: The version exists already.
        ValueError: ``version`` is not a positive integer, or ``directory`` is a file or held by
            another export.

    Example:
        >>> import tempfile
        >>> with new_version(tempfile.mkdtemp(), None) as (temporary, target):
        ...     temporary.mkdir()
        >>> target.is_dir()
        True
    """
    base = Path(directory)
    if base.exists() and not base.is_dir():
        raise ValueError(f"`directory` must be a directory. Received: directory={base}")
    whole = isinstance(version, int) and not isinstance(version, bool)
    if version is not None and not (whole and version > 0):
        raise ValueError(
            f"`version` must be a positive integer. Received: version={shown(version)}"
        )
    with held(base, leftovers=_LEFTOVERS):
        if version is None:
            version = 1 + max((int(path.name) for path in versions(base)), default=0)
        target = base / str(version)
        if target.exists():
            raise FileExistsError(f"`version` exists already; choose another. Received: {target}")
        # Not a number: servers pass over it.
        temporary = base / f".{version}.{uuid.uuid4().hex}"
        try:
            yield temporary, target
            # Renaming onto a directory that somebody filled meanwhile fails, as it should.
            os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
