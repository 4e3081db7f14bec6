"""Run attacks with the libraries that have them: ART, Foolbox, and TensorFlow for CW-Linf."""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import shown
from fd_keras._extras import import_extra
from fd_keras.evaluation.classifiers import LogOdds
from fd_keras.evaluation.descent import CarliniLinf, SignedSteps

FloatArray = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]

# Typing alias: attacks a batch of images with their true classes.
Runner = Callable[[FloatArray, Labels], FloatArray]

_ART_CLASSES = {
    "FGSM": "FastGradientMethod",
    "BIM": "BasicIterativeMethod",
    "PGD": "ProjectedGradientDescent",
    "Half-step": "ProjectedGradientDescent",
    "Square": "SquareAttack",
    "AutoAttack": "AutoAttack",
}
_FOOLBOX_CLASSES = {"DeepFool": "L2DeepFoolAttack", "CW-L2": "L2CarliniWagnerAttack"}
_OWN = ("CW-Linf",)
ITERATED = ("BIM", "PGD", "Half-step")
FAMILIES = ("FGSM", "BIM", "PGD", "Half-step", *_FOOLBOX_CLASSES, *_OWN, "Square", "AutoAttack")
TARGETS = ("next", "least likely")

_VERBOSE = ("BIM", "PGD", "Half-step", "Square")  # these take `verbose`, True by default
_IN_PIXELS = ("eps", "eps_step")

# APGD on the difference of logits ratio (DLR) compares the first with the third logit.
_DLR = "difference_logits_ratio"


def library(family: str) -> str | None:
    """Name of the package that an attack comes from; ``None`` where it is our own.

    Args:
        family: One of ``FAMILIES``.

    Example:
        >>> library("DeepFool"), library("PGD"), library("CW-Linf")
        ('foolbox', 'art', None)
    """
    if family in _FOOLBOX_CLASSES:
        return "foolbox"
    return None if family in _OWN else "art"


def import_libraries(families: set[str]) -> None:
    """Import what attacks need, and what ART imports itself only when an attack has begun.

    Args:
        families: Families of the attacks that are to be made.

    Raises:
        ImportError: A package is not installed; the message says how to install it.

    Example:
        >>> import_libraries({"FGSM", "DeepFool"})
    """
    for module in ("art.attacks.evasion", "foolbox"):
        import_extra(module, "evaluate")
    if "AutoAttack" in families:
        import_extra("multiprocess", "evaluate")


def runner(
    family: str,
    parameters: Mapping[str, Any],
    classifier: Any,
    *,
    batch_size: int,
    until_wrong: bool = False,
) -> Runner:
    """Make the function that attacks one batch after the other.

    Args:
        family: One of ``FAMILIES``.
        parameters: As ``Attack`` has them, for pixels from 0 to 1.
        classifier: What ``art_classifier`` returns.
        batch_size: Largest number of images of a batch.
        until_wrong: Whether BIM, PGD and half-step leave an image once it is misclassified.

    Returns:
        Function of float32 images in the classifier's value range and their true classes that
        returns the attacked images.

    Raises:
        ImportError: A package is not installed.

    Example:
        >>> from fd_keras.evaluation import art_classifier
        >>> classifier = art_classifier(lambda x: tf.reshape(x, (-1, 2)), input_shape=(1, 2, 1))
        >>> attack = runner("FGSM", {"eps": 8 / 255}, classifier, batch_size=1)
        >>> attack(np.array([[[[100.0], [90.0]]]], np.float32), np.array([0])).ravel().round(3)
        array([92., 98.], dtype=float32)
    """
    import_libraries({family})
    if family in _ART_CLASSES and not (until_wrong and family in ITERATED):
        return _art_attack(family, parameters, classifier, batch_size).generate
    # Norms and step sizes of the others are those of pixels from 0 to 1, in any value range.
    return _in_range(_on_unit_pixels(family, parameters, classifier), classifier)


def _in_range(attack: Callable[[tf.Tensor, Labels], FloatArray], classifier: Any) -> Runner:
    """An attack on pixels from 0 to 1 as one on those of a classifier's value range."""
    low, high = classifier.clip_values.tolist()

    def run(images: FloatArray, labels: Labels) -> FloatArray:
        unit = np.clip((images - low) / (high - low), 0, 1).astype(np.float32)
        attacked = attack(tf.constant(unit), labels)
        # Where it found nothing, and in pixels that it left, the image stays as it is to the bit.
        return np.asarray(np.where(attacked == unit, images, low + (high - low) * attacked))

    return run


def targets(target: str, logits: npt.NDArray[np.floating], labels: Labels) -> npt.NDArray[np.int64]:
    """The class that a targeted attack aims at, for each image.

    Args:
        target: ``"next"``: the class after the true one, the first after the last. ``"least
            likely"``: that of the smallest logit of the benign image.
        logits: Logits of the benign images ``(n, classes)``.
        labels: True classes ``(n,)``.

    Raises:
        ValueError: There is no such target.

    Example:
        >>> targets("next", np.zeros((2, 3)), np.array([0, 2]))
        array([1, 0])
        >>> targets("least likely", np.array([[4.0, -1.0, 2.0]]), np.array([0]))
        array([1])
    """
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {TARGETS}. Received: target={shown(target)}")
    logits = np.asarray(logits)
    if target == "next":
        return np.asarray((labels + 1) % logits.shape[1], np.int64)
    return np.asarray(logits.argmin(axis=1), np.int64)


def _on_unit_pixels(
    family: str, parameters: Mapping[str, Any], classifier: Any
) -> Callable[[tf.Tensor, Labels], FloatArray]:
    """An attack on pixels from 0 to 1; it returns images that it cannot attack as they are."""
    arguments = dict(parameters)
    target = arguments.pop("target", None)
    logits = _unit_logits(classifier)
    if family in ITERATED:
        steps = _made_once(classifier, "signed steps", lambda: SignedSteps(logits))
        return functools.partial(steps, **arguments)
    if family == "CW-Linf":
        key = family, *sorted(arguments.items())
        search = _made_once(classifier, key, lambda: CarliniLinf(logits, **arguments))
        return lambda images, labels: search(images, targets(target, logits(images), labels))
    return _foolbox_attack(_FOOLBOX_CLASSES[family], arguments, logits, target)


def _made_once(classifier: Any, key: Hashable, make: Callable[[], Any]) -> Any:
    """What ``make`` returns, kept with ART's classifier: its graphs take longer than small models.

    An attack is made anew for every batch of images.
    """
    made = vars(classifier).setdefault("_fd_keras_made", {})
    if key not in made:
        made[key] = make()
    return made[key]


def _foolbox_attack(
    name: str,
    arguments: Mapping[str, Any],
    logits: Callable[[tf.Tensor], tf.Tensor],
    target: str | None = None,
) -> Callable[[tf.Tensor, Labels], FloatArray]:
    foolbox = import_extra("foolbox", "evaluate")
    model = foolbox.TensorFlowModel(logits, bounds=(0, 1), device="")
    attack = getattr(foolbox.attacks, name)(**arguments)

    def run(images: tf.Tensor, labels: Labels) -> FloatArray:
        if target is None:
            criterion = foolbox.criteria.Misclassification(tf.constant(labels, tf.int64))
        else:
            aims = targets(target, logits(images), labels)
            criterion = foolbox.criteria.TargetedMisclassification(tf.constant(aims))
        attacked = attack.run(model, images, criterion).numpy()
        # Foolbox's CW returns a black image where it found nothing; what it found is never quite
        # black, because it maps the range to slightly less than -1 to 1.
        found = attacked.any(axis=(1, 2, 3), keepdims=True)
        return np.asarray(np.where(found, attacked, images.numpy()))

    return run


def _unit_logits(classifier: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """The logits of pixels from 0 to 1."""
    low, high = classifier.clip_values.tolist()

    def make() -> Any:
        return tf.function(
            lambda x: classifier.model(low + (high - low) * x), reduce_retracing=True
        )

    return _made_once(classifier, "unit logits", make)


def _art_attack(
    family: str, parameters: Mapping[str, Any], classifier: Any, batch_size: int
) -> Any:
    low, high = classifier.clip_values.tolist()
    arguments = {
        name: value * (high - low) if name in _IN_PIXELS else value
        for name, value in parameters.items()
    }
    if family in _VERBOSE:
        arguments["verbose"] = False
    dlr, classes = arguments.pop("dlr", True), arguments.pop("targets", 0)
    boundary = arguments.pop("boundary", None)
    attacks = import_extra("art.attacks.evasion", "evaluate")
    estimator = remembering(classifier) if family == "Square" else classifier
    attack = getattr(attacks, _ART_CLASSES[family])(estimator, batch_size=batch_size, **arguments)
    if family == "AutoAttack":
        parts = [part for part in attack.attacks if dlr or getattr(part, "loss_type", None) != _DLR]
        for part in parts:
            once = {"nb_random_init", "nb_restarts"} & set(vars(part))
            # Unless told not to, each would draw bars for every batch.
            part.set_params(verbose=False, **dict.fromkeys(once, 1))
            if isinstance(part, attacks.SquareAttack):
                part._estimator = remembering(classifier)
        attack.attacks = [
            Ascent(part, classifier, classes if part.loss_type == _DLR else None)
            if isinstance(part, attacks.AutoProjectedGradientDescent)
            else part
            for part in parts
        ]
        if boundary is not None:  # it is missing from attacks that earlier versions described
            (deepfool,) = (n for n, p in enumerate(parts) if type(p) is attacks.DeepFool)
            attack.attacks[deepfool] = NearestBoundary(boundary, classifier, batch_size)
    return attack


def remembering(classifier: Any) -> Any:
    """ART's classifier, with the outputs of the images that it was last asked for.

    ART's Square asks three times for most images of a query: whether they are still right, for
    their loss, and for the loss of what it tries, which is asked for again in the next query.

    Args:
        classifier: ART's classifier; it is not changed.

    Returns:
        A shallow copy, with a ``predict`` that remembers the images of its last four calls.

    Example:
        >>> from fd_keras.evaluation import art_classifier
        >>> classifier = art_classifier(lambda x: tf.reshape(x, (-1, 2)), input_shape=(1, 2, 1))
        >>> image = np.ones((1, 1, 2, 1), np.float32)
        >>> bool((remembering(classifier).predict(image) == classifier.predict(image)).all())
        True
    """
    calls: deque[dict[bytes, FloatArray]] = deque(maxlen=4)

    def predict(x: FloatArray, batch_size: int = 128, **kwargs: Any) -> FloatArray:
        def outputs(rows: list[int]) -> FloatArray:
            return np.asarray(classifier.predict(x[rows], batch_size=batch_size, **kwargs))

        return np.stack(_recalled(calls, x, outputs))

    remembered = copy.copy(classifier)
    remembered.predict = predict
    return remembered


class NearestBoundary:
    """One of Foolbox's DeepFool attacks, as a part of ART's AutoAttack.

    ART's own minimises the L2 norm, so that few of its results lie within an L-inf bound, and
    takes the gradient of one class after the other in Python.

    Args:
        name: Foolbox's name of the attack.
        classifier: ART's classifier.
        batch_size: Number of images that are attacked at once.
    """

    targeted = False

    def __init__(self, name: str, classifier: Any, batch_size: int) -> None:
        self.name = name
        self._run = _in_range(_foolbox_attack(name, {}, _unit_logits(classifier)), classifier)
        self._batch_size = batch_size

    def generate(self, x: FloatArray, y: npt.NDArray[np.floating], **_: Any) -> FloatArray:
        """Attack images with one-hot labels."""
        labels = y.argmax(axis=1)
        starts = range(0, len(x), self._batch_size)
        parts = [slice(start, start + self._batch_size) for start in starts]
        return np.concatenate([self._run(x[part], labels[part]) for part in parts])


class Ascent:
    """ART's APGD as the standard AutoAttack runs it.

    An image that was misclassified at any step counts, not only where the last step is; ART looks
    at that alone. DLR is aimed at the likeliest wrong classes, one after the other, with Croce &
    Hein's formula; ART's own ``targeted`` would aim every part of AutoAttack at every class.

    Args:
        part: ART's attack.
        classifier: ART's classifier.
        aims: Number of wrong classes that DLR is aimed at; ``None``: untargeted, on the log odds
            of the wrong classes, which rank images as cross-entropy does.
    """

    targeted = False  # as AutoAttack sees it: any wrong class counts

    def __init__(self, part: Any, classifier: Any, aims: int | None) -> None:
        self.part = part
        self.aims = aims
        self._classifier = classifier
        self._estimator = OnePass(classifier, _log_odds if aims is None else _targeted_dlr)
        part._estimator = self._estimator

    def generate(self, x: FloatArray, y: npt.NDArray[np.floating], **_: Any) -> FloatArray:
        """Attack images with one-hot labels, each until it is misclassified."""
        result, standing = np.array(x), np.arange(len(x))
        for goal in [y] if self.aims is None else self._goals(x, y):
            parts = range(0, len(standing), self.part.batch_size)
            for rows in [standing[start : start + self.part.batch_size] for start in parts]:
                self._estimator.start(goal[rows])
                self.part.generate(x=x[rows], y=goal[rows])
                for row, image in self._estimator.fooled.items():
                    result[rows[row]] = image
            classes = self._classifier.predict(result[standing]).argmax(axis=1)
            standing = standing[classes == y[standing].argmax(axis=1)]
            if not len(standing):
                break
        return result

    def _goals(self, x: FloatArray, y: npt.NDArray[np.floating]) -> list[npt.NDArray[np.floating]]:
        """For one wrong class after the other, labels with a 1 at the true and -1 at that class."""
        labels, count = y.argmax(axis=1), y.shape[1]
        ranked = np.argsort(-self._classifier.predict(x), axis=1)
        wrong = ranked[ranked != labels[:, np.newaxis]].reshape(len(x), count - 1)
        return [y - np.eye(count, dtype=y.dtype)[aims] for aims in wrong.T[: self.aims]]


class OnePass:
    """ART's classifier for APGD, with a loss and its gradient from one pass through the model.

    At every step, ART's APGD asks for the loss of where it went and then for the gradient there,
    which takes a second pass, and its DLR takes one image after the other in Python.

    Args:
        classifier: ART's classifier.
        loss: Function of labels and logits, both ``(batch, classes)``, that returns ``(batch,)``.

    Attributes:
        fooled: Images that were misclassified, by their row in the batch.
    """

    def __init__(self, classifier: Any, loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> None:
        def losses_and_gradients(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                logits = classifier.model(images)
                losses = loss(labels, logits)
            return losses, tape.gradient(losses, images), tf.argmax(logits, axis=1)

        self._classifier = classifier
        self._graph = _made_once(
            classifier, loss, lambda: tf.function(losses_and_gradients, reduce_retracing=True)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._classifier, name)

    def start(self, labels: npt.NDArray[Any]) -> None:
        """Forget earlier images; ``labels`` are those of the next batch."""
        self._labels = labels
        self.fooled: dict[int, FloatArray] = {}
        self._passes: deque[dict[bytes, Any]] = deque(maxlen=3)

    def predict(self, x: FloatArray, **_: Any) -> npt.NDArray[Any]:
        """The labels: ART would leave out images that are misclassified, and there are none."""
        return self._labels

    def compute_loss(self, x: FloatArray, y: npt.NDArray[Any], reduction: str = "none") -> Any:
        """Loss of each image, which ART asks for with ``reduction="none"`` alone."""
        found = self._asked(x, y)
        for row, (_, _, label) in enumerate(found):
            if label != y[row].argmax():
                self.fooled.setdefault(row, x[row].copy())
        return np.array([loss for loss, _, _ in found])

    def loss_gradient(self, x: FloatArray, y: npt.NDArray[Any]) -> FloatArray:
        """Gradient of each image's own loss."""
        return np.stack([gradient for _, gradient, _ in self._asked(x, y)])

    def _asked(self, x: FloatArray, y: npt.NDArray[Any]) -> list[Any]:
        """Loss, gradient and class of each image, as they are remembered or computed."""

        def passed(rows: list[int]) -> Iterable[Any]:
            outputs = self._graph(tf.constant(x[rows], tf.float32), tf.constant(y[rows]))
            return zip(*(part.numpy() for part in outputs))

        return _recalled(self._passes, x, passed)


def _recalled(
    calls: deque[dict[bytes, Any]], x: FloatArray, compute: Callable[[list[int]], Iterable[Any]]
) -> list[Any]:
    """What earlier calls or ``compute``, which takes the other rows, found for each image."""
    keys = [image.tobytes() for image in x]
    known = {key: call[key] for call in calls for key in keys if key in call}
    new = [row for row, key in enumerate(keys) if key not in known]
    if new:
        known.update(zip((keys[row] for row in new), compute(new)))
    calls.append(known)
    return [known[key] for key in keys]


def _log_odds(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return LogOdds().call(tf.argmax(labels, axis=1), logits)


def _targeted_dlr(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Targeted DLR of labels with a 1 at the true class and -1 at the target.

    References:
        Croce & Hein, ICML 2020, eq. 7; with three classes, the third logit stands for the mean of
        the third and fourth.
    """
    highest = tf.math.top_k(logits, min(4, logits.shape[-1])).values
    scale = highest[:, 0] - tf.reduce_mean(highest[:, 2:], axis=1)
    lead = tf.reduce_sum(tf.cast(labels, logits.dtype) * logits, axis=1)
    return -lead / (scale + 1e-12)
