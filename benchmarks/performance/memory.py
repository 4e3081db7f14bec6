"""Peak memory of a call, beyond the process with its input."""

import ctypes
import gc
import platform
from pathlib import Path

from benchmarks.performance import cases as c


def measure(scale):
    """Rows: the peak beyond the input, output included, in bytes and as a multiple of the input."""
    if platform.system() != "Linux":
        reason = "the peak of one call is read from Linux' /proc"
        return {"rows": [], "not_run": [{"what": "peak memory", "reason": reason}]}
    images = c.random_images(scale.batch, scale.size)
    size = 4 * images.size
    rows = []
    for case in _cases(images):
        case.run()  # compile
        rows.append(
            {
                "name": case.name,
                "setting": case.setting,
                "bytes": (extra := _peak_beyond(case.run)),
                "times_the_input": extra / size,
            }
        )
    return {"rows": rows, "not_run": []}


def _cases(images):
    layer = c.built("liu2019")
    yield from c.memory_pass(images)
    yield from c.in_modes(c.LAYER, layer, images)
    yield from c.in_modes("layer and gradient", c.gradient_of(layer, True), images, ("graph",))
    yield from c.in_modes(c.grids_name("RGB", 4), c.built(cycle_spins=4), images, ("graph",))
    yield from c.in_modes(c.SIGNAL, c.built(dct_method="signal"), images, ("graph",))


def _peak_beyond(run):
    """Peak resident bytes of a run, beyond those before."""
    gc.collect()
    # Memory that earlier calls left would hide what this one takes. (For the same reason, the
    # worker has oneDNN use the system's allocator: its own returns nothing.)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from now
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(field))
    return 1024 * int(kilobytes)
