"""The page that shows what an evaluation found."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fd_keras._pages import figure_uri, picture_uri, write_page
from fd_keras.evaluation import plots
from fd_keras.evaluation.accuracies import BENIGN, NO_ATTACK, OURS, THREAT_MODELS
from fd_keras.evaluation.grid import AccuracyGrid
from fd_keras.evaluation.plots import epsilon_curves, swept_attacks, trade_offs

# Images this narrow are enlarged with sharp pixels.
_SMALL = 100


def text(value: object) -> str:
    """Any value as text that HTML does not interpret.

    Args:
        value: Is turned into a string.

    Example:
        >>> text("<script>")
        '&lt;script&gt;'
    """
    return html.escape(str(value))


def section(title: str, body: str) -> str:
    """A part of the page under its title; nothing if it is empty.

    Args:
        title: Plain text.
        body: HTML.

    Example:
        >>> section("Time", "")
        ''
    """
    return f"<section><h2>{text(title)}</h2>\n{body}</section>" if body else ""


def plot(figure: Any, alt: str, caption: str) -> str:
    """A matplotlib figure with its caption.

    Args:
        figure: The figure.
        alt: Plain text for readers who do not see it.
        caption: HTML.

    Example:
        >>> from matplotlib.figure import Figure
        >>> plot(Figure(), "nothing", "<b>Nothing</b>")[:32]
        '<figure><img src="data:image/svg'
    """
    image = f'<img src="{figure_uri(figure)}" alt="{text(alt)}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def accuracy_cell(row: Mapping[str, Any] | None) -> str:
    """A table cell with an accuracy in percent and its interval.

    Args:
        row: The figure, or ``None`` where there is none.

    Example:
        >>> accuracy_cell({"accuracy": 0.5, "interval": [0.4, 0.6], "correct": 5, "count": 10})
        '<td style="--share:50.0%" title="5 of 10">50.0<small>40.0 to 60.0</small></td>'
    """
    if row is None:
        return '<td class="missing">not run</td>'
    percent = 100 * row["accuracy"]
    low, high = (100 * end for end in row["interval"])
    return (
        f'<td style="--share:{percent:.1f}%" title="{row["correct"]} of {row["count"]}">'
        f"{percent:.1f}<small>{low:.1f} to {high:.1f}</small></td>"
    )


def definition_list(value: Any) -> str:
    """JSON as nested lists.

    Args:
        value: Any JSON.

    Example:
        >>> definition_list({"batch_size": 32})
        '<dl><dt>batch size</dt><dd>32</dd></dl>'
        >>> definition_list([{"name": "FGSM", "epsilon": 0.0078}])
        '<ul><li>name: FGSM, epsilon: 0.0078</li></ul>'
    """
    if isinstance(value, Mapping):
        items = (
            f"<dt>{text(key).replace('_', ' ')}</dt><dd>{definition_list(item)}</dd>"
            for key, item in value.items()
        )
        return f"<dl>{''.join(items)}</dl>" if value else ""
    if isinstance(value, list):
        if any(isinstance(item, list | Mapping) for item in value):
            return f"<ul>{''.join(f'<li>{in_line(item)}</li>' for item in value)}</ul>"
        return text(", ".join(map(str, value)))
    return text("" if value is None else value)


def in_line(value: Any) -> str:
    """JSON in one line, for a table cell.

    Args:
        value: Any JSON.

    Example:
        >>> in_line({"cycle_spins": 4, "sizes": [1, 2]})
        'cycle spins: 4, sizes: [1, 2]'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{text(key).replace('_', ' ')}: {in_line(i)}" for key, i in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(in_line, value))}]"
    return text(value)


def example_strip(example: Mapping[str, Any]) -> str:
    """One image benign, attacked and distilled, and the differences to the benign one.

    Args:
        example: Entry of a report's ``pictures``.

    Example:
        >>> grey = dict.fromkeys(("benign", "attacked", "distilled"), np.zeros((2, 2, 1), "u1"))
        >>> names = ("predicted_benign", "predicted_attacked", "predicted_distilled", "true")
        >>> names += ("defence", "attack", "threat_model")
        >>> example_strip({**grey, **dict.fromkeys(names, "cat")}).count("<img")
        5
    """
    benign = np.asarray(example["benign"])
    cells = []
    for stage in ("benign", "attacked", "distilled"):
        read, true = str(example[f"predicted_{stage}"]), str(example["true"])
        mark, kind = ("✓", "right") if read == true else ("✗", "wrong")
        note = f'{stage}<br><span class="{kind}">{mark} {text(read)}</span>'
        cells.append((np.asarray(example[stage]), f"{true}, {stage}", note))
    for stage in ("attacked", "distilled"):
        pixels, gain = amplified_difference(benign, np.asarray(example[stage]))
        scale = f"amplified {gain} times" if gain > 1 else "not amplified"
        what = f"{stage} minus benign, {scale}"
        cells.append((pixels, what, text(what)))
    small = ' class="small"' if benign.shape[1] < _SMALL else ""
    strip = "".join(
        f'<div><img{small} src="{picture_uri(pixels)}" alt="{text(alt)}">{note}</div>'
        for pixels, alt, note in cells
    )
    caption = (
        f"<b>{text(example['true'])}</b>: {text(example['threat_model'])} "
        f"{text(example['attack'])}, {text(example['defence'])}"
    )
    return (
        f'<figure class="example"><figcaption>{caption}</figcaption>'
        f'<div class="strip">{strip}</div></figure>'
    )


def amplified_difference(
    before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float64], int]:
    """``after - before`` around mid-grey, as strong as 99 % of it fits.

    Args:
        before: Array ``(height, width, channels)``.
        after: Array of the same shape.

    Returns:
        Array from 0 to 255, and the factor, a power of two up to 64.

    Example:
        >>> pixels, gain = amplified_difference(np.array([[[9]]]), np.array([[[11]]]))
        >>> gain, pixels.item()
        (32, 192.0)
    """
    difference = after.astype(np.float64) - before
    size = float(np.percentile(np.abs(difference), 99))
    # At most a half of the way to black and white, so that most pixels keep their hue.
    gain = next((g for g in (64, 32, 16, 8, 4, 2) if g * size <= 64), 1)
    return np.clip(128 + gain * difference, 0, 255), gain


if TYPE_CHECKING:  # the report writes itself through this module
    from fd_keras.evaluation.report import EvaluationReport

_TITLE = "Evaluation of feature distillation"
_WORD = ' class="word"'

# Only defences this many times slower than ours are worth a sentence.
_MUCH_SLOWER = 5


def write_report_page(report: EvaluationReport, path: str | os.PathLike[str]) -> None:
    """Write a report as one HTML file that needs no network and no other file.

    Args:
        report: The report.
        path: File to write, replaced atomically.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.

    Example:
        See ``EvaluationReport.to_html``.
    """
    sections = [
        _checks(report),
        _accuracies(report),
        _trade_offs(report.grid),
        _epsilons(report),
        _pictures(report),
        _detection(report),
        _times(report),
        _defences(report),
        _threat_models(report),
        _settings(report),
    ]
    fields = {
        "title": _TITLE,
        "subject": _subject(report),
        "alarm": _alarm(report),
        "verdict": text(report.verdict),
        "sections": "\n".join(filter(None, sections)),
    }
    write_page(path, "fd_keras.evaluation", "page.html", fields)


def _subject(report: EvaluationReport) -> str:
    shown = ("model", "data", "count", "protocol")
    known = [(key, report.settings[key]) for key in shown if report.settings.get(key)]
    return "".join(
        f'<span class="tag">{text("images" if key == "count" else key)}: {text(value)}</span>'
        for key, value in known
        if isinstance(value, str | int)
    )


def _alarm(report: EvaluationReport) -> str:
    failed = [check for check in report.checks if not check["passed"]]
    if not failed:
        return ""
    items = "".join(f"<li>{_check(check)}</li>" for check in failed)
    number = f"{len(failed)} of {len(report.checks)} sanity checks failed"
    return (
        f'<div class="alarm" role="alert"><h2>{number}: do not trust these figures</h2>'
        f"<ul>{items}</ul></div>"
    )


def _checks(report: EvaluationReport) -> str:
    if not report.checks:
        return section("Sanity checks", '<p class="wrong">No sanity check was run.</p>')
    passed = [check for check in report.checks if check["passed"]]
    items = "".join(f'<li><span class="right">✓</span> {_check(check)}</li>' for check in passed)
    return (
        f"<details><summary>Sanity checks: {len(passed)} of {len(report.checks)} passed</summary>"
        f'<ul class="checks">{items}</ul></details>'
    )


def _check(check: Mapping[str, Any]) -> str:
    return f"<b>{text(check['name'])}</b>, {text(check['defence'])}: {text(check['detail'])}"


def _accuracies(report: EvaluationReport) -> str:
    grid = report.grid
    if not grid.columns:
        return ""
    note = (
        '<p class="note">In %, with 95 % Wilson intervals below: what other images of the same '
        "kind might have given. The deeper the colour, the higher the accuracy. "
        f"{text(report.settings.get('selection', ''))}</p>"
    )
    tables = [_accuracy_table(report, model) for model in grid.threat_models or [BENIGN]]
    return section("Accuracy", note + "\n".join(tables))


def _accuracy_table(report: EvaluationReport, threat_model: str) -> str:
    grid = report.grid
    attacks = grid.attacks(threat_model) if threat_model != BENIGN else []
    columns = [(BENIGN, NO_ATTACK), *((threat_model, attack) for attack in attacks)]
    over = (
        f'<th scope="colgroup" colspan="{len(attacks)}" class="over">{text(threat_model)}</th>'
        if attacks
        else ""
    )
    heads = "".join(f'<th scope="col">{text(attack)}</th>' for attack in attacks)
    body = []
    for name in grid.defences:
        if attacks and not grid.attacks(threat_model, name):
            continue
        cells = "".join(accuracy_cell(grid.row(name, *column)) for column in columns)
        body.append(
            f"<tr{_ours(grid.families[name])}>{_name_cell(name, grid.families[name])}{cells}</tr>"
        )
    second = f"<tr>{heads}</tr>" if attacks else ""
    depth = ' rowspan="2"' if attacks else ""
    definition = _definition(report, threat_model)
    return (
        f"<h3>{text(threat_model)}</h3><p>{text(definition[:1].upper() + definition[1:])}</p>"
        '<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{text(threat_model)} accuracy">'
        f'<table class="numbers heat"><thead><tr><th scope="col"{depth}>defence</th>'
        f'<th scope="col"{depth}>benign</th>{over}</tr>{second}</thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _ours(family: str) -> str:
    return ' class="ours"' if family == OURS else ""


def _name_cell(name: str, family: str) -> str:
    note = "" if family == name else f"<small>{text(family)}</small>"
    return f'<th scope="row">{text(name)}{note}</th>'


def _trade_offs(grid: AccuracyGrid) -> str:
    drawn: list[str] = []
    for threat_model in grid.threat_models:
        points, attacks = trade_offs(grid, threat_model)
        if len(points) > 1:
            caption = (
                f"<b>{text(threat_model)}</b>: mean accuracy over {text(', '.join(attacks))}, "
                f"against benign accuracy"
            )
            alt = (
                f"Benign against mean {threat_model} accuracy of {len(points)} defences; the "
                "table of accuracies holds the numbers."
            )
            drawn.append(plot(plots.plot_trade_off(points, threat_model), alt, caption))
    note = (
        "Up and to the right is better. Stars are feature distillation, JPEG qualities are "
        "joined, and no defence lies beyond the dashed front. Names that would cover each other "
        "are left out."
    )
    return section("What is kept and what it costs", _plots(note, drawn))


def _epsilons(report: EvaluationReport) -> str:
    drawn: list[str] = []
    for threat_model in report.grid.threat_models:
        for kind in swept_attacks(report.rows, threat_model):
            curves = epsilon_curves(report.grid, report.rows, threat_model, kind)
            if not curves:
                continue
            norm = {"inf": "L-inf", "2": "L2"}.get(str(kind[1]), "")
            caption = f"<b>{text(threat_model)}</b>, {text(kind[0])} {norm}"
            alt = (
                f"{threat_model} accuracy of {len(curves)} defences under {kind[0]} of growing "
                "epsilon; the table of accuracies holds the numbers."
            )
            drawn.append(plot(plots.plot_epsilons(curves, threat_model), alt, caption))
    note = (
        "Accuracy as the attack grows; epsilon 0 is benign. Every feature-distillation table, "
        "with its 95 % band, and the best setting of each other kind of defence, by the mean "
        "over its curve."
    )
    return section("Accuracy against epsilon", _plots(note, drawn))


def _plots(note: str, drawn: list[str]) -> str:
    if not drawn:
        return ""
    return f'<p class="note">{note}</p><div class="plots">{"".join(drawn)}</div>'


def _pictures(report: EvaluationReport) -> str:
    strips = "".join(map(example_strip, report.pictures))
    note = (
        '<p class="note">Differences are drawn around mid-grey and amplified as written below '
        "them. The last one holds both what is left of the attack and what distillation itself "
        "changes.</p>"
    )
    return section("What happens to an image", note + strips if strips else "")


def _detection(report: EvaluationReport) -> str:
    def kind(entry: Mapping[str, Any]) -> tuple[str, int]:
        return entry["defence"], list(THREAT_MODELS).index(entry["threat_model"])

    drawn: list[str] = []
    rows: list[str] = []
    for (defence, _), group in groupby(sorted(report.detection, key=kind), key=kind):
        entries = list(group)
        threat_model = entries[0]["threat_model"]
        curves = [entry for entry in entries if entry["roc"]]
        if curves:
            caption = f"<b>{text(defence)}, {text(threat_model)}</b>"
            alt = f"ROC curves of detection with {defence}, {threat_model}; numbers are below."
            drawn.append(plot(plots.plot_roc(curves), alt, caption))
        rows += [_detection_row(entry) for entry in entries]
    note = (
        "Share of attacked images that are flagged against share of benign images that are; "
        "dots mark the threshold that was set. An attacker who knows of the detector can avoid it."
    )
    heads = ("detector", "threat model", "attack", "AUC", "found", "false alarms", "aimed at")
    table = _table(heads, rows, ("threat model", "attack"))
    return section("Detection", (_plots(note, drawn) + table) if rows else "")


def _detection_row(entry: Mapping[str, Any]) -> str:
    rates = (
        f"<td>{100 * entry[key]:.1f}&nbsp;%</td>"
        for key in ("detection_rate", "false_positive_rate", "false_positive_rate_target")
    )
    return (
        f'<tr><th scope="row">{text(entry["defence"])}</th>'
        f'<td class="word">{text(entry["threat_model"])}</td>'
        f'<td class="word">{text(entry["attack"])}</td>'
        f"<td>{entry['auc']:.3f}</td>{''.join(rates)}</tr>"
    )


def _table(heads: tuple[str, ...], rows: list[str], words: tuple[str, ...]) -> str:
    head = "".join(
        f'<th scope="col"{_WORD if name in words else ""}>{text(name)}</th>' for name in heads
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(heads[0])}">'
        f'<table class="numbers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _times(report: EvaluationReport) -> str:
    timed = [entry for entry in report.defences if entry["ms_per_image"]]
    if not timed:
        return ""
    alt = f"Time per image of {len(timed)} defences; the table of defences holds the numbers."
    note = "All measured in one process on one machine, each alone, without the classifier."
    chart = plot(plots.plot_times(timed), alt, _speed_ratios(timed))
    return section("Time per image", _plots(note, [chart]))


def _speed_ratios(timed: list[dict[str, Any]]) -> str:
    ours = [entry for entry in timed if entry["family"] == OURS]
    if not ours:
        return "Milliseconds per image."
    fastest = min(ours, key=lambda entry: entry["ms_per_image"])
    ratios = [(entry["ms_per_image"] / fastest["ms_per_image"], entry) for entry in timed]
    slow = sorted(((ratio, entry["name"]) for ratio, entry in ratios if ratio >= _MUCH_SLOWER))
    if not slow:
        return f"The fastest table is {text(fastest['name'])}."
    times = ", ".join(f"{name} {ratio:.0f}" for ratio, name in slow)
    return text(f"Times as long as {fastest['name']}, the fastest table: {times}.")


def _defences(report: EvaluationReport) -> str:
    rows = []
    for entry in report.defences:
        time = "" if entry["ms_per_image"] is None else f"{entry['ms_per_image']:.3g}"
        tried = ", ".join(map(str, entry["chosen_from"] or [])) or "not tuned"
        rows.append(
            f"<tr{_ours(entry['family'])}>{_name_cell(entry['name'], entry['family'])}"
            f'<td>{time}</td><td class="text">{in_line(entry["settings"])}</td>'
            f'<td class="text">{text(tried)}</td></tr>'
        )
    heads = ("defence", "ms per image", "settings", "chosen on the tuning split from")
    return section("Defences", _table(heads, rows, heads[2:]) if rows else "")


def _definition(report: EvaluationReport, threat_model: str) -> str:
    given = report.settings.get("threat_models")
    return str(
        given[threat_model]
        if isinstance(given, dict) and threat_model in given
        else THREAT_MODELS[threat_model]
    )


def _threat_models(report: EvaluationReport) -> str:
    defined = {name: _definition(report, name) for name in THREAT_MODELS}
    note = (
        '<p class="note">An accuracy means nothing without one of these. None of them is a '
        "proof: a stronger attack may leave less than is shown here.</p>"
    )
    return section("Threat models", definition_list(defined) + note)


def _settings(report: EvaluationReport) -> str:
    shown = {key: value for key, value in report.settings.items() if key != "threat_models"}
    command = shown.pop("command", None)
    pre = f"<pre><code>{html.escape(str(command))}</code></pre>" if command else ""
    return section("To get these figures again", (pre + definition_list(shown)) if shown else pre)
