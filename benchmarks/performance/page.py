"""The results as one HTML page."""

from pathlib import Path

from benchmarks.performance import figures, tables
from fd_keras._extras import import_extra
from fd_keras._pages import figure_uri, page_colors, render_page

_TITLES = {
    "baselines": "Layer and baselines",
    "kernel": "Inside the layer",
    "sizes": "Sizes and batches",
    "memory": "Peak memory",
    "tflite": "In LiteRT, one image on one thread",
    "gpu": "On a GPU",
    "pipeline": "In a pipeline",
    "startup": "Starting",
}

_TABLES = {
    "baselines": tables.speed_table,
    "kernel": tables.speed_table,
    "sizes": tables.speed_table,
    "memory": tables.memory_table,
    "tflite": tables.latency_table,
    "gpu": tables.speed_table,
    "pipeline": tables.pipeline_table,
    "startup": tables.seconds_table,
}

# Further tables of a part.
_MORE = {"kernel": tables.roofline_table}

_NOTES = {
    "kernel": "The floor is the longer of two times: the layer's multiplications at the rate of a "
    "large matrix product, and one pass over memory. The floor of these kernels is the time of its "
    "products at their own shapes, and of one pass: what is above it are the other passes over "
    "memory, one for each operation on every number outside of XLA; what is below it would need "
    "another transform.",
}

_FIGURES = {
    "baselines": (figures.plot_baselines, "Time per image of the layer and of its baselines"),
    "sizes": (figures.plot_sizes, "Time per pixel by size, batch and mode"),
    "pipeline": (figures.plot_pipeline, "Where the time of each step goes, from stack samples"),
}


def write(path, result):
    """Write the page of a result; without matplotlib, it has no plots.

    Args:
        path: HTML file to write.
        result: What ``performance.json`` holds.
    """
    before = result.get("before", {"revision": None, "parts": {}})
    parts = [
        {
            "title": _TITLES[name],
            "note": _NOTES.get(name),
            "plot": _plot(name, found["rows"]),
            "table": _TABLES[name](found["rows"]),
            "more": _MORE[name](found["rows"]) if name in _MORE else None,
            "folded": name in ("baselines", "sizes"),
            "before": _TABLES[name](before["parts"].get(name, {"rows": []})["rows"]),
            "not_run": found["not_run"],
            "date": found["date"],
        }
        for name, found in result["parts"].items()
    ]
    template = Path(__file__).with_name("page.html.j2")
    fields = {
        **result,
        "before": before,
        "parts": parts,
        "number": tables.number,
        "holds": tables.HOLDS,
    }
    render_page(path, template, **fields)


def _plot(name, rows):
    if name not in _FIGURES or not rows:
        return None
    try:
        import_extra("matplotlib", "evaluate")
    except ImportError:
        return None
    draw, caption = _FIGURES[name]
    with page_colors():
        return {"uri": figure_uri(draw(rows)), "alt": caption, "caption": caption, "name": ""}
