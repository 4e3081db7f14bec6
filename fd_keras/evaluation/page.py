"""What the page of an evaluation report shows beside the report: plots and pictures.

The page itself is ``fd_keras/templates/report.html.j2``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fd_keras._pages import figure_uri, picture_uri
from fd_keras.evaluation import plots
from fd_keras.evaluation.accuracies import BENIGN, CERTIFIED, OURS, THREAT_MODELS, AccuracyGrid
from fd_keras.plots import channel_names
from fd_keras.tables import QuantizationTable

# Images this narrow are enlarged with sharp pixels.
_SMALL = 100

_ONE_PASS = ("gray-box", "adaptive", "black-box")

_NORMS = {"inf": "L-inf", "2": "L2", None: ""}

# Only defences this many times slower than ours are worth a sentence.
_MUCH_SLOWER = 5

Entries = Sequence[Mapping[str, Any]]


class PagePlot(NamedTuple):
    """A plot as the templates' macro ``figure`` shows it.

    Args:
        uri: The picture.
        alt: Text for readers who do not see it.
        caption: What stands below it.
        name: What the caption begins with, in bold.
    """

    uri: str
    alt: str
    caption: str
    name: str = ""


def page_fields(
    grid: AccuracyGrid, rows: Entries, defences: Entries, detection: Entries, pictures: Entries
) -> dict[str, Any]:
    """What the template shows beside the report.

    Args:
        grid: The accuracies.
        rows: The same, as a list.
        defences: As a report holds them.
        detection: As a report holds it.
        pictures: As a report holds them.

    Returns:
        Fields by name.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> page_fields(AccuracyGrid([]), [], [], [], [])["trade_offs"]
        []
    """
    detection = sorted(detection, key=_detector)
    return {
        "OURS": OURS,
        "THREAT_MODELS": _definitions(grid),
        "trade_offs": list(_trade_offs(grid)),
        "sizes": list(_sizes(grid, defences)),
        "sweeps": list(_sweeps(grid, rows)),
        "examples": [_example(picture) for picture in pictures],
        "detection": detection,
        "rocs": list(_rocs(detection)),
        "times": list(_times(defences)),
        "brief": {entry["name"]: _brief(entry["settings"]) for entry in defences},
        "tables": list(_tables(defences)),
    }


def _brief(settings: Any) -> Any:
    """The settings of a defence in a line: the steps of a table are shown as a picture."""
    table = settings.get("table") if isinstance(settings, Mapping) else None
    if not isinstance(table, Mapping):
        return settings
    kept = {key: value for key, value in settings.items() if key != "table"}
    shown_too = ("color_space", "cycle_spins", "quantizer")
    return {**kept, **{key: table[key] for key in shown_too if key in table}}


def _tables(defences: Entries) -> Iterator[PagePlot]:
    """The steps of each table, one picture for channels that have the same."""
    for entry in defences:
        found = entry["settings"].get("table") if isinstance(entry["settings"], Mapping) else None
        if not isinstance(found, Mapping):
            continue
        table = QuantizationTable.from_dict(found)
        names = channel_names(table.channels, table.color_space)
        alike: dict[bytes, list[int]] = {}
        for channel, steps in enumerate(table.steps):
            alike.setdefault(steps.tobytes(), []).append(channel)
        for channels in alike.values():
            named = ", ".join(names[channel] for channel in channels)
            alt = f"Quantisation steps of {entry['name']} {named}, 8 by 8 bands."
            uri = figure_uri(plots.plot_steps(table.steps[channels[0]]))
            yield PagePlot(uri, alt, f", {named}" if named else "", entry["name"])


def _definitions(grid: AccuracyGrid) -> dict[str, str]:
    """Of the threat models of one pass, or of two where there are two."""
    two = any(name not in _ONE_PASS for name in grid.threat_models)
    return {
        name: text
        for name, text in THREAT_MODELS.items()
        if name == BENIGN or (name not in _ONE_PASS) == two or name in grid.threat_models
    }


def _sizes(grid: AccuracyGrid, defences: Entries) -> Iterator[PagePlot]:
    for bound in grid.attacks(CERTIFIED):
        points = plots.stored_sizes(grid, defences, bound)
        if points:
            uri = figure_uri(plots.plot_sizes(points, bound))
            alt = (
                f"Accuracy certified {bound} of {len(points)} defences against bytes per image; "
                "the tables hold the numbers."
            )
            yield PagePlot(uri, alt, f" {bound}, of all images", CERTIFIED)


def _trade_offs(grid: AccuracyGrid) -> Iterator[PagePlot]:
    for threat_model in grid.threat_models:
        if threat_model == CERTIFIED:
            continue  # drawn against bytes instead
        points, attacks = plots.trade_offs(grid, threat_model)
        if len(points) > 1:
            uri = figure_uri(plots.plot_trade_off(points, threat_model))
            alt = (
                f"Benign against mean {threat_model} accuracy of {len(points)} defences; the "
                "table of accuracies holds the numbers."
            )
            caption = f": mean accuracy over {', '.join(attacks)}, against benign accuracy"
            yield PagePlot(uri, alt, caption, threat_model)


def _sweeps(grid: AccuracyGrid, rows: Entries) -> Iterator[PagePlot]:
    for threat_model in grid.threat_models:
        for kind in plots.swept_attacks(rows, threat_model):
            curves = plots.epsilon_curves(grid, rows, threat_model, kind)
            if curves:
                family, norm = kind
                uri = figure_uri(plots.plot_epsilons(curves, threat_model))
                alt = (
                    f"{threat_model} accuracy of {len(curves)} defences under {family} of growing "
                    "epsilon; the table of accuracies holds the numbers."
                )
                caption = f", {family} {_NORMS[norm]}"
                yield PagePlot(uri, alt, caption, threat_model)


def _detector(entry: Mapping[str, Any]) -> tuple[str, int]:
    return entry["defence"], list(THREAT_MODELS).index(entry["threat_model"])


def _rocs(detection: Entries) -> Iterator[PagePlot]:
    for _, group in groupby(detection, key=_detector):
        curves = [entry for entry in group if entry["roc"]]
        if curves:
            name = f"{curves[0]['defence']}, {curves[0]['threat_model']}"
            alt = f"ROC curves of detection with {name}; numbers are below."
            yield PagePlot(figure_uri(plots.plot_roc(curves)), alt, "", name)


def _times(defences: Entries) -> Iterator[PagePlot]:
    timed = [entry for entry in defences if entry["ms_per_image"]]
    if timed:
        alt = f"Time per image of {len(timed)} defences; the table of defences holds the numbers."
        yield PagePlot(figure_uri(plots.plot_times(timed)), alt, _speed_ratios(timed))


def _speed_ratios(timed: Entries) -> str:
    ours = [entry for entry in timed if entry["family"] == OURS]
    if not ours:
        return "Milliseconds per image."
    fastest = min(ours, key=lambda entry: entry["ms_per_image"])
    ratios = sorted((e["ms_per_image"] / fastest["ms_per_image"], e["name"]) for e in timed)
    times = ", ".join(f"{name} {ratio:.0f}" for ratio, name in ratios if ratio >= _MUCH_SLOWER)
    if not times:
        return f"The fastest table is {fastest['name']}."
    return f"Times as long as {fastest['name']}, the fastest table: {times}."


def _example(picture: Mapping[str, Any]) -> dict[str, Any]:
    """An image benign, attacked and distilled, and the differences from the benign one."""
    arrays = {stage: np.asarray(picture[stage]) for stage in ("benign", "attacked", "distilled")}
    differences = []
    for stage in ("attacked", "distilled"):
        pixels, gain = _amplified_difference(arrays["benign"], arrays[stage])
        differences.append({"stage": stage, "uri": picture_uri(pixels), "gain": gain})
    return {
        **picture,
        "small": arrays["benign"].shape[1] < _SMALL,
        "stages": [
            {"stage": stage, "uri": picture_uri(pixels), "predicted": picture[f"predicted_{stage}"]}
            for stage, pixels in arrays.items()
        ],
        "differences": differences,
    }


def _amplified_difference(
    before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float64], int]:
    """``after - before`` around mid-grey, amplified by a power of two so that 99 % of it fits."""
    difference = after.astype(np.float64) - before
    size = float(np.percentile(np.abs(difference), 99))
    # At most a half of the way to black and white, so that most pixels keep their hue.
    gain = next((g for g in (64, 32, 16, 8, 4, 2) if g * size <= 64), 1)
    return np.clip(128 + gain * difference, 0, 255), gain
