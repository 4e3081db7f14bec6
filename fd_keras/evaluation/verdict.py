"""Summary of an evaluation in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fd_keras.evaluation.accuracies import (
    BENIGN,
    CERTIFIED,
    NO_ATTACK,
    OURS,
    TWO_PASS,
    AccuracyGrid,
    Mean,
)

_ADAPTIVE = "adaptive"
_BLACK_BOX = "black-box"


def verdict(
    grid: AccuracyGrid,
    checks: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, float] | None = None,
) -> str:
    """State the gain and cost of feature distillation, and compare it with the best baseline.

    Each threat model has a sentence, which also says what became worse.

    Of several tables, the one with the largest sum of benign and attacked accuracy is described,
    and the text says so. Only baselines of no less benign accuracy are compared with it, and those
    on the same number of images before others.

    Args:
        grid: The accuracies.
        checks: The report's sanity checks.
        sizes: Bytes per stored image, by name of the defence, where there are two passes.

    Returns:
        Sentences; every accuracy in them is named with its threat model.

    Example:
        >>> verdict(AccuracyGrid([]), [])
        'Nothing was evaluated. No sanity check was run.'
    """
    trust = _trust(checks)
    failed = any(not check["passed"] for check in checks)
    found = " ".join(sentence for sentence in _findings(grid, sizes or {}) if sentence)
    # A reader of the first sentence only must learn of the failure.
    return " ".join([trust, found] if failed else [found, trust]).strip()


def _findings(grid: AccuracyGrid, sizes: Mapping[str, float]) -> list[str]:
    if not grid.defences:
        return ["Nothing was evaluated."]
    base = grid.undefended
    if base is None:
        return ["The undefended classifier was not evaluated: no defence can be compared with it."]
    if not grid.threat_models:
        return ["No attack was run: these are benign accuracies only."]
    if not grid.ours:
        threat_model = grid.threat_models[0]
        attacks = grid.shared_attacks(threat_model, [base])
        left = grid.mean(base, threat_model, attacks)
        under = _under(threat_model, attacks)
        stands = f" The undefended classifier keeps {_percent(left)} {under}." if left else ""
        return [f"No {OURS} was evaluated.{stands}"]
    for threat_model in grid.threat_models:
        attacks = grid.shared_attacks(threat_model, [base, *grid.ours])
        if attacks:
            subject = _best(grid, grid.ours, threat_model, attacks)
            return [
                _gain(grid, subject, base, threat_model, attacks),
                *(
                    _elsewhere(grid, subject, base, other)
                    for other in grid.threat_models
                    if other not in (threat_model, CERTIFIED)
                ),
                _against_baselines(grid, subject, threat_model, attacks),
                _if_known(grid, subject, threat_model, attacks),
                *(_certified(grid, subject, sizes) if sizes else ()),
            ]
    return ["No attack was run on both the undefended classifier and every table."]


def _best(
    grid: AccuracyGrid, names: Sequence[str], threat_model: str, attacks: Sequence[str]
) -> str:
    def both(name: str) -> float:
        benign, attacked = grid.benign(name), grid.mean(name, threat_model, attacks)
        return (benign.accuracy if benign else 0.0) + (attacked.accuracy if attacked else 0.0)

    return max(names, key=both)


def _gain(
    grid: AccuracyGrid, subject: str, base: str, threat_model: str, attacks: Sequence[str]
) -> str:
    before, after = (grid.mean(name, threat_model, attacks) for name in (base, subject))
    assert before is not None  # the attacks were chosen so
    assert after is not None
    where = _under(threat_model, attacks)
    tables = len(grid.ours)
    who = subject if tables == 1 else f"{subject}, the best of {tables} tables here,"
    cost = _cost(grid, subject, base)
    if after.accuracy <= before.accuracy:
        return (
            f"{who} does not raise accuracy {where}: {_percent(after)} with it, "
            f"{_percent(before)} without, {cost}."
        )
    noise = ", within the 95 % intervals," if after.low <= before.high else ""
    worse = _worse(grid, subject, base, threat_model, attacks)
    return (
        f"{who} raises accuracy {where} from {_percent(before)} to {_percent(after)}{noise} {cost}"
        f"{worse}."
    )


def _elsewhere(grid: AccuracyGrid, subject: str, base: str, threat_model: str) -> str:
    """What becomes better or worse under another threat model, in one sentence."""
    attacks = grid.shared_attacks(threat_model, [base, subject])
    before, after = (grid.mean(name, threat_model, attacks) for name in (base, subject))
    if before is None or after is None:
        return ""
    where = f"Under {_under(threat_model, attacks).removeprefix('under ')}"
    change = f"from {_percent(before)} to {_percent(after)}"
    near = before.low <= after.high and after.low <= before.high
    noise = ", within the 95 % intervals" if near else ""
    if after.accuracy < before.accuracy:
        return f"{where}, it makes accuracy worse: {change}{noise}."
    how = f"it raises accuracy {change}{noise}"
    if after.accuracy == before.accuracy:
        how = f"it changes nothing: {_percent(after)}"
    return f"{where}, {how}{_worse(grid, subject, base, threat_model, attacks)}."


def _worse(
    grid: AccuracyGrid, subject: str, base: str, threat_model: str, attacks: Sequence[str]
) -> str:
    """Single attacks under which the subject does worse, where the mean does not."""
    pairs = [
        (attack, grid.row(base, threat_model, attack), grid.row(subject, threat_model, attack))
        for attack in attacks
    ]
    found = [
        f"{attack} ({100 * after['accuracy']:.1f} % instead of {100 * before['accuracy']:.1f} %)"
        for attack, before, after in pairs
        if before and after and after["accuracy"] < before["accuracy"]
    ]
    return f", but is worse under {_listed(found)}" if found and len(attacks) > 1 else ""


def _cost(grid: AccuracyGrid, subject: str, base: str) -> str:
    before, after = grid.benign(base), grid.benign(subject)
    if before is None or after is None:
        return "at an unknown cost in benign accuracy"
    points = round(100 * (before.accuracy - after.accuracy), 1)
    if points > 0:
        return f"at a cost of {points:.1f} points of benign accuracy"
    if points < 0:
        return f"and gains {-points:.1f} points of benign accuracy"
    return "and costs no benign accuracy"


def _against_baselines(
    grid: AccuracyGrid, subject: str, threat_model: str, attacks: Sequence[str]
) -> str:
    mine, benign = grid.mean(subject, threat_model, attacks), grid.benign(subject)
    if not grid.baselines or mine is None or benign is None:
        return "No baseline was evaluated beside it."
    fair = {}
    for name in grid.baselines:
        kept, theirs = grid.benign(name), grid.mean(name, threat_model, attacks)
        if kept and theirs and kept.accuracy >= benign.accuracy:
            fair[name] = theirs
    if not fair:
        return "No baseline that met the same attacks keeps as much benign accuracy."
    images = _images(grid, subject, threat_model, attacks)
    same = [name for name in fair if _images(grid, name, threat_model, attacks) == images]
    name = max(same or fair, key=lambda baseline: fair[baseline].accuracy)
    theirs = fair[name]
    if not same:
        return (
            f"No baseline at no less benign accuracy was evaluated on the same images: {name} "
            f"keeps {_percent(theirs)} of other ones ({threat_model})."
        )
    if theirs.accuracy == mine.accuracy:
        how = "does equally well"
    else:
        how = "does better" if theirs.accuracy > mine.accuracy else "does worse"
        if theirs.low <= mine.high and mine.low <= theirs.high:
            how = f"{how}, within the 95 % intervals"
    return (
        f"The best baseline at no less benign accuracy, {name}, {how}: "
        f"{_percent(theirs)} ({threat_model})."
    )


def _images(grid: AccuracyGrid, name: str, threat_model: str, attacks: Sequence[str]) -> list[int]:
    """Of how many images the accuracies are, of which the first ones are taken.

    In two passes, those are attacked that are right as each defence encoded them.
    """
    attacked = [] if threat_model.startswith(TWO_PASS) else attacks
    named = [(BENIGN, NO_ATTACK), *((threat_model, attack) for attack in attacked)]
    rows = [grid.row(name, *each) for each in named]
    return [row["count"] if row else 0 for row in rows]


def _if_known(grid: AccuracyGrid, subject: str, threat_model: str, attacks: Sequence[str]) -> str:
    """The strongest adaptive or black-box attack within the epsilon of the attacks above."""
    prefix = TWO_PASS if threat_model.startswith(TWO_PASS) else ""
    if threat_model == prefix + _ADAPTIVE:
        return ""
    if not grid.attacks(prefix + _ADAPTIVE, subject):
        return (
            "No adaptive attack was run: the accuracy against an attacker who knows the defence "
            "is unknown."
        )
    compared = [grid.row(subject, threat_model, attack) for attack in attacks]
    bound = max((row["epsilon"] for row in compared if row and row["epsilon"]), default=1.0)
    known = [
        row
        for model in (prefix + _ADAPTIVE, prefix + _BLACK_BOX)
        for attack in grid.attacks(model, subject)
        if (row := grid.row(subject, model, attack)) and (row["epsilon"] or 0.0) <= bound
    ]
    if not known:
        return "No adaptive attack within the same epsilon was run."
    worst = min(known, key=lambda row: row["accuracy"])
    return (
        f"Where the attacker knows the defence, {worst['threat_model']} {worst['attack']} leaves "
        f"{100 * worst['accuracy']:.1f} % of {worst['count']} images right."
    )


def _certified(grid: AccuracyGrid, subject: str, sizes: Mapping[str, float]) -> list[str]:
    """What is proven, and what a pixel quantiser proves at how many bytes."""
    bounds = grid.attacks(CERTIFIED, subject)
    mine = grid.mean(subject, CERTIFIED, bounds) if bounds else None
    if mine is None:
        return [f"Nothing is certified for {subject}."]
    found = [
        f"Certified for {subject}, whatever the attacker knows: {_shares(grid, subject, bounds)} "
        f"of all images, at {_bytes(sizes, subject)} per image."
    ]
    proven = {n: grid.mean(n, CERTIFIED, bounds) for n in grid.baselines}
    rivals = {name: mean for name, mean in proven.items() if mean is not None}
    if not rivals:
        return [*found, "Nothing is certified for a baseline."]
    rival = max(rivals, key=lambda name: rivals[name].accuracy)
    theirs = f"{_shares(grid, rival, bounds)}, at {_bytes(sizes, rival)} per image"
    if rivals[rival].accuracy < mine.accuracy:
        return [*found, f"The best baseline at that, {rival}, certifies less: {theirs}."]
    if rivals[rival].accuracy == mine.accuracy:
        found.append(f"{rival} certifies as much, at {_bytes(sizes, rival)} per image.")
    else:
        found.append(f"Against L-inf, {rival} is the better lattice: {theirs}.")
    if subject in sizes and sizes[subject] < sizes.get(rival, 0.0):
        found.append(f"What {subject} has over it is the size of its files.")
    return found


def _shares(grid: AccuracyGrid, name: str, bounds: Sequence[str]) -> str:
    rows = [(bound, grid.row(name, CERTIFIED, bound)) for bound in bounds]
    return ", ".join(f"{100 * row['accuracy']:.1f} % {bound}" for bound, row in rows if row)


def _bytes(sizes: Mapping[str, float], name: str) -> str:
    return f"{sizes[name]:.0f} bytes" if name in sizes else "an unknown size"


def _trust(checks: Sequence[Mapping[str, Any]]) -> str:
    if not checks:
        return "No sanity check was run."
    failed = [check for check in checks if not check["passed"]]
    if not failed:
        return f"{'All' if len(checks) > 1 else 'The'} {_checks(len(checks))} passed."
    names = _listed([f"{check['defence']}: {check['name']}" for check in failed])
    share = f"{len(failed)} of {len(checks)} sanity checks"
    return f"{share} failed ({names}): do not trust these figures."


def _checks(count: int) -> str:
    return "sanity check" if count == 1 else f"{count} sanity checks"


def _under(threat_model: str, attacks: Sequence[str]) -> str:
    if len(attacks) == 1:
        return f"under {threat_model} {attacks[0]}"
    return f"under {len(attacks)} {threat_model} attacks ({_listed(attacks)}; mean)"


def _listed(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _percent(mean: Mean) -> str:
    return f"{100 * mean.accuracy:.1f} %"
