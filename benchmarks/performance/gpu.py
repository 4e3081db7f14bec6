"""Time per image on a GPU beside a copy within its memory."""

import functools

import tensorflow as tf

from benchmarks.performance import cases as c


def measure(scale):
    """Rows as those of the baselines, if TensorFlow sees a GPU."""
    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        reason = "TensorFlow sees no GPU on this machine"
        return {"rows": [], "not_run": [{"what": "GPU", "reason": reason}]}
    details = tf.config.experimental.get_device_details(devices[0])
    # TensorFloat-32 would quantise the transform itself.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    with tf.device("/GPU:0"):
        images = c.random_images(scale.batch, scale.size)
        found = [
            *c.in_modes("device copy", lambda x: tf.raw_ops.DeepCopy(x=x), images, ("graph",)),
            *c.memory_pass(images),
            *c.in_modes(c.LAYER, c.built("liu2019"), images),
            *c.in_modes(c.GRADIENT, c.gradient_of(c.built("liu2019")), images),
        ]
        waiting = [
            c.Case(x.name, x.setting, functools.partial(_finished, x.run), x.shape) for x in found
        ]
        rows = c.measured(waiting, scale, device=details.get("device_name", "GPU"))
    return {"rows": rows, "not_run": []}


def _finished(run):
    run()
    tf.test.experimental.sync_devices()
