"""What the promise leaves an attacker: the least share of members that any test misses, at each rate of false alarms.

The trade-off function f of a mechanism is the lowest type II error of any test of one unit's presence at type I error
alpha. An (epsilon, delta) promise bounds it from below by two lines, and a mechanism that keeps several promises by the
highest of all of them. Source: Dong, Roth & Su 2022 (Gaussian differential privacy), Propositions 3 and 6.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dptrain.report.phrases import is_number
from dptrain.report.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DELTAS = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.02, 0.04, 0.07, *(k / 20 for k in range(2, 20)))
"""Where a guarantee is read for its curve."""
READ_AT = (0.001, 0.01, 0.05, 0.1)
"""Rates of false alarms that are put into words."""
GRID = sorted({*READ_AT, *(i / 400 for i in range(401)), *(10 ** (-5 + i / 40) for i in range(201))})
"""Rates of false alarms at which the curve is computed: evenly, and evenly in their logarithm."""
SOURCES = {
    "points": "from the points in the statement",
    "event": "computed from the mechanism that the statement names, rounded against the promise",
    "pairs": "from the statement's ε at each δ: the true curve is no lower",
}


@dataclass(frozen=True)
class Tradeoff:
    """A lower bound of f at ``alphas``, and which part of the statement it was made from (a key of ``SOURCES``)."""

    alphas: list[float]
    betas: list[float]
    source: str

    def missed(self, alpha: float) -> float:
        """The least share of members missed at this rate of false alarms, on the safe side between points."""
        return max((b for a, b in zip(self.alphas, self.betas, strict=True) if a >= alpha), default=0.0)

    def drawn(self, alpha: float) -> float:
        """The most members found, as both figures draw it: straight lines between points."""
        from bisect import bisect_left

        right = bisect_left(self.alphas, alpha)
        if right in (0, len(self.alphas)) or self.alphas[right] == alpha:
            return self.found(alpha)
        before, after = self.alphas[right - 1], self.alphas[right]
        share = (alpha - before) / (after - before)
        return 1.0 - (self.betas[right - 1] + share * (self.betas[right] - self.betas[right - 1]))

    def found(self, alpha: float) -> float:
        """The most members found at this rate of false alarms."""
        return 1.0 - self.missed(alpha)


def tradeoff_of(record: RunRecord) -> Tradeoff | None:
    """The curve of a private run; None without a promise.

    Points in the statement come first. Without them the curve is computed from the statement's event, if the claim is
    that event's (a run that stopped early or was chosen among trials claims more), else bounded by its (δ, ε) pairs.
    """
    if not record.private:
        return None
    points = _points(record)
    if len(points) > 2:
        return Tradeoff([a for a, _ in points], [b for _, b in points], "points")
    pairs = _pairs(record)
    if not pairs:
        return None
    read = _from_event(record)
    return Tradeoff(GRID, lower_bound(tuple(pairs) + read, GRID), "event" if read else "pairs")


def lower_bound(pairs: Sequence[tuple[float, float]], alphas: Sequence[float]) -> list[float]:
    """The highest type II error that (δ, ε) pairs, all of them kept, guarantee at each type I error.

    >>> lower_bound([(0.0, 0.0)], [0.25])
    [0.75]
    """
    best = [0.0] * len(alphas)
    for delta, epsilon in pairs:
        grow, shrink = math.exp(min(epsilon, 700.0)), math.exp(-min(epsilon, 700.0))
        for index, alpha in enumerate(alphas):
            best[index] = max(best[index], 1.0 - delta - grow * alpha, shrink * (1.0 - delta - alpha))
    return best


def readings(curve: Tradeoff) -> list[tuple[float, float]]:
    """(rate of false alarms, most members found at it) for a few rates."""
    return [(alpha, curve.found(alpha)) for alpha in READ_AT]


def draw_tradeoff(record: RunRecord) -> tuple[Figure, str] | None:
    """Type II against type I error: what the promise rules out, and in the internal tier where attacks came to lie."""
    from dptrain.report.drawing import BLUE, GREY, new_figure

    curve = tradeoff_of(record)
    if curve is None:
        return None
    figure = new_figure(5.6)
    axes = figure.subplots()
    axes.fill_between(curve.alphas, curve.betas, color=GREY, alpha=0.16, linewidth=0, label="ruled out by the promise")
    axes.plot(curve.alphas, curve.betas, color=BLUE, linewidth=2.2, label="the best test that the promise allows")
    axes.plot([0, 1], [1, 0], color=GREY, linestyle="--", linewidth=1.2, label="guessing")
    _attacks(axes, record)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    from matplotlib.ticker import PercentFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set(xlabel="non-members called members (type I error)", ylabel="members missed (type II error)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure, "Trade-off curve: members missed against false alarms"


def _attacks(axes: Axes, record: RunRecord) -> None:
    """The audit's ROC curves, upside down; a public record holds no audit."""
    from dptrain.report.drawing import LINES
    from dptrain.report.roc_data import curves_of, legend_name

    for index, (name, fpr, tpr) in enumerate(curves_of(record)):
        colour, dash = LINES[index % len(LINES)]
        style = {"color": colour, "linestyle": dash, "linewidth": 1.5, "drawstyle": "steps-post"}
        axes.plot(fpr, [1.0 - rate for rate in tpr], label=legend_name(name), **style)


def _points(record: RunRecord) -> list[tuple[float, float]]:
    """(α, β) points of the statement, in rising order."""
    pairs = [(row.get("alpha"), row.get("beta")) for row in _rows(record, "tradeoff")]
    return sorted((a, b) for a, b in pairs if is_number(a) and is_number(b) and 0 <= a <= 1 and 0 <= b <= 1)


def _rows(record: RunRecord, name: str) -> list[dict[str, Any]]:
    listed = record.get(f"statement.guarantee.{name}")
    return [row for row in (listed if isinstance(listed, list) else []) if isinstance(row, dict)]


def _pairs(record: RunRecord) -> list[tuple[float, float]]:
    """(δ, ε) of the statement."""
    rows = _rows(record, "epsilon_at")
    rows.append({name: record.get(f"statement.guarantee.{name}") for name in ("delta", "epsilon")})
    pairs = [(row.get("delta"), row.get("epsilon")) for row in rows]
    return [(float(d), float(e)) for d, e in pairs if is_number(d) and is_number(e) and 0 <= d <= 1 and e >= 0]


def _from_event(record: RunRecord) -> tuple[tuple[float, float], ...]:
    """The event read at many δ, where the claim is the event's own and no higher; empty elsewhere."""
    event, tuning = record.get("statement.mechanism.event"), record.get("statement.tuning")
    tuned = isinstance(tuning, dict) and tuning.get("strategy") and tuning.get("public_only") is not True
    if record.get("statement.guarantee.claim") != "planned" or tuned or not isinstance(event, dict) or not event:
        return ()
    return _read_event(json.dumps(event, sort_keys=True), str(record.get("statement.adjacency.relation")))


@lru_cache(maxsize=8)
def _read_event(event: str, adjacency: str) -> tuple[tuple[float, float], ...]:
    from dptrain.errors import ConfigError
    from dptrain.privacy import accounting
    from dptrain.privacy.plan import NOISE_RESERVE

    if adjacency not in ("zero_out", "add_remove"):
        return ()
    try:
        shares = [delta * (1.0 - NOISE_RESERVE) for delta in DELTAS]
        values = accounting.epsilons(json.loads(event), shares, adjacency, accounting.COARSE)
    except ConfigError:
        return ()  # an event of a newer schema, or steps too many for these deltas: the pairs bound the curve
    return tuple(zip(DELTAS, values, strict=True))
