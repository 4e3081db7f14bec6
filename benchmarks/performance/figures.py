"""The results as plots."""

from benchmarks.performance.cases import LARGE_IMAGE, LAYER, PASS
from fd_keras.plots import PALE, color_of, empty_figure


def plot_baselines(rows):
    """Milliseconds per image of layer and baselines, best setting, most threads."""
    best = {}
    for row in rows:
        if row["threads"] == _most_threads(rows) and row["name"] != LARGE_IMAGE:
            name = row["name"]
            best[name] = min(best.get(name, float("inf")), row["ms_per_image"])
    names = sorted(best, key=best.get, reverse=True)
    figure, axis = _figure(7, 0.28 * len(names) + 0.9)
    colors = [color_of(0 if name == LAYER else 1) for name in names]
    bars = axis.barh(names, [best[name] for name in names], color=colors)
    axis.bar_label(bars, [f" {best[name]:.3g}" for name in names], fontsize=8)
    axis.set(xscale="log", xlabel="ms per image, best setting")
    axis.margins(x=0.2)
    return figure


def plot_sizes(rows):
    """Nanoseconds per pixel by size: the layer in its modes, and what it is compared with."""
    rows = [row for row in rows if row["threads"] == _most_threads(rows)]
    kinds = list(dict.fromkeys((row["name"], row["setting"]) for row in rows))
    kinds = [kind for kind in kinds if kind[0] in (LAYER, PASS) or kind[1] != "eager"]
    batches = sorted({row["shape"][0] for row in rows})
    figure = empty_figure(3.3 * len(batches) + 0.4, 3.8)
    axes = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for axis, batch in zip(axes, batches):
        for number, kind in enumerate(kinds):
            points = sorted(
                (row["shape"][1], row["ns_per_pixel"])
                for row in rows
                if (row["name"], row["setting"]) == kind and row["shape"][0] == batch
            )
            axis.plot(*zip(*points), "o-", ms=4, color=color_of(number), label=", ".join(kind))
        axis.set(xscale="log", yscale="log", xlabel="height and width")
        axis.set_xticks(sizes := sorted({row["shape"][1] for row in rows}), map(str, sizes))
        axis.minorticks_off()
        axis.set_title(f"batch of {batch}", fontsize=10)
    axes[0].set_ylabel("ns per pixel")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def plot_pipeline(rows):
    """Where each step's time goes."""
    places = {place: 0 for row in rows for place in row["shares"]}
    for place in places:
        places[place] = max(row["shares"].get(place, 0) for row in rows)
    shown = sorted(places, key=places.get, reverse=True)[:9]
    figure, axis = _figure(8, 0.45 * len(rows) + 1.3)
    left = [0.0] * len(rows)
    for number, place in enumerate(shown):
        widths = [100 * row["shares"].get(place, 0) for row in rows]
        axis.barh([r["step"] for r in rows], widths, left=left, label=place, color=color_of(number))
        left = [a + b for a, b in zip(left, widths)]
    rest = [100 - value for value in left]
    axis.barh([r["step"] for r in rows], rest, left=left, label="other", color=PALE)
    axis.invert_yaxis()
    axis.set(xlabel="% of the time", xlim=(0, 100))
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _figure(width, height):
    figure = empty_figure(width, height)
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _most_threads(rows):
    return max(row["threads"] for row in rows)
