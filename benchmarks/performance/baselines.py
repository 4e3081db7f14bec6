"""The layer beside other implementations and defences, at the size of the goals."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf
from threadpoolctl import threadpool_limits

from benchmarks.performance import cases as c
from fd_keras._extras import import_extra
from fd_keras.evaluation.defences import image_quilting

QUICK, SLOW = "quick", "slow"

NOT_INSTALLED = [
    {
        "what": "kornia, DiffJPEG",
        "reason": "they need PyTorch, which no extra of this package installs",
    }
]


def measure(scale):
    """Rows of the layer and its quick baselines, and of slow baselines in turns with the layer."""
    images = c.random_images(scale.batch, scale.size)
    quick = [*_layers(images, scale), *_quick_baselines(images, scale)]
    # There are so many of them that one round takes seconds.
    longer = dataclasses.replace(scale, budget=4 * scale.budget)
    rows = c.measured(quick, longer, group=QUICK)
    slow, missing = _slow_baselines(images[:2])
    in_graph = c.in_modes(c.LAYER, c.built("liu2019"), images, ("graph",))
    rows += c.measured([*in_graph, *slow], scale, group=SLOW)
    return {"rows": rows, "not_run": NOT_INSTALLED + missing}


def _layers(images, scale):
    layer = c.built("liu2019")
    yield from c.memory_pass(images)
    yield from c.in_modes(c.LAYER, layer, images)
    yield from c.in_modes(c.SOFT, c.built("liu2019", quantizer="soft"), images)
    yield from c.in_modes(c.ONE_IMAGE, layer, images[:1])
    yield from c.in_modes(c.LARGE_IMAGE, layer, c.random_images(1, scale.large))
    yield from c.in_modes(c.GRADIENT, c.gradient_of(layer), images)
    yield from c.in_modes("layer and gradient", c.gradient_of(layer, True), images)
    smooth = c.built("liu2019", gradient="smooth")
    yield from c.in_modes("layer and smooth gradient", c.gradient_of(smooth, True), images)
    yield from c.in_modes(c.UNIT, c.built(value_range=(0, 1)), images / 255)
    soft = c.built("liu2019", quantizer="soft", value_range=(0, 1))
    yield from c.in_modes(c.UNIT_SOFT, soft, images / 255)
    for table, color in (("liu2019", "RGB"), ("jpeg", "YCbCr")):
        for spins in (1, 2, 4):
            if (color, spins) != ("RGB", 1):
                varied = c.built(table, cycle_spins=spins)
                yield from c.in_modes(c.grids_name(color, spins), varied, images, ("graph",))


def _quick_baselines(images, scale):
    yield from c.in_modes(c.SIGNAL, c.built(dct_method="signal"), images)
    for threads in scale.threads:
        yield c.libjpeg(images, threads)
    pixels = tf.constant(images)
    settings = {"map_fn": _mapped, "unrolled": _unrolled}
    graphs = {name: tf.function(run, autograph=False) for name, run in settings.items()}
    for setting, graph in graphs.items():
        run = functools.partial(graph, pixels)
        yield c.Case(c.ADJUST_QUALITY, setting, run, images.shape)
    one = images[:1]
    yield c.libjpeg(one, 1, c.one_of(c.LIBJPEG))
    run = functools.partial(graphs["unrolled"], pixels[:1])
    yield c.Case(c.one_of(c.ADJUST_QUALITY), "unrolled", run, one.shape)


def _recompressed(image):
    return tf.image.adjust_jpeg_quality(image, c.JPEG_QUALITY)


def _mapped(images):
    return tf.map_fn(_recompressed, images, parallel_iterations=32)


def _unrolled(images):
    return tf.stack([_recompressed(image) for image in tf.unstack(images)])


def _slow_baselines(images):
    """Baselines that take long for one image, and why some are missing."""
    floats, shape = np.float32(images), images.shape
    quilting = image_quilting(c.random_images(4, images.shape[1]), patches=10_000)
    found = [*_with_blas(c.QUILTING, lambda: quilting(floats), shape)]
    try:
        art = import_extra("art.defences.preprocessor", "evaluate")
    except ImportError as error:
        return found, [{"what": "ART's JpegCompression and TotalVarMin", "reason": str(error)}]
    jpeg = art.JpegCompression((0, 255), quality=c.JPEG_QUALITY)
    denoise = art.TotalVarMin(clip_values=(0, 1))
    found += [
        c.Case("ART JpegCompression", "default", lambda: jpeg(floats), shape),
        *_with_blas(c.TOTAL_VARIATION, lambda: denoise(floats[:1] / 255), (1, *shape[1:])),
    ]
    return found, []


def _with_blas(name, run, shape):
    """A function of NumPy with its threads, and with one: several slow small vectors down."""
    yield c.Case(name, "default", run, shape)

    def alone():
        with threadpool_limits(1, user_api="blas"):
            run()

    yield c.Case(name, "1 BLAS thread", alone, shape)
