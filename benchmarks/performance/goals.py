"""The goals for speed and memory, compared with the results."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.performance import cases as c
from benchmarks.performance.baselines import QUICK, SLOW
from benchmarks.performance.kernel import roofline
from benchmarks.performance.startup import HELP, IMPORT, REFUSAL
from benchmarks.performance.tflite import ALONE, SOFT_ALONE

# How much dearer than an RGB pass a YCbCr pass or a grid may be.
_GRIDS_ALLOWANCE = 1.15
# How much dearer a pixel of one large image may be than one of a batch of small images.
_LINEAR_ALLOWANCE = 1.2


@dataclass(frozen=True)
class Goal:
    """A measured quantity and its limit.

    Args:
        text: Name of the quantity.
        limit: Its limit.
        least: Whether the limit is a lower bound; otherwise an upper one.
        figure: Function of the parts' results that returns the quantity, or raises
            ``LookupError`` where it was not measured.
        part: Name of the part that measures it.
    """

    text: str
    limit: float
    least: bool
    figure: Callable
    part: str

    def judged(self, parts):
        """The goal with its figure, and whether it holds; ``None``: not measured."""
        try:
            figure = float(f"{self.figure(parts):.3g}")  # judged as it is shown
        except LookupError:
            figure = holds = None
        else:
            holds = figure >= self.limit if self.least else figure <= self.limit
        return {
            "goal": self.text,
            "limit": f"{'>=' if self.least else '<='} {self.limit:g}",
            "figure": figure,
            "holds": holds,
            "part": self.part,
        }


def judged(parts):
    """Every goal with its figure, given the results of the parts by their names."""
    return [goal.judged(parts) for goal in GOALS]


def _rows(parts, part, **wanted):
    """Rows with these entries, by default with most threads; ``LookupError`` without any."""
    rows = parts[part]["rows"]
    most = max((row["threads"] for row in rows), default=None)
    wanted = {"threads": most, **wanted}
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if not found:
        raise LookupError(wanted)
    return found


def _milliseconds(parts, name, group=QUICK, unit="ms_per_image", **wanted):
    """Time in the fastest setting."""
    return min(row[unit] for row in _rows(parts, "baselines", name=name, group=group, **wanted))


def _layer(parts, group=QUICK, unit="ms_per_image"):
    """Time of the layer in a graph, as models run it."""
    return _milliseconds(parts, c.LAYER, group, unit, setting="graph")


def _times_the_layer(name, group=QUICK):
    return lambda parts: _milliseconds(parts, name, group) / _layer(parts, group)


def _in_graph(name):
    return lambda parts: _milliseconds(parts, name, setting="graph") / _layer(parts)


def _unit_soft(parts):
    times = [_milliseconds(parts, name, setting="graph") for name in (c.UNIT_SOFT, c.UNIT)]
    return times[0] / times[1]


def _with_one_image(name):
    """A baseline's time for one image, in the layer's, both in their best setting."""

    def ratio(parts):
        return _milliseconds(parts, c.one_of(name)) / _milliseconds(parts, c.ONE_IMAGE)

    return ratio


def _floors(parts):
    """The layer's time in that of what its kernels cannot do without, most threads."""
    floors = roofline(parts["kernel"]["rows"])
    if not floors:
        raise LookupError("kernel")
    return floors[-1]["layer, ms"] / floors[-1]["floor of these kernels, ms"]


def _linearity(parts):
    unit = "ns_per_pixel"
    large = _milliseconds(parts, c.LARGE_IMAGE, unit=unit, setting="graph")
    return large / _layer(parts, unit=unit)


def _grids(parts):
    """Cost of the dearest colour space and number of grids, per grid."""
    pairs = [("RGB", 2), ("RGB", 4), ("YCbCr", 1), ("YCbCr", 2), ("YCbCr", 4)]
    costs = [_milliseconds(parts, c.grids_name(*pair)) / pair[1] for pair in pairs]
    return max(costs) / _layer(parts)


def _memory(parts):
    return _rows(parts, "memory", name=c.LAYER, setting="graph")[0]["times_the_input"]


def _share(body):
    return lambda parts: 100 * _rows(parts, "tflite", body=body)[0]["share"]


def _soft_share(parts):
    times = _rows(parts, "tflite", body="float32")[0]["milliseconds"]
    return times[SOFT_ALONE] / times[ALONE]


def _seconds(name):
    return lambda parts: _rows(parts, "startup", name=name)[0]["seconds"]


def _outside(step):
    return lambda parts: 100 * _rows(parts, "pipeline", step=step)[0]["outside"]


# What the layer has to be faster than, in a batch and with one image.
_CODECS = (
    ("libjpeg's round trip", c.LIBJPEG),
    ("tf.image.adjust_jpeg_quality", c.ADJUST_QUALITY),
)

GOALS = [
    *(
        Goal(f"times faster than {text}", 1, True, _times_the_layer(name), "baselines")
        for text, name in _CODECS
    ),
    *(
        Goal(f"times faster than {text}, one image", 1, True, _with_one_image(name), "baselines")
        for text, name in _CODECS
    ),
    *(
        Goal(f"times faster than {text}", 259, True, _times_the_layer(name, SLOW), "baselines")
        for text, name in (
            ("image quilting", c.QUILTING),
            ("total variation minimisation", c.TOTAL_VARIATION),
        )
    ),
    Goal("time of its matrix products and one memory pass", 1.25, False, _floors, "kernel"),
    Goal("gradient, in forward passes", 1.2, False, _in_graph(c.GRADIENT), "baselines"),
    Goal(
        "time per pixel of one large image, in those of a batch",
        _LINEAR_ALLOWANCE,
        False,
        _linearity,
        "baselines",
    ),
    Goal("YCbCr and grids, in RGB passes per grid", _GRIDS_ALLOWANCE, False, _grids, "baselines"),
    Goal(
        "time of soft thresholding, in that of rounding", 1, False, _in_graph(c.SOFT), "baselines"
    ),
    Goal("the same, pixels from 0 to 1", 1, False, _unit_soft, "baselines"),
    Goal("the same in LiteRT, one thread", 1, False, _soft_share, "tflite"),
    Goal("peak extra memory, in inputs", 3, False, _memory, "memory"),
    Goal("% of MobileNetV2's latency, float32", 6, False, _share("float32"), "tflite"),
    Goal("% of MobileNetV2's latency, int8 body", 10, False, _share("int8"), "tflite"),
    *(
        Goal(f"% of {step} outside codecs, layer and model", 20, False, _outside(step), "pipeline")
        for step in ("adapt", "calibrate", "compress", "apply", "evaluate", "tune")
    ),
    Goal("seconds to import beyond tensorflow", 0.2, False, _seconds(IMPORT), "startup"),
    Goal("seconds of fd-keras --help", 0.5, False, _seconds(HELP), "startup"),
    Goal("seconds until a file is refused", 0.5, False, _seconds(REFUSAL), "startup"),
]
