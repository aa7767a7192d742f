"""Advice on batch, steps and noise for the model and data at hand: made of public facts and made-up rows."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dptrain.config_plan import AdviceSettings, seconds_of
from dptrain.data.units import cap_table
from dptrain.errors import ConfigError
from dptrain.privacy.advice import (
    Question,
    Row,
    above_the_wall,
    best_buy,
    frontier,
    gaussian_mu,
    grid,
    likely_mu,
    priced,
    scaled_rate,
    telling,
    thinned,
)
from dptrain.privacy.mechanism import rest_of
from dptrain.training.bench import BLUR
from dptrain.training.bench_batch import largest_batch
from dptrain.training.bench_engine import Deadline
from dptrain.training.bench_step import PrivateStep
from dptrain.training.estimate import estimate_cost
from dptrain.training.made_up import made_up_batch
from dptrain.training.memory import MIB, peak, restart_peak
from dptrain.training.setup import Setup

MEMORY_SECONDS = 5.0
"""For seeking a larger physical batch that fits the memory."""


@dataclass(frozen=True)
class Pace:
    """What steps cost here, and how many rows fit."""

    seconds_per_row: float
    """Of a gradient; 0 where it is not known."""
    seconds_per_step: float
    """Of a step besides: its noise."""
    fits: int
    """Rows that a physical batch may have."""
    rows_per_unit: float
    """Rows that a unit brings on average, as far as public counts tell; else its cap."""
    source: str
    """Where all this is from, in words."""

    def layout(self, row: Row, rate: float, largest_unit: int) -> tuple[int, int]:
        """(physical batches of a step, rows of each): a draw two deviations above the expected one fits in them."""
        expected = row.batch * self.rows_per_unit
        draw = expected + 2 * math.sqrt(expected * (1 - rate))
        count = math.ceil(draw / self.fits)
        each = max(8 * math.ceil(draw / count / 8), largest_unit)
        return count, each

    def seconds(self, row: Row, rate: float, largest_unit: int) -> float:
        """Of the whole run, padding included; 0 where no time is known."""
        count, each = self.layout(row, rate, largest_unit)
        return row.steps * (count * each * self.seconds_per_row + self.seconds_per_step)


def advise(setup: Setup, settings: AdviceSettings) -> dict[str, Any]:
    """Weighs up rows of (batch, steps, noise) at the plan's epsilon, and recommends one.

    Guarantee: made of the declared size, the model, the settings and made-up rows; the source is not asked to load.

    Returns:
        plain data; see ``advice_text``.

    Raises:
        ConfigError: the limit pays for none of them.
    """
    question = the_question(setup, settings)
    pace = measure_pace(setup, settings)
    limit, largest = seconds_of(settings.compute), setup.plan.max_rows_per_unit

    def cost(row: Row) -> float:
        return pace.seconds(row, row.rate(question), largest) if pace.seconds_per_row else row.gradients

    cells = grid(question, settings.batches, settings.steps, _mu(setup, question))
    paid = [row for row in cells if limit is None or cost(row) <= limit]
    if not paid:
        least = min(cost(row) for row in cells)
        problem = f"pays for none of {len(cells)} choices; the cheapest takes about {least:.0f} s"
        raise ConfigError("advice.compute", settings.compute, problem, "raise it, or name smaller advice.batches")
    edge = frontier(above_the_wall(paid, question, settings.least_kept), question, cost)
    likely = best_buy(edge, question, cost, settings.tolerance)
    shown = thinned(telling(edge, likely, question), likely, settings.rows)
    rows = [priced(row, question) for row in shown]
    chosen = best_buy(rows, question, cost, settings.tolerance)
    own = as_configured(setup)
    facts = [_facts(row, question, pace, largest) for row in rows]
    return {
        "model": setup.spec.name,
        "data": setup.source.info.name,
        "part": None if setup.part is None else str(setup.part),
        "units": question.public_size,
        "unit": setup.plan.unit,
        "parameters": question.num_parameters,
        "epsilon": question.epsilon,
        "delta": setup.plan.delta,
        "limit_seconds": limit,
        "weighed": len(cells),
        "affordable": len(paid),
        "unlimited_bound": min(row.bound(question) for row in cells),
        "least_kept": settings.least_kept,
        "sample_term": question.sample_term,
        "pace": {"seconds_per_row": pace.seconds_per_row, "rows_that_fit": pace.fits, "source": pace.source},
        "rows_per_unit": pace.rows_per_unit,
        "probe": setup.config.finetune.train == "probe",
        "tolerance": settings.tolerance,
        "fewest_steps": settings.fewest_steps,
        "configured": _facts(own, question, pace, largest),
        "rows": facts,
        "recommended": rows.index(chosen),
        "overrides": overrides(setup, question, own, chosen, facts[rows.index(chosen)]["physical_batch_size"]),
        "caps": caps(setup, question, chosen, pace),
    }


def the_question(setup: Setup, settings: AdviceSettings) -> Question:
    """The public facts of a run. Its epsilon is the target, or what the configured noise and length come to."""
    plan = setup.plan
    assert plan.mechanism is not None and plan.epsilon is not None
    return Question(
        public_size=plan.public_size,
        num_parameters=setup.num_parameters,
        epsilon=plan.epsilon if plan.target_epsilon is None else plan.target_epsilon,
        delta=plan.priced_delta,
        adjacency=plan.adjacency,
        sensitivity_slack=plan.mechanism.sensitivity_slack,
        fewest_steps=settings.fewest_steps,
        whole=rest_of(plan.mechanism.beside, plan.mechanism.trials),
    )


def as_configured(setup: Setup) -> Row:
    """The row that the configuration itself is."""
    plan = setup.plan
    assert plan.mechanism is not None
    sigma = plan.mechanism.noise_multiplier
    return Row(batch=plan.expected_batch_size, steps=plan.steps, noise_multiplier=sigma, epsilon=plan.epsilon)


def _mu(setup: Setup, question: Question) -> float:
    """Privacy that is left for the steps: what epsilon allows, or less where noisy looks or a search take a part."""
    whole = gaussian_mu(question.epsilon, question.delta)
    assert setup.plan.mechanism is not None
    if not setup.plan.mechanism.beside and setup.plan.mechanism.trials is None:
        return whole
    return min(whole, likely_mu(as_configured(setup), question))


def measure_pace(setup: Setup, settings: AdviceSettings) -> Pace:
    """Times one physical batch and one noise draw on made-up rows, and seeks the rows that fit the memory; or takes
    what the settings say."""
    config, brought = setup.config, rows_per_unit(setup)
    rows = config.execution.physical_batch_size
    if settings.seconds_per_row is not None:
        said = "as advice.seconds_per_row says" if settings.seconds_per_row else "not timed"
        return Pace(settings.seconds_per_row, 0.0, rows, brought, said)
    cost = estimate_cost(setup)
    each = cost["seconds_a_physical_batch"] / rows
    said = f"timed here on {rows:,} made-up rows, engine {cost['engine']}"
    fits = max(rows, _fitting(setup, cost["engine"]) or rows)
    return Pace(each, cost["seconds_a_noise_draw"], fits, brought, said)


def _fitting(setup: Setup, engine: str) -> int | None:
    """The largest physical batch that was tried and fits; None where the system does not tell."""
    rows, started = setup.config.execution.physical_batch_size, time.monotonic()
    device = next(setup.module.parameters()).device
    before = restart_peak(device)
    if peak(device) - before >= BLUR:
        return None
    PrivateStep(setup, engine).steps(made_up_batch(setup, rows, min(setup.plan.max_rows_per_unit, rows)), 2)
    first = {"rows": rows, "peak_mib": max(0, peak(device) - before) / MIB, "seconds": time.monotonic() - started}
    return largest_batch(setup, engine, first, Deadline(started + MEMORY_SECONDS))["rows"]


def rows_per_unit(setup: Setup) -> float:
    """Rows that a unit brings on average under its cap, by public counts; the cap itself where there are none."""
    cap, known = setup.plan.max_rows_per_unit, setup.source.info.unit_rows
    if setup.plan.unit != "user" or not known:
        return float(cap)
    return mean_rows(known, cap)


def mean_rows(unit_rows: Mapping[int, int], cap: int) -> float:
    """Mean rows of a unit when at most ``cap`` of each stay."""
    return sum(min(rows, cap) * users for rows, users in unit_rows.items()) / sum(unit_rows.values())


def _facts(row: Row, question: Question, pace: Pace, largest_unit: int) -> dict[str, Any]:
    rate = row.rate(question)
    seconds = pace.seconds(row, rate, largest_unit)
    return {
        "expected_batch_size": row.batch,
        "steps": row.steps,
        "passes": row.steps * rate,
        "noise_multiplier": row.noise_multiplier,
        "epsilon": row.epsilon,
        "effective_noise": row.noise_multiplier / row.batch,
        "step_signal_to_noise": row.signal / math.sqrt(row.steps * question.num_parameters),
        "signal_kept": row.kept(question),
        "noise_term": row.noise_term(question),
        "steps_term": row.steps_term(question),
        "bound": row.bound(question),
        "gradients": row.gradients,
        "seconds": seconds if pace.seconds_per_row else None,
        "physical_batch_size": pace.layout(row, rate, largest_unit)[1],
    }


def overrides(setup: Setup, question: Question, own: Row, chosen: Row, physical: int) -> list[str]:
    """What turns the configuration into the recommended one, to be pasted. The noise is solved for again."""
    optimizer = setup.config.optimizer
    lr = scaled_rate(optimizer.lr, optimizer.name, own, chosen, question)
    said = [
        f"privacy.epsilon={question.epsilon:.6g}",
        "privacy.noise_multiplier=null",
        f"privacy.expected_batch_size={chosen.batch:.10g}",
        f"privacy.steps={chosen.steps}",
        "privacy.epochs=null",
        *([] if lr is None else [f"optimizer.lr={lr:g}"]),
        f"execution.physical_batch_size={physical}",
    ]
    if optimizer.warmup_steps:
        said.append(f"optimizer.warmup_steps={round(optimizer.warmup_steps * chosen.steps / own.steps)}")
    return said


def caps(setup: Setup, question: Question, chosen: Row, pace: Pace) -> list[dict[str, Any]] | None:
    """What other caps on a user's rows would keep and cost in the recommended row; None where units are records, empty
    where no public counts are declared."""
    known, cap = setup.source.info.unit_rows, setup.plan.max_rows_per_unit
    if setup.plan.unit != "user":
        return None
    found = cap_table(known, cap) if known else []
    for line in found:
        there = replace(pace, rows_per_unit=line["rows_a_user"])
        seconds = there.seconds(chosen, chosen.rate(question), line["cap"])
        line["seconds"] = seconds if pace.seconds_per_row else None
        line["row_gradients"] = chosen.gradients * line["rows_a_user"]
    return found
