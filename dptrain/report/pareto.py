"""The figure of a comparison: score against ε, the runs that nothing beats joined by a line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptrain.report.drawing import BLUE, GREY, STYLE, VERMILION, new_figure, svg_text
from dptrain.report.facts import NAMES, SHARES
from dptrain.report.phrases import percent, plain, small

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERS = 30
"""Points beyond which only those on the front carry their number."""
PLACES = [(7, 5), (7, -13), (-16, 5), (-16, -13), (-4, 10), (-4, -19)]
"""Where a point's number may stand beside it, in printer's points; the first free place is taken."""


def pareto_svg(panel: dict[str, Any], name: str = "pareto") -> str | None:
    """One panel of a comparison as SVG text; None where it has no point."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = _draw(panel)
        return None if figure is None else svg_text(name, figure, _title(panel))


def write_png(panel: dict[str, Any], path: Path) -> bool:
    """Writes the same figure as a PNG for slides, 200 dots an inch; False where the panel has no point."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = _draw(panel)
        if figure is None:
            return False
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    path.write_bytes(buffer.getvalue())
    return True


def score(metric: str, value: float) -> str:
    """A metric's value as tables and figures show it."""
    return percent(value) if metric in SHARES else plain(value)


def metric_label(name: str) -> str:
    """A metric's name for people."""
    return NAMES.get(name, name[:40])


def _title(panel: dict[str, Any]) -> str:
    return f"{metric_label(panel['metric'])} against ε at δ {small(panel['delta'])}"


def _draw(panel: dict[str, Any]) -> Figure | None:
    points = panel["points"]
    if not points:
        return None
    figure = new_figure(4.4, 6.8)
    axes = figure.subplots()
    _front(axes, panel)
    for best in (False, True):
        chosen = [p for p in points if p["on_front"] is best]
        style: dict[str, Any] = {"color": BLUE} if best else {"markerfacecolor": "white", "markeredgecolor": GREY}
        label = "no run is both more private and better" if best else "another run is at least as good on both"
        if chosen:
            place = ([p["epsilon"] for p in chosen], [p["value"] for p in chosen])
            axes.plot(*place, marker="o", markersize=8, linestyle="none", label=label, zorder=3, **style)
    _axes(axes, panel)
    for index, baseline in enumerate(sorted({b["value"] for b in panel["baselines"]})):
        text = f"without privacy: {score(panel['metric'], baseline)}" if index == 0 else None
        axes.axhline(baseline, color=VERMILION, linestyle="--", linewidth=1.6, label=text)
    figure.legend(loc="outside lower center", ncols=2)
    figure.draw_without_rendering()
    _number(axes, [p for p in points if p["on_front"] or len(points) <= MOST_NUMBERS], points)
    return figure


def _front(axes: Axes, panel: dict[str, Any]) -> None:
    """The best score to be had for at most so much ε, as stairs."""
    best = sorted({(p["epsilon"], p["value"]) for p in panel["points"] if p["on_front"]})
    if len(best) > 1:
        axes.plot(*zip(*best, strict=True), color=BLUE, linewidth=1.6, alpha=0.6, drawstyle="steps-post")


def _axes(axes: Axes, panel: dict[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

    unit = panel["unit"] or "unit"
    axes.set_xlabel(f"ε for one {unit[:24]} at δ = {small(panel['delta'])}   (left: more private)")
    axes.set_ylabel(metric_label(panel["metric"]))
    if panel["metric"] in SHARES:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    epsilons = [p["epsilon"] for p in panel["points"]]
    low, high = min(epsilons), max(epsilons)
    if low > 0 and high / low > 4:
        axes.set_xscale("log")
        ticks = [m * 10.0**k for k in range(-6, 7) for m in (1, 2, 5) if low / 1.6 <= m * 10.0**k <= high * 1.6]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(low / 1.5, high * 1.5)
    else:
        axes.set_xlim(0, 1.15 * high or 1)
    axes.margins(y=0.14)


def _number(axes: Axes, numbered: list[dict[str, Any]], points: list[dict[str, Any]]) -> None:
    """Writes each run's number where it covers no other number and no point; stays silent where there is no room."""
    dots = axes.figure.dpi / 72
    taken = [tuple(axes.transData.transform((p["epsilon"], p["value"]))) for p in points]
    for point in sorted(numbered, key=lambda p: not p["on_front"]):
        x, y = axes.transData.transform((point["epsilon"], point["value"]))
        for right, up in PLACES:
            middle = (x + (right + 5) * dots, y + (up + 4) * dots)
            if all(abs(middle[0] - a) > 11 * dots or abs(middle[1] - b) > 9 * dots for a, b in taken):
                place = {"xytext": (right, up), "textcoords": "offset points"}
                weight = "bold" if point["on_front"] else "normal"
                axes.annotate(str(point["number"]), (point["epsilon"], point["value"]), fontweight=weight, **place)
                taken.append(middle)
                break
