"""How often each bound is above the truth, by simulation: its certificate."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import bdtrc

from dptrain.audit.bounds.bound import Bound, Coins, Floats
from dptrain.audit.bounds.clopper_pearson import clopper_pearson
from dptrain.audit.bounds.f_dp import f_dp
from dptrain.audit.bounds.families import ScoreFamily
from dptrain.audit.bounds.gaussian import gaussian
from dptrain.audit.bounds.one_run import one_run
from dptrain.audit.bounds.optimal import optimal
from dptrain.audit.intervals import proportion_high, proportion_low

EXIT_ERROR = 0.01
"""Probability, at most, that correct bounds end the command with exit code 4."""

Compute = Callable[[Floats, Coins, float, float, ScoreFamily], Bound]


@dataclass(frozen=True)
class Certified:
    """A bound under test: how it is computed, and on which families its assumption holds."""

    compute: Compute
    holds: Callable[[ScoreFamily], bool]


BOUNDS: dict[str, Certified] = {
    "one_run": Certified(lambda s, b, d, c, _: one_run(s, b, d, c), lambda _: True),
    "f_dp": Certified(lambda s, b, d, c, _: f_dp(s, b, d, c), lambda f: f.gaussian_curve),
    "clopper_pearson": Certified(lambda s, b, d, c, _: clopper_pearson(s, b, d, c), lambda f: f.independent),
    "gaussian": Certified(
        lambda s, b, d, c, _: gaussian(s, b, d, c), lambda f: f.independent and f.gaussian_scores and f.gaussian_curve
    ),
    "optimal": Certified(lambda s, b, d, c, f: optimal(s, b, d, c, f.law), lambda f: f.own_law),
}


def simulate(
    family: ScoreFamily,
    names: Sequence[str],
    canaries: int,
    simulations: int,
    delta: float,
    confidence: float,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """One row a bound: what it found on the same simulated scores.

    A bound misses where it is above the family's true epsilon. "above_bar" is true where the assumption holds and the
    share of misses is above a = 1 - confidence by more than two standard errors, sqrt(a (1 - a) / simulations). A bound
    that misses in exactly a share a of all cases is there by chance about once in forty times, so that among many rows
    one is to be expected; ``broken`` allows for it.

    Args:
        family: where scores come from.
        names: of ``BOUNDS``.
        canaries: m.
        simulations: how many.
        delta: at which epsilon is meant.
        confidence: asked of every bound.
        seed: every family has a stream of its own, so leaving one out changes no other.
        tick: called after every simulation.

    Returns:
        "family", "bound", "true_epsilon", "assumption_holds", "missed", "simulations", "miscoverage", "low" and "high"
        (exact 95 % interval), "chance" (of so many misses or more, if a share a of all cases misses; exact), "allowed",
        "above_bar", "mean", "largest", "tightness" (mean / true; None where the truth is
        0) and "assumption".
    """
    rng = np.random.default_rng([seed, zlib.crc32(family.name.encode())])
    found: dict[str, list[float]] = {name: [] for name in names}
    said: dict[str, str] = {}
    for _ in range(simulations):
        scores, included = family.draw(rng, canaries)
        for name in names:
            bound = BOUNDS[name].compute(scores, included, delta, confidence, family)
            found[name].append(bound.epsilon)
            said[name] = bound.assumption
        tick()
    return [_row(family, name, np.array(found[name]), said[name], confidence) for name in names]


def _row(family: ScoreFamily, name: str, values: Floats, assumption: str, confidence: float) -> dict[str, Any]:
    count, missed = len(values), int((values > family.epsilon).sum())
    error = 1.0 - confidence
    allowed = error + 2.0 * math.sqrt(error * (1.0 - error) / count)
    holds = BOUNDS[name].holds(family)
    mean = float(values.mean())
    return {
        "family": family.name,
        "bound": name,
        "true_epsilon": family.epsilon,
        "assumption_holds": holds,
        "missed": missed,
        "simulations": count,
        "miscoverage": missed / count,
        "low": proportion_low(missed, count, 0.025),
        "high": proportion_high(missed, count, 0.025),
        "chance": float(bdtrc(missed - 1, count, error)) if missed else 1.0,
        "allowed": allowed,
        "above_bar": holds and missed / count > allowed,
        "mean": mean,
        "largest": float(values.max()),
        "tightness": mean / family.epsilon if family.epsilon > 0.0 else None,
        "assumption": assumption,
    }


def broken(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose bound misses too often although its assumption holds, by more than chance in so many rows explains.

    An exact binomial test of each row in which the assumption holds, the error shared among them (Bonferroni): correct
    bounds are all spared with probability at least 1 - ``EXIT_ERROR``, also where rows depend on each other.
    """
    tested = [row for row in rows if row["assumption_holds"]]
    return [row for row in tested if row["chance"] <= EXIT_ERROR / len(tested)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, fit for a terminal too."""
    found = {(row["family"], row["bound"]) for row in broken(rows)}
    head = ("family", "bound", "assumption", "above the truth", "95 % interval", "mean", "largest", "mean / true")
    lines = [head, tuple("---" for _ in head)]
    for row in rows:
        tight = "" if row["tightness"] is None else f"{row['tightness']:.2f}"
        stands = "holds" if row["assumption_holds"] else "does not hold"
        if row["above_bar"]:
            stands = "BROKEN" if (row["family"], row["bound"]) in found else "holds, above the bar"
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        numbers = f"{row['miscoverage']:.2%}", interval, f"{row['mean']:.3f}", f"{row['largest']:.2f}", tight
        lines.append((row["family"], row["bound"], stands, *numbers))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    shown = [[c.ljust(w) if c != "---" else "-" * w for c, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in shown)
