"""Select the images of an evaluation, and the best setting of a family of defences."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from rich.console import Console

from fd_keras._checks import callers_level, checked_labels, checked_whole, printable
from fd_keras.classifier import Classifier
from fd_keras.data.batches import described
from fd_keras.data.labelled import (
    LabelledBatch,
    LabelledImages,
    batches_with_labels,
    checked_classes,
)
from fd_keras.data.samples import Reservoir, spread_order
from fd_keras.data.sources import ImageSource
from fd_keras.evaluation.defences import Defence
from fd_keras.evaluation.sanity import CAUSES, check_clean_accuracy
from fd_keras.evaluation.workbench import AttackedImages, Workbench

# Typing alias: benign images and attacked ones.
ImageSets = tuple[AttackedImages, Sequence[AttackedImages]]


class ClassifierWarning(UserWarning):
    """Model, labels and value range may not fit each other.

    Example:
        >>> issubclass(ClassifierWarning, UserWarning)  # to be silenced, or made an error
        True
    """


@dataclass(frozen=True, eq=False, repr=False)
class Selected(LabelledImages):
    """The images of an evaluation, and how many of those that were read are right.

    Args:
        images: As for ``LabelledImages``.
        labels: As for ``LabelledImages``.
        value_range: As for ``LabelledImages``.
        indices: As for ``LabelledImages``.
        seen: Number of images that were read and classified.
        right: Number of them that the classifier gets right.
        order: How the images were taken, as reports say it.

    Example:
        >>> images = np.zeros((2, 1, 1, 1))
        >>> Selected(images, np.array([0, 1]), (0, 1), seen=4, right=3).clean_accuracy
        '3 of 4 images (75.0 %)'
    """

    right: int = 0
    order: str = ""

    @property
    def clean_accuracy(self) -> str:
        """Accuracy without a defence on all images that were read."""
        return f"{self.right} of {self.seen} images ({100 * self.right / self.seen:.1f} %)"


def select(
    classifier: Classifier,
    data: Any,
    *,
    max_images: int,
    batch_size: int,
    only_correct: bool = True,
    seed: int = 1,
) -> Selected:
    """Select a sample of images, by default of those that the classifier alone gets right.

    It is random and spread over the classes, and so are its first images, of any number. Images
    that are left out because they are classified wrongly are replaced by further ones as long as
    there are any.

    Args:
        classifier: The classifier without any defence.
        data: ``(images, labels)``, a ``tf.data.Dataset``, a ``PyDataset`` or an iterable of
            batches ``(images, labels)``; images in the classifier's value range, labels as
            integers. Where the labels are not known beforehand, everything is read and
            classified. Of ``LabelledImages``, a sample of the caller's own, the first ones are
            taken, in their order.
        max_images: Maximum number of images.
        batch_size: Number of images classified at once.
        only_correct: Whether to leave out images that are classified wrongly.
        seed: Of the sample.

    Returns:
        The images, with their indices in arrays, or else in the order in which they were read; and
        the number of images that were read.

    Raises:
        ValueError: Images, labels and classifier do not fit, no image is classified correctly, or
            ``data`` is a data set without end.
        TypeError: ``data`` is of another type.

    Warns:
        ClassifierWarning: The classifier is about as good as chance.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> images = np.array([[[[9], [0]]], [[[9], [0]]], [[[0], [9]]]])
        >>> data = images, np.array([1, 0, 1])
        >>> sorted(select(Classifier(model), data, max_images=9, batch_size=2).indices.tolist())
        [1, 2]
    """
    ordered = _in_order(classifier, data, batch_size, seed)
    wanted = checked_whole("max_images", max_images, 1)
    found: list[_Labelled] = []
    stream: Reservoir[_Labelled] = Reservoir(wanted, seed)
    seen = right = 0
    groups: set[int] = set()
    shape: tuple[int, ...] | None = None
    for batch, labels, indices in _indexed(data, batch_size) if ordered is None else ordered:
        shape = shape or batch.shape[1:]
        if batch.shape[1:] != shape:
            raise ValueError(
                "`data` must be images of one size, which are attacked and reported together. "
                f"Received: images of shapes {shape} and {batch.shape[1:]}"
            )
        correct = classifier.correct(batch, labels)
        seen, right = seen + len(batch), right + int(correct.sum())
        groups.update(labels.tolist())
        kept = correct if only_correct else np.ones(len(labels), bool)
        for position in np.flatnonzero(kept):
            # A view would keep the whole batch in memory.
            item = batch[position].copy(), labels[position], indices[position]
            if ordered is None:
                stream.add(item, int(labels[position]))
            elif len(found) < wanted:
                found.append(item)
        if ordered is not None and len(found) == wanted:
            break
    if seen == 0:
        raise ValueError(f"`data` holds no image. Received: data={described(data)}")
    if right == 0:
        raise ValueError(
            "`data` must hold images that `model` classifies correctly; it gets none of the "
            f"{seen} right. Check {CAUSES}. `value_range` is {classifier.value_range} here"
        )
    images, kept_labels, kept_indices = zip(*(stream.items() if ordered is None else found))
    given = isinstance(data, LabelledImages)
    selected = Selected(
        np.stack(images),
        np.array(kept_labels),
        classifier.value_range,
        np.array(kept_indices),
        seen,
        right,
        "in the order that was given" if given else _spread_over(len(groups), seed),
    )
    _warn_near_chance(classifier, selected)
    return selected


def say_clean_accuracy(classifier: Classifier, selected: Selected, console: Console | None) -> None:
    """Print what a user must see first: whether model, labels and value range fit at all.

    Args:
        classifier: The classifier alone.
        selected: What ``select`` returned.
        console: Where to print; ``None``: nowhere.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> images = np.zeros((2, 1, 2, 1))
        >>> selected = Selected(images, np.array([0, 1]), (0, 255), seen=2, right=1)
        >>> say_clean_accuracy(Classifier(model), selected, None)
    """
    if console is None:
        return
    low, high = classifier.value_range
    taken = f"{len(selected)} {'image' if len(selected) == 1 else 'images'}"
    for line in (
        f"Assumed: pixels from {low:g} to {high:g}; outputs are {classifier.assumption}",
        f"Clean accuracy on all images read: {selected.clean_accuracy}",
        f"Used: {taken}, {selected.order}",
    ):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


# Typing alias: an image, its label and its position in the data.
_Labelled = tuple[npt.NDArray[Any], np.integer, np.integer]
_IndexedBatch = tuple[npt.NDArray[Any], npt.NDArray[np.integer], npt.NDArray[np.integer]]


def _spread_over(groups: int, seed: int) -> str:
    over = f" spread over {groups} classes" if groups > 1 else ""
    return f"as a random sample{over} (seed {seed})"


def _in_order(
    classifier: Classifier, data: Any, batch_size: int, seed: int
) -> Iterator[_IndexedBatch] | None:
    """Batches whose first images are the sample; ``None`` where only reading all tells."""
    if isinstance(data, LabelledImages):
        if tuple(data.value_range) != classifier.value_range:
            raise ValueError(
                f"`data` must have the classifier's value range, {classifier.value_range}. "
                f"Received: LabelledImages of {data.value_range}"
            )
        batches = batches_with_labels((data.images, data.labels), batch_size)
        return _with_positions(batches, data.indices)
    if isinstance(data, ImageSource):
        if data.groups is None:
            return None
        sample = data.sampled(max(1, len(data.groups)), seed)
        return _with_positions(batches_with_labels(sample, batch_size), None)
    if isinstance(data, (tuple, list)) and len(data) == 2 and np.ndim(data[0]) == 4:
        images = np.asarray(data[0])
        labels = checked_classes(checked_labels(np.asarray(data[1]), len(images)))
        order = spread_order(labels, seed)
        starts = range(0, len(order), batch_size)
        parts = (order[start : start + batch_size] for start in starts)
        return ((images[part], labels[part], part) for part in parts)
    return None


def _indexed(data: Any, batch_size: int) -> Iterator[_IndexedBatch]:
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "`data` must have an end: it is read whole, for a sample of it. Take a part with "
            f"data.take(...). Received: data={described(data)} that repeats without end"
        )
    return _with_positions(batches_with_labels(data, batch_size), None)


def _with_positions(
    batches: Iterable[LabelledBatch], order: npt.NDArray[np.integer] | None
) -> Iterator[_IndexedBatch]:
    seen = 0
    for images, labels in batches:
        places = np.arange(seen, seen + len(labels))
        yield images, labels, places if order is None else order[places]
        seen += len(labels)


def _warn_near_chance(classifier: Classifier, selected: Selected) -> None:
    classes = classifier.logits(selected[:1].unit_images()).shape[1]
    check = check_clean_accuracy(selected.right, selected.seen, classes)
    if not check["passed"]:
        warnings.warn(str(check["detail"]), ClassifierWarning, stacklevel=callers_level())


def split(images: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Split images alternately into a validation and a test split.

    Args:
        images: At least two images.

    Returns:
        The images at even and at odd positions.

    Raises:
        ValueError: There are fewer than two images.

    Example:
        >>> images = LabelledImages(np.zeros((3, 1, 1, 1)), np.array([5, 6, 7]), (0, 1))
        >>> validation, test = split(images)
        >>> validation.labels, test.labels
        (array([5, 7]), array([6]))
    """
    if len(images) < 2:
        raise ValueError(
            "`data` must hold two images that `model` classifies correctly, one for the validation "
            f"split and one for the test split. Received: {len(images)}"
        )
    return images[::2], images[1::2]


def best_setting(
    candidates: Sequence[Defence],
    images_for: Callable[[Defence], ImageSets],
    workbench: Workbench,
) -> Defence:
    """Select the candidate with the best mean of benign and mean gray-box accuracy.

    Args:
        candidates: Settings of one family of defences.
        images_for: Returns the images of the validation split for a candidate: benign, and the
            same under gray-box attacks.
        workbench: Classifies them.

    Returns:
        The best candidate; the first of several.
    """
    sets = [images_for(candidate) for candidate in candidates]
    total = sum(len(part.images) for benign, attacked in sets for part in (benign, *attacked))
    with workbench.bar(f"Validating: {candidates[0].family}", total) as advance:

        def accuracy(images: AttackedImages, candidate: Defence) -> float:
            if not len(images.images):  # none is right once this candidate has encoded it
                return 0.0
            return float(workbench.correct(images, candidate, on_batch=advance).mean())

        def score(candidate: Defence, images: ImageSets) -> float:
            benign, attacked = images
            under_attack = [accuracy(part, candidate) for part in attacked]
            return accuracy(benign, candidate) + float(np.mean(under_attack))

        scores = [score(*pair) for pair in zip(candidates, sets)]
        return candidates[int(np.argmax(scores))]
