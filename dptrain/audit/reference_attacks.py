"""Attacks that compare a model with references, and how well each does on models whose members are known.

Every reference is a target, too: attacked with the references of the other pairs, it says how far an attack's figure
moves from one training to the next, which no interval over the rows of one model can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dptrain.audit.bavaria import bavaria_t
from dptrain.audit.lira import lira_offline, lira_online
from dptrain.audit.rmia import best_offset, rmia
from dptrain.audit.roc import needed_for, roc_curve, tpr_at
from dptrain.audit.signals import Signals

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

CHOOSING_TARGETS = 8
"""References on which RMIA's a is chosen, at most."""
ATTACKS = ("lira_online", "lira_offline", "rmia", "bavaria")
FEWEST_PAIRS = 4
"""Pairs from which on training may stop because the interval between models is narrow."""


@dataclass(frozen=True)
class References:
    """What K references say of U units."""

    signals: Signals  # (K, U)
    included: Mask  # (K, U)
    pair: NDArray[np.int64]  # (K,): references of one number are halves of each other

    def without(self, pair: int) -> References:
        """All but one pair: what may attack that pair's own models."""
        kept = self.pair != pair
        return References(
            Signals(self.signals.phi[kept], self.signals.log_p[kept]), self.included[kept], self.pair[kept]
        )


def scores(
    target: Signals, references: References, offset: float, wanted: Sequence[str] = ATTACKS
) -> dict[str, Floats]:
    """The wanted attacks' scores (U,), higher is more like a member.

    Args:
        target: (U,) of the model attacked.
        references: of pairs that the target is not in; every unit is in one half of each.
        offset: RMIA's a.
        wanted: names among ``ATTACKS``.
    """
    phi, log_p, included = references.signals.phi, references.signals.log_p, references.included
    attacks: dict[str, Callable[[], Floats]] = {
        "lira_online": lambda: lira_online(target.phi, phi, included),
        "lira_offline": lambda: lira_offline(target.phi, phi, included),
        "rmia": lambda: rmia(target.log_p, log_p, included, offset),
        "bavaria": lambda: bavaria_t(target.phi, phi, included),
    }
    return {name: attacks[name]() for name in wanted}


def choose_offset(references: References) -> float:
    """RMIA's a: the best on average over (at most 8) references, each attacked by the other pairs. The audited model
    and its members have no part in it. One half where there is one pair alone."""
    pairs = np.unique(references.pair)
    if len(pairs) < 2:
        return 0.5

    chosen = range(min(len(references.pair), CHOOSING_TARGETS))
    others = [references.without(int(references.pair[k])) for k in chosen]

    def auc(a: float) -> float:
        found = []
        for k in chosen:
            made = rmia(references.signals.log_p[k], others[k].signals.log_p, others[k].included, a)
            found.append(roc_curve(made[references.included[k]], made[~references.included[k]]).auc)
        return float(np.mean(found))

    return best_offset(auc)


def between_models(
    references: References,
    offset: float,
    fprs: Sequence[float],
    confidence: float,
    wanted: Sequence[str] = ATTACKS,
) -> dict[str, list[dict[str, float]]]:
    """Each attack's mean TPR over references as targets, with its interval between models.

    The two models of a pair trained on halves of each other and are averaged before anything is counted: P pairs are
    P observations, and the interval is ``mean_interval`` of them (it assumes that pairs are independent trainings and
    their TPRs near normal; they share the other pairs as references, which it leaves out of account).

    Returns:
        attack -> one entry a rate: "fpr", "targets", "tpr", "sd" over targets, "low" and "high". Nothing under 2 pairs;
        a rate that some target's non-members cannot support is left out.
    """
    pairs = np.unique(references.pair)
    fewest = int((~references.included).sum(axis=1).min())
    fprs = [fpr for fpr in fprs if fewest >= needed_for(fpr)]
    if len(pairs) < 2 or not fprs:
        return {}
    found: dict[str, list[list[float]]] = {name: [] for name in wanted}
    for k in range(len(references.pair)):
        target = Signals(references.signals.phi[k], references.signals.log_p[k])
        made = scores(target, references.without(int(references.pair[k])), offset, wanted)
        inside = references.included[k]
        for name, values in made.items():
            roc = roc_curve(values[inside], values[~inside])
            found[name].append([tpr_at(roc, fpr) for fpr in fprs])
    bars = {}
    for name, rows in found.items():
        table = np.array(rows)  # (K, F)
        means = np.array([table[references.pair == pair].mean(axis=0) for pair in pairs])
        low, high = mean_interval(means, confidence)
        bars[name] = [
            {
                "fpr": fpr,
                "targets": len(rows),
                "tpr": float(table[:, f].mean()),
                "sd": float(table[:, f].std(ddof=1)),
                "low": max(0.0, float(low[f])),
                "high": min(1.0, float(high[f])),
            }
            for f, fpr in enumerate(fprs)
        ]
    return bars


def mean_interval(values: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Student's interval of a mean, at half the error, because training may stop as soon as it is narrow enough.

    Stopping there favours samples whose deviation came out small: at the whole error it covers 91 % where 95 % is said
    (Chow & Robbins 1965 show that the loss goes away for narrow intervals only). At half the error simulated normal
    values, looked at after every pair from ``FEWEST_PAIRS`` on, are covered in at least 95 % where 95 % is said,
    whatever their deviation (91 % for 90 %; at 99 % it is 98.7 %).

    Args:
        values: (P,) or (P, F), a column by itself; P at least 2.
        confidence: in (0, 1).

    Returns:
        Low and high ends, () or (F,).
    """
    from scipy.stats import t as student

    count, middle = len(values), values.mean(axis=0)
    width = student.ppf(1 - (1 - confidence) / 4, count - 1) * values.std(axis=0, ddof=1) / math.sqrt(count)
    return middle - width, middle + width
