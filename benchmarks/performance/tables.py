"""The results as tables."""

from typing import NamedTuple

from rich.table import Table

from benchmarks.performance.kernel import roofline
from benchmarks.performance.tflite import ALONE, SOFT_ALONE

HOLDS = {True: "holds", False: "falls short", None: "not measured"}
_STYLES = {True: "green", False: "red", None: "dim"}


def goals_in_terminal(goals):
    """The goals as a table of rich."""
    compared = any("before" in goal for goal in goals)
    table = Table("", "goal", *["before"] * compared, "reached", "", title="Goals")
    for goal in goals:
        verdict = f"[{_STYLES[goal['holds']]}]{HOLDS[goal['holds']]}"
        figures = [number(goal.get("before")) for _ in range(compared)] + [number(goal["figure"])]
        table.add_row(goal["goal"], goal["limit"], *figures, verdict)
    return table


class Cells(NamedTuple):
    """A table of texts.

    Args:
        heads: One for each column.
        rows: One text for each column.
        words: Heads of columns that hold words and not numbers.
    """

    heads: list
    rows: list
    words: tuple = ()


def speed_table(rows):
    """Times with their ratios to the layer's in the same turns."""
    cells = []
    for row in rows:
        layer = layers_row(row, rows)
        cells.append(
            [
                row["name"],
                row["setting"],
                "x".join(map(str, row["shape"])),
                str(row["threads"]),
                f"{row['ms_per_image']:.4g}",
                f"{row['ns_per_pixel']:.3g}",
                f"{row['ns_per_pixel'] / layer['ns_per_pixel']:.3g}" if layer else "",
            ]
        )
    heads = ["", "setting", "batch", "threads", "ms per image", "ns per pixel", "times the layer"]
    return Cells(heads, cells, ("setting", "batch"))


def roofline_table(rows):
    """The floor under the layer's time, and how far above it the layer is."""
    floors = roofline(rows)
    if not floors:
        return None
    cells = []
    for floor in floors:
        layer = floor["layer, ms"]
        over = (layer / floor[name] for name in ("floor, ms", "floor of these kernels, ms"))
        figures = [value for name, value in floor.items() if name != "threads"]
        cells.append([f"{floor['threads']} threads", *(f"{x:.3g}" for x in (*figures, *over))])
    heads = [name for name in floors[0] if name != "threads"]
    return Cells(["", *heads, "layer, in floors", "in floors of these kernels"], cells)


def layers_row(row, rows):
    """The row of the layer in a graph that was measured in turns with ``row``."""
    group = ("group", "threads") if "group" in row else ("threads",)
    for other in rows:
        same = all(other.get(key) == row.get(key) for key in group)
        size = "group" in row or other["shape"][:3] == row["shape"][:3]
        if same and size and (other["name"], other["setting"]) == ("layer", "graph"):
            return other
    return None


def memory_table(rows):
    """Peak memory of each call."""
    return Cells(
        ["", "setting", "MB beyond the input", "times the input"],
        [
            [
                row["name"],
                row["setting"],
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['times_the_input']:.2f}",
            ]
            for row in rows
        ],
        ("setting",),
    )


def latency_table(rows):
    """Milliseconds of one image in LiteRT."""
    cells = []
    for row in rows:
        times = row["milliseconds"]
        alone = [f"{times[n]:.3g}" if n in times else "" for n in (ALONE, SOFT_ALONE)]
        shown = [f"{times['with']:.3g}", f"{times['without']:.3g}", *alone]
        cells.append([row["model"], row["body"], *shown, f"{100 * row['share']:.1f} %"])
    heads = ["", "body", "with, ms", "without, ms"]
    heads += ["layer alone, ms", "soft layer alone, ms", "layer's share"]
    return Cells(heads, cells, ("body",))


def pipeline_table(rows):
    """Seconds of each step, and the places where they went."""
    cells = []
    for row in rows:
        shares = (f"{place} {100 * share:.0f} %" for place, share in row["shares"].items())
        largest = ", ".join(list(shares)[:5])
        outside = f"{100 * row['outside']:.0f} %"
        cells.append([row["step"], f"{row['seconds']:.2f}", outside, largest])
    return Cells(["", "seconds", "outside", "largest shares"], cells, ("largest shares",))


def seconds_table(rows):
    """Seconds by name."""
    return Cells(["", "seconds"], [[r["name"], f"{r['seconds']:.3f}"] for r in rows])


def number(figure):
    """A figure with three digits; a dash for one that is missing."""
    return "-" if figure is None else f"{figure:.3g}" if abs(figure) < 1000 else f"{figure:.0f}"
