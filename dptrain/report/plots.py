"""Figures as SVG text to be put into a page: no scripts, no external references, the same bytes for the same run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dptrain.report.drawing import BLUE, GREY, LINES, STYLE, VERMILION, new_figure, svg_text
from dptrain.report.facts import NAMES
from dptrain.report.phrases import epsilon_up, is_number, rate, small
from dptrain.report.record import RunRecord
from dptrain.report.roc_data import curves_of, legend_name
from dptrain.report.tradeoff import draw_tradeoff, tradeoff_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROC_FLOOR = 1e-4
BANDED = "rmia"
"""The attack whose curve gets a band; the last one drawn where it was not made."""


def figures(record: RunRecord) -> dict[str, str]:
    """Every figure the run has data for: name -> SVG text.

    ``progress`` (score and ε over steps), ``tradeoff`` (score against ε), ``errors`` (the promise's trade-off
    curve, in the internal tier with the attacks), ``roc`` (attacks, internal tier only).
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        made = {"progress": _progress(record), "tradeoff": _tradeoff(record)}
        made |= {"errors": draw_tradeoff(record), "roc": _roc(record)}
        return {name: svg_text(name, *drawn) for name, drawn in made.items() if drawn is not None}


def allowed_region(epsilon: float, delta: float, fpr: list[float]) -> tuple[list[float], list[float]]:
    """Lowest and highest true-positive rate that an (ε, δ) promise admits at each false-positive rate.

    For any test of one unit's presence: tpr <= e^ε fpr + δ and 1-fpr <= e^ε (1-tpr) + δ, and the same with the two
    rates exchanged (Kairouz, Oh & Viswanath 2015, Theorem 2.1; Wasserman & Zhou 2010).

    >>> low, high = allowed_region(0.0, 0.0, [0.25])
    >>> low == high == [0.25]
    True
    """
    grow, shrink = math.exp(min(epsilon, 700.0)), math.exp(-min(epsilon, 700.0))
    high = [min(1.0, grow * x + delta, 1.0 - shrink * (1.0 - delta - x)) for x in fpr]
    low = [max(0.0, shrink * (x - delta), 1.0 - delta - grow * (1.0 - x)) for x in fpr]
    return low, high


def _score(record: RunRecord) -> str | None:
    """The metric drawn over steps."""
    for name in ("test_accuracy", "test_mae", "public_loss"):
        if record.series(name)[0]:
            return name
    return None


def _progress(record: RunRecord) -> tuple[Figure, str] | None:
    """Score above, ε below, one axis of steps. Without privacy the score alone."""
    name = _score(record)
    if name is None:
        return None
    steps, values = record.series(name)
    spent_steps, spent = record.series("epsilon") if record.private else ([], [])
    figure = new_figure(3.7 if spent else 2.6)
    axes = figure.subplots(2 if spent else 1, 1, sharex=True, squeeze=False)[:, 0]
    axes[0].plot(steps, values, color=BLUE, marker="o", markersize=3.5)
    _axis_of_score(axes[0], name)
    if spent:
        axes[1].plot(spent_steps, spent, color=VERMILION, marker="o", markersize=3.5)
        axes[1].set_ylabel("ε spent")
        axes[1].set_ylim(bottom=0)
        budget = record.get("plan.target_epsilon") or record.get("plan.epsilon")
        if is_number(budget):
            axes[1].axhline(budget, color=GREY, linestyle="--", linewidth=1.2)
            place = {"xycoords": axes[1].get_yaxis_transform(), "textcoords": "offset points", "va": "top"}
            axes[1].annotate(f"budget {epsilon_up(budget)}", (0.01, budget), (0, -4), **place)
            axes[1].set_ylim(top=1.08 * max([budget, *spent]))
    axes[-1].set_xlabel("step")
    axes[-1].set_xlim(left=0)
    return figure, f"{_label(name)} and ε over steps" if spent else f"{_label(name)} over steps"


def _tradeoff(record: RunRecord) -> tuple[Figure, str] | None:
    """Score against the ε spent when it was measured."""
    name = _score(record)
    if name is None or not record.private:
        return None
    lines = [m for m in record.metrics if is_number(m.get("epsilon")) and is_number(m.get(name))]
    if len({m["epsilon"] for m in lines}) < 2:  # of a search nothing is out, and nothing is spent, before all of it is
        return None
    figure = new_figure(3.7)
    axes = figure.subplots()
    axes.plot([m["epsilon"] for m in lines], [m[name] for m in lines], color=BLUE, marker="o", markersize=3.5)
    axes.plot(lines[-1]["epsilon"], lines[-1][name], color=VERMILION, marker="o", markersize=8, linestyle="none")
    if name == "test_accuracy":
        final = f"{100 * lines[-1][name]:.1f} % at ε {epsilon_up(lines[-1]['epsilon'])}"
        backed = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}  # a flat curve may pass there
        axes.text(0.98, 0.05, final, transform=axes.transAxes, ha="right", color=VERMILION, bbox=backed)
    _axis_of_score(axes, name)
    axes.set_xlabel("ε spent")
    axes.set_xlim(left=0)
    return figure, f"{_label(name)} against ε"


def _roc(record: RunRecord) -> tuple[Figure, str] | None:
    """ROC of the attacks on log axes, over the region that the claim allows."""
    curves = curves_of(record)
    if not curves:
        return None
    floor = _floor(record)
    figure = new_figure(4.5)
    axes = figure.subplots()
    grid = [floor * (1.0 / floor) ** (i / 200) for i in range(201)]
    epsilon, delta = record.audit.get("epsilon_claimed"), record.audit.get("delta")
    if is_number(epsilon) and is_number(delta):
        low, high = allowed_region(epsilon, delta, grid)
        label = f"allowed by ε {epsilon_up(epsilon)}, δ {small(delta)}"
        axes.fill_between(grid, [max(x, floor) for x in low], high, color=BLUE, alpha=0.13, linewidth=0, label=label)
        axes.plot(grid, high, color=BLUE, linewidth=1.0, alpha=0.7)
    curve = tradeoff_of(record)
    if curve is not None:
        best = [curve.drawn(rate) for rate in grid]
        axes.plot(grid, best, color=BLUE, linewidth=1.6, label="allowed by the whole trade-off curve")
    axes.plot(grid, grid, color=GREY, linewidth=1.2, linestyle="--", label="guessing")
    for index, (name, fpr, tpr) in enumerate(curves):
        colour, dash = LINES[index % len(LINES)]
        shown = [(max(x, floor), max(y, floor)) for x, y in zip(fpr, tpr, strict=False)]
        axes.plot(
            *zip(*shown, strict=True), color=colour, linestyle=dash, drawstyle="steps-post", label=legend_name(name)
        )
    _band(axes, record, next((curve for curve in curves if curve[0] == BANDED), curves[-1]), floor)
    axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1))
    ticks = [10.0**k for k in range(math.ceil(math.log10(floor) - 1e-9), 1)]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [rate(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set(xlabel="non-members called members (false positives)", ylabel="members found (true positives)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure, "ROC of the attacks on log axes, over the region that the promise allows"


def _band(axes: Axes, record: RunRecord, curve: tuple[str, list[float], list[float]], floor: float) -> None:
    """Clopper-Pearson's interval of every true-positive rate of one curve, given its threshold."""
    from scipy.special import betaincinv

    name, fpr, tpr = curve
    members, confidence = record.audit.get("members"), record.audit.get("confidence", 0.95)
    if not (is_number(members) and members >= 1 and is_number(confidence)):
        return
    side, points = (1 - confidence) / 2, []
    for x, y in zip(fpr, tpr, strict=True):
        found = min(members, max(0, round(y * members)))
        low = float(betaincinv(found, members - found + 1, side)) if found else 0.0
        high = float(betaincinv(found + 1, members - found, 1 - side)) if found < members else 1.0
        points.append((max(x, floor), max(low, floor), max(high, floor)))
    rates, lows, highs = zip(*points, strict=True)
    label = f"{rate(confidence)} band of {legend_name(name)}"
    axes.fill_between(rates, lows, highs, step="post", color=GREY, alpha=0.2, linewidth=0, label=label)


def _floor(record: RunRecord) -> float:
    """Where the log axes begin: the decade of one row in the smaller sample."""
    sizes = [n for n in (record.audit.get("members"), record.audit.get("non_members")) if is_number(n) and n >= 1]
    if not sizes:
        return ROC_FLOOR
    return max(ROC_FLOOR, min(0.1, 10.0 ** math.floor(math.log10(1.0 / min(sizes)) + 1e-9)))


def _axis_of_score(axes: Axes, name: str) -> None:
    axes.set_ylabel(_label(name))
    if name == "test_accuracy":
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))


def _label(name: str) -> str:
    return NAMES.get(name, name)
