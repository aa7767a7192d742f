"""The figures of an account's page: where the budget went, when, and by which run."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from dptrain.report import budget_facts as facts
from dptrain.report.budget_read import Summary
from dptrain.report.drawing import BLUE, GREEN, GREY, PURPLE, STYLE, VERMILION, new_figure, svg_text
from dptrain.report.phrases import epsilon_up, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"final": BLUE, "trial": VERMILION, "evaluation": GREEN, "audit": PURPLE, "debug": GREY}
MOST_BARS = 14
"""Bars beyond which the smallest are drawn as one."""
NAME = 34
INK, REST = "#1b2733", "#dde3e8"


def budget_figures(summary: Summary) -> dict[str, str]:
    """``course`` (spent over time, under the limit) and ``bars`` (one a run or sweep), where there is any."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        drawn = {}
        if len(_moments(summary)) > 1:
            drawn["course"] = (_course(summary), "what was spent over time, under the limit")
        if any(bar["part"] > 0 for bar in facts.bars(summary)):
            drawn["bars"] = (_bars(summary), "what each run or sweep spent of the account")
        return {name: svg_text(f"budget-{name}", figure, title) for name, (figure, title) in drawn.items()}


def _moments(summary: Summary) -> list[tuple[datetime, float, float]]:
    """(time, ε, limit) after each change; from the entries alone where the summary brings no history."""
    limit = float(summary["limit"]["epsilon"])
    rows = summary.get("history")
    if rows is None:
        rows = [
            {"time": e["created"], "epsilon": e["epsilon_account_after"], "limit": limit} for e in summary["entries"]
        ]
    return [(datetime.fromisoformat(str(row["time"])), float(row["epsilon"]), float(row["limit"])) for row in rows]


def _course(summary: Summary) -> Figure:
    """What was spent over time, as stairs under the limit; a dot where a run was admitted."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    moments = sorted(_moments(summary), key=lambda moment: moment[0])
    times: list[Any] = [moment[0] for moment in moments]
    figure = new_figure(3.6)
    axes = figure.subplots()
    axes.fill_between(times, [m[1] for m in moments], step="post", color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(times, [m[1] for m in moments], drawstyle="steps-post", color=BLUE)
    axes.plot(times, [m[2] for m in moments], drawstyle="steps-post", color=INK, linewidth=1.8)
    place: dict[str, Any] = {"xytext": (3, -4), "textcoords": "offset points", "va": "top"}
    axes.annotate(f"limit {epsilon_up(moments[0][2])}", (times[0], moments[0][2]), **place)
    _admissions(axes, summary)
    _room(axes, summary, times, moments[-1][1:])
    locator = AutoDateLocator(minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_ylabel("ε of the account")
    axes.set_ylim(0, 1.12 * max([*(m[1] for m in moments), *(m[2] for m in moments)]))
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def _room(axes: Axes, summary: Summary, times: list[Any], now: tuple[float, float]) -> None:
    """To the right of the last change: how many more runs the space under the limit holds."""
    spent, limit = now
    coming = summary.get("next")
    span = max(times[-1] - times[0], timedelta(seconds=1))
    axes.set_xlim(times[0] - 0.02 * span, times[-1] + 0.22 * span)
    end = times[-1] + 0.2 * span
    axes.plot([times[-1], end], [spent, spent], color=BLUE)
    axes.plot([times[-1], end], [limit, limit], color=INK, linewidth=1.8)
    axes.fill_between([times[-1], end], [spent, spent], color=BLUE, alpha=0.15, linewidth=0)
    if coming and limit > spent and not summary["frozen"]:
        middle = times[-1] + 0.12 * span
        arrow = {"arrowstyle": "<->", "color": GREY, "shrinkA": 2, "shrinkB": 2}
        axes.annotate("", (middle, limit), (middle, spent), arrowprops=arrow)
        words: dict[str, Any] = {"xytext": (-5, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
        axes.annotate(f"{coming['runs']:,} more", (middle, (spent + limit) / 2), **words)


def _admissions(axes: Axes, summary: Summary) -> None:
    size = 6 if len(summary["entries"]) <= 60 else 3.5
    for purpose, _, _ in facts.by_purpose(summary):
        chosen = [e for e in summary["entries"] if e["purpose"] == purpose and e["event"] is not None]
        if chosen:
            times: list[Any] = [datetime.fromisoformat(str(entry["created"])) for entry in chosen]
            colour, label = COLOURS.get(purpose, GREY), facts.NAMES.get(purpose, _short(purpose))
            after = [float(entry["epsilon_account_after"]) for entry in chosen]
            axes.plot(times, after, linestyle="none", marker="o", markersize=size, color=colour, label=label)


def _bars(summary: Summary) -> Figure:
    """One bar a run, sweeps as one, the newest at the bottom; beyond 14 the smallest together."""
    charged = [bar for bar in facts.bars(summary) if bar["part"] > 0]
    if len(charged) > MOST_BARS:
        kept = sorted(charged, key=lambda bar: -bar["part"])[: MOST_BARS - 1]
        small = [bar for bar in charged if not any(bar is one for one in kept)]
        rest = {
            "name": f"{len(small)} smaller ones",
            "purpose": "",
            "part": sum(b["part"] for b in small),
            "open": False,
        }
        charged = [bar for bar in charged if any(bar is one for one in kept)] + [rest]
    figure = new_figure(1.0 + 0.25 * max(4, len(charged)))
    axes = figure.subplots()
    for row, bar in enumerate(charged):
        colour = COLOURS.get(bar["purpose"], GREY)
        hatch = "////" if bar["open"] else None
        axes.barh(row, bar["part"], height=0.72, color="white" if hatch else colour, edgecolor=colour, hatch=hatch)
        text = epsilon_up(bar["part"]) + (" (open)" if bar["open"] else "")
        place: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 9.5}
        axes.annotate(text, (bar["part"], row), **place)
    axes.set_yticks(range(len(charged)), [_short(bar["name"]) for bar in charged])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.22 * max(bar["part"] for bar in charged))
    axes.set_xlabel("ε of the account that it takes up")
    return figure


def _short(name: str) -> str:
    """A name as an axis shows it: short, its ends kept, never read as a formula."""
    name = " ".join(printable(name).split())
    name = name if len(name) <= NAME else f"{name[: NAME // 2]}..{name[-(NAME // 2) + 2 :]}"
    return name.replace("$", r"\$") or "-"
