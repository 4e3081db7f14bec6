"""Differences between TensorFlow 2.15 with Keras 2 and later versions with Keras 3."""

from __future__ import annotations

import builtins
import json
import os
import re
import textwrap
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import h5py
import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

# Keras exports neither in both versions.
from keras.src.saving.serialization_lib import enable_unsafe_deserialization, in_safe_mode

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "fd_keras needs the TensorFlow backend of Keras: set KERAS_BACKEND=tensorflow before Keras "
        f"is imported. Received: the backend {keras.backend.backend()!r}"
    )

_KERAS_2 = keras.__version__.startswith("2.")


def add_float32_weight(layer: keras.layers.Layer, name: str, value: npt.NDArray[np.float64]) -> Any:
    """Add a non-trainable weight that stays float32 under mixed precision.

    Args:
        layer: The layer that owns the weight.
        name: Name of the weight.
        value: Initial value.

    Returns:
        The weight, a variable.

    Example:
        >>> tuple(add_float32_weight(keras.layers.Layer(), "steps", np.ones((1, 8, 8))).shape)
        (1, 8, 8)
    """
    autocast = "experimental_autocast" if _KERAS_2 else "autocast"
    return layer.add_weight(
        name=name,
        shape=value.shape,
        initializer=lambda shape, dtype=None, **kwargs: tf.constant(value, tf.float32),
        dtype="float32",
        trainable=False,
        **{autocast: False},
    )


def clip(values: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """``tf.clip_by_value`` that keeps NaN, also under XLA.

    In TensorFlow 2.15, XLA's clamp turns NaN into ``low``, which would turn a broken image into a
    black one. There, adding ``values - values`` restores NaN, at the cost of one more pass.

    Args:
        values: Floating-point tensor of any shape.
        low: Smallest value.
        high: Largest value.

    Returns:
        Tensor of the same shape.

    Example:
        >>> clip(tf.constant([-3.0, 300.0]), 0.0, 255.0).numpy().tolist()
        [0.0, 255.0]
    """
    clipped = tf.clip_by_value(values, low, high)
    return clipped + (values - values) if _KERAS_2 else clipped


def descend(optimizer: Any, tape: tf.GradientTape, loss: tf.Tensor, variables: Any) -> None:
    """Take one step of an optimiser, with its loss scaling if it has one (float16).

    Args:
        optimizer: A Keras optimiser.
        tape: The tape that recorded ``loss``; it has stopped recording.
        loss: Scalar.
        variables: Variables to update.

    Example:
        >>> variable = keras.layers.Layer().add_weight(shape=(), initializer="ones")
        >>> with tf.GradientTape() as tape:
        ...     loss = 2 * tf.convert_to_tensor(variable)
        >>> descend(keras.optimizers.SGD(0.25), tape, loss, [variable])
        >>> float(tf.convert_to_tensor(variable))
        0.5
    """
    if _KERAS_2:
        optimizer.minimize(loss, variables, tape=tape)
        return
    with tape:
        loss = optimizer.scale_loss(loss)
    gradients = tape.gradient(loss, variables)
    optimizer.apply_gradients(zip(gradients, variables))


def optimizer_variables(optimizer: Any, trainable: Sequence[Any]) -> list[Any]:
    """All variables of an optimiser, its learning rate and loss scale among them.

    Args:
        optimizer: A Keras optimiser; it is built if it was not.
        trainable: What it optimises.

    Example:
        >>> weight = keras.layers.Layer().add_weight(shape=(2,), initializer="ones")
        >>> found = optimizer_variables(keras.optimizers.SGD(momentum=0.9), [weight])
        >>> sorted(tuple(variable.shape) for variable in found)  # iterations, rate, momentum
        [(), (), (2,)]
    """
    if not _KERAS_2:
        if not optimizer.built:
            optimizer.build(trainable)
        return list(optimizer.variables)
    # Legacy optimisers, tensorflow-addons' among them, have another name for it.
    build = getattr(optimizer, "build", None) or optimizer._create_all_weights
    build(trainable)
    # `variables` leaves out the learning rate and the loss scale, children leave out slots.
    children = tf.train.TrackableView(optimizer).descendants()
    slots = getattr(optimizer, "weights", ())
    found = [child for child in children if isinstance(child, tf.Variable)]
    return list({id(variable): variable for variable in (*found, *slots)}.values())


def batches_of(optimizer: Any) -> Any:
    """The variable that counts the batches that an optimiser was given gradients of.

    With gradient accumulation, Keras 3's ``iterations`` counts the updates of the weights instead.

    Args:
        optimizer: A Keras optimiser.

    Example:
        >>> int(batches_of(keras.optimizers.Adam()))
        0
    """
    return getattr(optimizer, "_iterations", optimizer.iterations)


def seed_random_layers(model: keras.Model, seed: int) -> list[Any]:
    """Make what layers such as ``Dropout`` draw depend on a seed.

    Args:
        model: A built model.
        seed: The seed; each layer's own is drawn from it.

    Returns:
        The states of their generators, variables that no weights hold.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5)])
        >>> len(seed_random_layers(model, seed=1))
        1
    """
    if not _KERAS_2:
        weights = {id(weight) for weight in model.weights}
        states = [state for state in model.variables if id(state) not in weights]
        for state, number in zip(states, _seeds(seed, len(states))):
            state.assign([number, 0])
        return states
    generators = [
        layer._random_generator for layer in model.submodules if hasattr(layer, "_random_generator")
    ]
    for generator, number in zip(generators, _seeds(seed, len(generators))):
        # The default are TensorFlow 1's operations, whose state cannot be read.
        generator._rng_type, generator._seed, generator._built = "stateful", number, False
        generator._maybe_init()
    return [generator._generator.state for generator in generators]


def count_results_once(model: keras.Model) -> None:
    """Let ``fit`` and ``evaluate`` take a metric's result from one replica.

    Keras 2 adds up what the replicas return, although each returns the result of all of them,
    where a step does not return all metrics of the model.

    Args:
        model: A model that overrides ``train_step`` or ``test_step``.

    Example:
        >>> count_results_once(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
    """
    if _KERAS_2:
        model.distribute_reduction_method = "first"


def trains_on_several_machines() -> bool:
    """Whether Keras' ``fit`` works under ``tf.distribute.MultiWorkerMirroredStrategy``.

    Keras 3's does not, for any model: https://github.com/keras-team/keras/issues/20585.

    Example:
        >>> trains_on_several_machines() == keras.__version__.startswith("2.")
        True
    """
    return _KERAS_2


def stored_variables(variable: Any) -> tuple[Any, ...]:
    """The TensorFlow variables that hold a variable's value, one for each replica.

    Args:
        variable: A variable of Keras or TensorFlow.

    Example:
        >>> (stored,) = stored_variables(keras.layers.Layer().add_weight(shape=(2,)))
        >>> isinstance(stored, tf.Variable)
        True
    """
    held = variable if isinstance(variable, tf.Variable) else variable.value
    return tuple(tf.distribute.get_strategy().experimental_local_results(held))


def _seeds(seed: int, count: int) -> list[int]:
    return [int(n) >> 1 for n in np.random.SeedSequence(seed).generate_state(count)]


def graph_layers(model: keras.Model) -> list[Any]:
    """The layers that a functional or sequential model's graph runs, from the input to the output.

    There are none of a subclassed model.

    In Keras 2, ``model.layers`` also holds layers that are only attributes of the model.

    Args:
        model: Any Keras model.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> any(isinstance(layer, keras.layers.Dense) for layer in graph_layers(model))
        True
    """
    if not getattr(model, "inputs", None):
        return []
    by_depth = getattr(model, "_nodes_by_depth", {})
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    if not nodes:  # of Keras 3's Sequential
        return list(model.layers)
    return [getattr(node, "operation", None) or node.layer for node in nodes]


def tensors_around(model: keras.Model, layer: Any) -> tuple[Any, Any]:
    """What a layer takes and returns in the graph of a functional model.

    A layer that other models run, too, has other tensors there.

    Args:
        model: A functional model.
        layer: One of its ``graph_layers``.

    Example:
        >>> dense = keras.layers.Dense(3)
        >>> model = keras.Sequential([keras.Input((2,)), dense])
        >>> functional = keras.Model(model.inputs, model.outputs)
        >>> [tuple(tensor.shape) for tensor in tensors_around(functional, dense)]
        [(None, 2), (None, 3)]
    """
    nodes = [node for level in model._nodes_by_depth.values() for node in level]
    for node in nodes:
        if (getattr(node, "operation", None) or getattr(node, "layer", None)) is layer:
            pair = node.input_tensors, node.output_tensors
            before, after = (x[0] if isinstance(x, (list, tuple)) else x for x in pair)
            return before, after
    raise ValueError(f"`layer` must be a part of {model.name!r}. Received: layer={layer.name!r}")


# Layers that change neither what a number means nor, at inference, its value.
_PASSING = ("Reshape", "Flatten", "Identity", "Dropout")


def last_activation(tensor: Any) -> str | None:
    """The name of the activation that a symbolic output of a model comes out of.

    Args:
        tensor: One of ``model.outputs``.

    Returns:
        Such as ``"sigmoid"``, ``"softmax"`` or ``"linear"``; ``None`` where the graph does not
        tell, as of a subclassed model.

    Example:
        >>> head = keras.layers.Dense(1, activation="sigmoid")
        >>> last_activation(keras.Sequential([keras.Input((2,)), head]).outputs[0])
        'sigmoid'
    """
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        return None
    made_by, node_index, tensor_index = history
    if isinstance(made_by, keras.Model):
        inner = getattr(made_by, "outputs", None)
        return last_activation(inner[tensor_index]) if inner else None
    kind = type(made_by).__name__
    activation = getattr(made_by, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__).lower()
    if kind in _PASSING or (kind == "Activation" and name == "linear"):
        node = made_by._inbound_nodes[node_index]
        before = getattr(node, "keras_inputs", None) or node.input_tensors
        return last_activation(before[0])
    if activation is not None:
        return name
    # Functions of Keras 3 by their class, of TensorFlow by their name: `tf.math.sigmoid`.
    function = made_by.name.rpartition(".")[-1] if kind == "TFOpLambda" else kind.lower()
    found = re.fullmatch(r"(hard_?)?(sigmoid|softmax)(_\d+)?", function)
    return found[2] if found else None


# Where Keras names the cause of an error, which is the last, and where it begins to print the
# configuration of a whole model.
_CAUSE = re.compile("Exception encountered: |Error encountered during deserialization: ")
_CONFIGURATION = re.compile(r" *(Full object config:|(using )?config=\{)")

# Longer reasons than Keras' own end here, after a whole word.
_LONGEST_REASON = 1000


def reason_of(error: BaseException) -> str:
    r"""What an error of Keras says, on one line and without the configurations that it prints.

    Args:
        error: Any exception.

    Example:
        >>> reason_of(ValueError("Unknown layer 'A'. \n\nFull object config: {'name': 'a'}"))
        "Unknown layer 'A'."
    """
    text = " ".join(str(error).split()) or type(error).__name__
    text = _CONFIGURATION.split(_CAUSE.split(text)[-1])[0]
    return textwrap.shorten(text, _LONGEST_REASON, placeholder=" ...")


class ModelCodeError(ValueError):
    """A saved model holds or names Python code, and was not loaded."""


# Layers whose files hold Python's bytecode or pickles, or lead to other files that run.
_CODE = ("Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer")
# Operations of TensorFlow that Keras 2 finds by their names. Others read and write files, and
# load libraries.
_OPERATIONS = re.compile(
    "(math|nn|image|linalg|signal|__operators__|bitwise|dtypes|compat.v1.(nn|image|math))[.].*|"
    "(?!load|py_|numpy_func|print|function|init_scope)[a-z_0-9]+"
)
_OURS = ("keras", "fd_keras", "builtins")
# Bytes of a configuration; an archive of little more than nothing can hold more.
_LONGEST_CONFIGURATION = 1 << 28


def load_model_file(path: str | os.PathLike[str], modules: Iterable[str] = ()) -> keras.Model:
    """Load a ``.keras`` or ``.h5`` file, and run no Python code that it holds or names.

    Keras 2 runs the code of an ``.h5`` file whatever its safe mode, and calls functions of any
    module that a ``.keras`` file names. ``allow_code`` lets both versions run such code.

    Args:
        path: The file.
        modules: Modules whose classes and functions may be used though they are not registered.

    Raises:
        ModelCodeError: It holds Python code, or names functions of other modules.
        Exception: Keras cannot load it, for any other reason.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "model.keras")
        >>> keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]).save(path)
        >>> load_model_file(path).output_shape
        (None, 3)
    """
    trusted = code_is_allowed()
    if not trusted:
        for config in _configurations(path):
            _refuse_code(config, [module.partition(".")[0] for module in modules])
    return keras.models.load_model(path, compile=False, safe_mode=not trusted)


def allow_code() -> None:
    """Let this process run Python code that models hold, also where they are cloned.

    Example:
        >>> callable(allow_code)  # for good: Keras has no way back
        True
    """
    enable_unsafe_deserialization()


def code_is_allowed() -> bool:
    """Whether this thread may run Python code that models hold.

    Example:
        >>> code_is_allowed()
        False
    """
    return in_safe_mode() is False


def _configurations(path: str | os.PathLike[str]) -> Iterator[Any]:
    """What Keras builds a model from: of an archive, an HDF5 file, or one that is both."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "config.json" in archive.namelist():
                size = archive.getinfo("config.json").file_size
                if size > _LONGEST_CONFIGURATION:
                    raise ValueError(f"its configuration has {size} bytes")
                yield json.loads(archive.read("config.json"))
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
        if isinstance(text, (str, bytes)):
            yield json.loads(text)


def _refuse_code(config: Any, modules: Sequence[str]) -> None:
    """Refuse a configuration that brings code, but for that of the given top-level modules."""
    waiting = [config]  # no recursion: files may be nested deeper than Python's stack
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, list):
            waiting += entry
        elif isinstance(entry, dict):
            waiting += entry.values()
            if isinstance(entry.get("class_name"), str):
                _check_class(entry, modules)


def _check_class(entry: dict[str, Any], modules: Sequence[str]) -> None:
    """Refuse one object of a configuration that is, holds or finds code that is not Keras' own."""
    kind = entry["class_name"]
    within = entry.get("config")
    if kind.rpartition(".")[-1].rpartition(">")[-1] in _CODE:
        name = within.get("name") if isinstance(within, dict) else None
        raise ModelCodeError(
            f"it holds a {kind.strip('_')}" + (f" layer named {name!r}." if name else ".")
        )
    if kind == "TFOpLambda":
        function = within.get("function") if isinstance(within, dict) else None
        if not isinstance(function, str) or not _OPERATIONS.fullmatch(function):
            raise ModelCodeError(f"it calls the operation {function!r} of TensorFlow.")
    module = entry.get("module")
    if not isinstance(module, str) or module.partition(".")[0] in modules:
        return
    name = within if kind == "function" else kind
    registered = entry.get("registered_name")
    known = [key for key in (registered, name) if isinstance(key, str)]
    if any(keras.saving.get_registered_object(key) is not None for key in known):
        return
    if module.partition(".")[0] not in _OURS:
        raise ModelCodeError(
            f"could not locate {name!r} of the module {module!r}: it is not decorated with "
            "@keras.saving.register_keras_serializable(), or was not imported."
        )
    if kind == "function" and (
        (module == "builtins" and hasattr(builtins, str(name)))
        or re.match("keras[.](src|utils|saving|models|config)", module)
    ):
        raise ModelCodeError(f"it calls the function {name!r} of the module {module!r}.")
