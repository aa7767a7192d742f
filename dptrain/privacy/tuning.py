"""A search that is charged: what is drawn once and sealed, and what it costs.

Guarantee (random search): let Q be one trial: a candidate drawn uniformly, training with it, its score. Every candidate
runs the same event, and the candidate is drawn without looking at the data and is part of the output, so Q has the
Renyi divergence of that event (a mixture over a public, independent draw). K is drawn once from the declared law,
independent of the data, and K fresh, independent trials are made; what leaves the building is the output of the trial
with the highest score, ties going to the first. Trials are exchangeable, so "the first of the tied" has the law of "one
of the tied at random", that is of a total order on (score, independent uniform number), as Papernot & Steinke 2022,
Theorems 2 and 6 require. Nothing else of the search is released: not K, not the other trials, not their scores.

A crash redraws neither K nor candidates: both are on disk before the first trial. A finished trial is never run again.
An interrupted one is discarded unseen and made anew with fresh draws and noise: since nothing of it reached anyone, and
as long as it was not the data that interrupted it, what is released has the law of an undisturbed search.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dptrain.config_tuning import TuningConfig
from dptrain.durable import create_once
from dptrain.errors import BudgetRefused, ConfigError
from dptrain.keystream import Keystream, Purpose
from dptrain.privacy import accounting
from dptrain.privacy.plan import Plan
from dptrain.privacy.selection import Trials, draw_trials, pick, quantile
from dptrain.run_folder import read_json
from dptrain.signing import canonical

SCHEMA = "dptrain.search/1"
MOST_COMPOSED = 10_000
"""Runs up to which the price of all of them is told before a sweep that is composed."""


@dataclass(frozen=True)
class Draws:
    """What was drawn for a search: one combination (an index an axis) a trial. Internal tier, sealed."""

    candidates: tuple[tuple[int, ...], ...]
    fingerprint: str
    run_id: str
    entry: int | None
    """The ledger's entry; None where no ledger is kept."""
    rows: str | None
    """Names the rows that the search runs on, under a key of its own."""


def draw_candidates(trials: Trials, axes: Sequence[int], keystream: Keystream) -> tuple[tuple[int, ...], ...]:
    """K combinations, K from the declared law, each uniform and independent, with replacement.

    Args:
        trials: the law of K.
        axes: number of values of each axis.
        keystream: the run's own; used once.
    """
    stream = keystream.open(Purpose.TRIALS, 0)
    number = draw_trials(trials, stream)
    return tuple(tuple(pick(size, stream) for size in axes) for _ in range(number))


def fingerprint(settings: dict[str, Any], axes: Sequence[Sequence[str]], event: accounting.Event) -> str:
    """Names what a search is, so that only the same search goes on with its draws."""
    whole = {"settings": settings, "axes": [list(values) for values in axes], "event": event}
    return hashlib.sha256(canonical(whole)).hexdigest()


def seal(path: Path, draws: Draws) -> None:
    """Writes the draws, once, whole, and on disk when it returns; of two processes at once, one alone succeeds."""
    rest = {"entry": draws.entry, "rows": draws.rows, "candidates": [list(c) for c in draws.candidates]}
    facts = {"schema": SCHEMA, "fingerprint": draws.fingerprint, "run_id": draws.run_id, **rest}
    if not create_once(path, json.dumps(facts, indent=2, allow_nan=False).encode() + b"\n"):
        raise ConfigError("search", path, "was drawn already", "a search is never drawn twice")


def unseal(path: Path, expected: str) -> Draws:
    """The draws of a search that was begun before.

    Raises:
        BudgetRefused: it was another search: its candidates, settings or price differ.
    """
    found = read_json(path)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ConfigError("search", path, "is of another kind", "name a new run.dir")
    if found["fingerprint"] != expected:
        raise BudgetRefused(
            "run.dir",
            path.parent.parent,
            "holds a search with other settings, whose draws cannot be used for this one",
            "repeat the command it was started with, or name a new run.dir and pay anew",
        )
    candidates = tuple(tuple(int(place) for place in row) for row in found["candidates"])
    return Draws(candidates, found["fingerprint"], found["run_id"], found["entry"], found["rows"])


def best_of(scores: Sequence[float | None]) -> int:
    """The trial with the highest score; of several, the first. None (no finite score) is the lowest."""
    values = [-math.inf if score is None or math.isnan(score) else score for score in scores]
    return values.index(max(values))


def grid_plan(plans: Sequence[Plan], winner: int) -> Plan:
    """The winner's plan when all the plans are carried out and all may be seen: everything is composed.

    Raises:
        ConfigError: a plan promises nothing, or something of another kind.
    """
    plan = plans[winner]
    if plan.mechanism is None:
        raise ConfigError("privacy", "off", "has no price to compose", "sweep it without tuning.strategy")
    others = []
    for place, other in enumerate(plans):
        kind = (other.delta, other.adjacency, other.unit, other.max_rows_per_unit, other.mechanism is not None)
        if kind != (plan.delta, plan.adjacency, plan.unit, plan.max_rows_per_unit, True):
            raise ConfigError(
                "privacy", "", "delta, adjacency or unit differ between runs of one grid", "run them one by one"
            )
        if place != winner and other.mechanism is not None:
            others.append(other.mechanism.event())
    joined = accounting.composed(others) if others else None
    beside = tuple(joined["events"] if joined["type"] == "composed" else [joined]) if joined else ()
    mechanism = replace(plan.mechanism, beside=(*plan.mechanism.beside, *beside))
    epsilon = accounting.epsilon(mechanism.event(), plan.priced_delta, plan.adjacency)
    return replace(plan, mechanism=mechanism, epsilon=epsilon)


def alone(plan: Plan) -> float:
    """Epsilon of the training of one trial, had it been the only one, and nothing else released."""
    assert plan.mechanism is not None
    steps = accounting.self_composed(plan.steps, plan.mechanism.step_event())
    return accounting.epsilon(steps, plan.priced_delta, plan.adjacency)


def tuning_block(plan: Plan, settings: TuningConfig) -> dict[str, Any] | None:
    """The statement's block on tuning; None where no charged or public sweep chose the run's settings.

    Args:
        plan: its price covers the whole search.
        settings: ``tuning`` of the config.
    """
    if settings.public:
        return dict(PUBLIC)
    if plan.mechanism is None or settings.strategy not in ("random", "grid"):
        return None
    trials = plan.mechanism.trials
    return {
        "strategy": settings.strategy,
        "trials_distribution": None if trials is None else trials.describe,
        "epsilon_before": alone(plan),
        "epsilon_after": plan.epsilon,
        "public_only": False,
    }


PUBLIC = {
    "strategy": "public",
    "trials_distribution": None,
    "epsilon_before": None,
    "epsilon_after": None,
    "public_only": True,
}
"""The block of a run in a sweep that touched public or synthetic rows only."""


def told_composed(plan: Plan, runs: int) -> list[tuple[str, str]]:
    """What runs one by one cost, before the first of them starts; all are taken to cost what the first one does."""
    assert plan.mechanism is not None and plan.epsilon is not None
    at = f"at delta {plan.delta:g}"
    lines = [
        ("one run", f"epsilon {plan.epsilon:.4f} {at}"),
        ("sweep", f"composed: {runs} runs, as far as the line says; each may be seen, each is charged for itself"),
    ]
    if 1 < runs <= MOST_COMPOSED:
        events = accounting.composed([plan.mechanism.event()] * runs)
        together = accounting.epsilon(events, plan.priced_delta, plan.adjacency, accounting.COARSE)
        lines += [("together", f"epsilon {together:.4f} {at}, if each costs what the first does; the account adds up")]
    return lines


def told_before(
    plan: Plan, strategy: str, runs: int | None, folder: Path, goes_on: bool = False
) -> list[tuple[str, str]]:
    """What a search costs, label and text a line, for the console before anything is read or spent.

    Args:
        plan: its price covers the whole search.
        strategy: ``random`` or ``grid``.
        runs: of a grid.
        folder: of the search.
        goes_on: the search was begun before, and is charged.
    """
    assert plan.mechanism is not None and plan.epsilon is not None
    trials, at = plan.mechanism.trials, f"at delta {plan.delta:g}"
    lines = [("one run", f"epsilon {alone(plan):.4f} {at}")]
    if trials is not None:
        law = f"{trials.describe}; half of all draws are at most {quantile(trials, 0.5)}, 19 of 20 at most "
        lines += [
            ("search", f"random: the best of a secret number of trials ({law}{quantile(trials, 0.95)})"),
            ("its winner", f"epsilon {plan.epsilon:.4f} {at}: charged whole, and what the statement will say"),
            ("sealed", f"{folder}/internal: the trials, their number and scores; that price does not cover them"),
            (
                "unseen",
                "trials run without a word; how long they take hints at how many there are: keep it inside",
            ),
        ]
        if goes_on:
            lines += [("goes on", "as it was begun in that folder: nothing is drawn anew, nothing is charged again")]
    else:
        count = "several" if runs is None else f"{runs}"
        lines += [
            ("search", f"{strategy}: {count} runs, each of which may be seen"),
            ("together", f"epsilon {plan.epsilon:.4f} {at}: charged whole, and what the statement will say"),
        ]
    return lines + [("note", warning) for warning in plan.warnings]
