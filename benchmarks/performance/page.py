"""The results as one HTML page."""

from benchmarks.performance import figures, tables
from fd_keras._extras import import_extra
from fd_keras._pages import page_colors, write_page
from fd_keras.evaluation.page import plot, section, text

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

_NOTES = {
    "kernel": "Without any rounding, the layer's matrix products alone take this long: what goals "
    "below that would need is another transform. Outside XLA, each operation on every number "
    "passes over memory again: quantisation is four operations, clipping two.",
}

_FIGURES = {
    "baselines": (figures.plot_peers, "Time per image of the layer and of its baselines"),
    "sizes": (figures.plot_sizes, "Time per pixel by size, batch and mode"),
    "pipeline": (figures.plot_pipeline, "Where the time of each step goes, from stack samples"),
}


def write(path, result):
    """Write the page of a result; without matplotlib, it has no plots.

    Args:
        path: HTML file to write.
        result: What ``performance.json`` holds.
    """
    parts = "\n".join(_part(name, found) for name, found in result["parts"].items())
    goals = section("Goals", tables.goals_table(result["goals"]))
    fields = {"about": _about(result), "goals": goals, "parts": parts}
    write_page(path, "benchmarks.performance", "page.html", fields)


def _about(result):
    machine = result["machine"]
    versions = ", ".join(f"{name} {v or 'missing'}" for name, v in result["versions"].items())
    return (
        f"<code>{text(result['command'])}</code> on {text(machine['processor'])}, "
        f"{machine['cores']} cores, {machine['memory_gb']} GB, {text(machine['system'])}; "
        f"{text(versions)}."
    )


def _part(name, found):
    table = _TABLES[name](found["rows"])
    if name in ("baselines", "sizes") and table:
        table = f"<details><summary>All rows</summary>{table}</details>"
    missing = "".join(
        f"<li>{text(entry['what'])}: {text(entry['reason'])}</li>" for entry in found["not_run"]
    )
    body = f"<p>{text(_NOTES[name])}</p>" if name in _NOTES else ""
    body += _figure(name, found["rows"]) + table
    body += f"<p>Not run:</p><ul>{missing}</ul>" if missing else ""
    return section(_TITLES[name], body + f'<p class="note">Measured on {found["date"]}.</p>')


def _figure(name, rows):
    if name not in _FIGURES or not rows:
        return ""
    try:
        import_extra("matplotlib", "evaluate")
    except ImportError:
        return ""
    draw, caption = _FIGURES[name]
    with page_colors():
        return plot(draw(rows), caption, caption)
