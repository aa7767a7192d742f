"""What a plan will cost and mean, told before it is carried out. Made-up rows are timed, never private ones."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from typing import Any

import torch

from dptrain.data.batches import PhysicalBatch
from dptrain.data.units import cap_line
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.protocol import ClippingRule, Engine
from dptrain.keystream import Keystream
from dptrain.privacy import accounting
from dptrain.privacy.grid import grid_step
from dptrain.privacy.plan import Plan
from dptrain.privacy.tuning import alone
from dptrain.training.assemble import DTYPES, build_engine, build_noise, worth_compiling
from dptrain.training.baseline import PlainSum
from dptrain.training.canaries import canary_cost, canary_line, expected_rows
from dptrain.training.made_up import made_up_batch
from dptrain.training.setup import Setup


def estimate_cost(setup: Setup) -> dict[str, Any]:
    """Times one physical batch and one noise draw on made-up rows, on a copy of the model.

    Returns:
        name of the engine; ``without_rule``: functions that it has no rule for -> a parameter that they read (None for
        engines that have no rules of their own); seconds of a physical batch, of a noise draw, of a step, of the whole
        run, and the time as a ratio to the same batch without privacy.
    """
    module = deepcopy(setup.module)
    count = setup.num_parameters
    batch = made_up_batch(setup, setup.config.execution.physical_batch_size)
    total = torch.zeros(count, dtype=torch.float64, device=batch.weight.device)
    autocast = DTYPES[setup.config.execution.dtype]
    plain = _seconds(PlainSum(module, setup.row_loss, autocast), batch, total)
    mechanism = setup.plan.mechanism
    engine_seconds, noise_seconds, name = plain, 0.0, "plain"
    without_rule: dict[str, str] | None = None
    if mechanism is not None:
        secure = setup.plan.noise == "secure"
        grid = grid_step(mechanism.clipping_norm, mechanism.sensitivity_slack, count) if secure else None
        rule, quick = ClippingRule(mechanism.clipping_norm, grid), worth_compiling(count * setup.plan.steps)
        engine = build_engine(setup.config, module, setup.row_loss, rule, quick)
        engine_seconds, name = _seconds(engine, batch, total), engine.name
        without_rule = dict(engine.without_rule) if isinstance(engine, BookkeepingEngine) else None
        on_device = setup.config.execution.noise_on_device
        noise = build_noise(setup.plan, Keystream(), count, grid, batch.weight.device, on_device)
        start = time.perf_counter()
        noise.draw(0, count)
        noise_seconds = time.perf_counter() - start
    rows = setup.plan.expected_batch_size * setup.plan.max_rows_per_unit + expected_rows(setup.config.audit, setup.plan)
    batches = math.ceil(rows / setup.config.execution.physical_batch_size)
    step = batches * engine_seconds + noise_seconds
    return {
        "engine": name,
        "without_rule": without_rule,
        "physical_batches_a_step": batches,
        "seconds_a_physical_batch": engine_seconds,
        "seconds_a_noise_draw": noise_seconds,
        "seconds_a_step": step,
        "seconds": step * setup.plan.steps,
        "ratio_to_plain": step / (batches * plain),
        "canaries": canary_cost(setup.config.audit, setup.plan),
    }


def _seconds(engine: Engine, batch: PhysicalBatch, total: torch.Tensor, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        engine.add_clipped_sum(batch, total.zero_())
        if total.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def plan_text(setup: Setup, cost: dict[str, Any]) -> str:
    """The plan for a reader on a terminal."""
    plan, mechanism = setup.plan, setup.plan.mechanism
    lines = [f"plan for {setup.spec.name} ({setup.num_parameters:,} parameters) on {setup.source.info.name}"]
    rows: list[tuple[str, str]] = [] if setup.part is None else [("part", str(setup.part))]
    rows += [
        ("units", f"{plan.public_size:,} (declared), protected: one {plan.unit}"),
        ("draw", f"Poisson, q = {plan.sampling_rate:.6g}, expected batch {plan.expected_batch_size:g}"),
        ("steps", f"{plan.steps:,} ({plan.steps * plan.sampling_rate:.1f} expected passes)"),
    ]
    if plan.unit == "user":
        rows.append(("cap", cap_line(setup.source.info.unit_rows, plan.max_rows_per_unit)))
    if mechanism is None:
        rows.append(("privacy", "none: this trains without any promise"))
    else:
        snr = mechanism.signal_to_noise(setup.num_parameters)
        rows += [
            (
                "noise",
                f"multiplier {mechanism.noise_multiplier:g} x sensitivity {mechanism.sensitivity:g} ({plan.noise})",
            ),
            ("solved for", str(plan.solved_for)),
            *_beside(plan),
            ("epsilon", f"{plan.epsilon:.4f} at delta {plan.delta:g}"),
            *(
                (("", f"{e['epsilon']:.4f} at delta {e['delta']:g}"))
                for e in plan.epsilon_at()
                if e["delta"] != plan.delta
            ),
            ("on delta", _on_delta(plan.delta, plan.public_size)),
            ("signal", f"at best {snr:.3g} times the noise in norm, each step ({_on_signal(snr)})"),
        ]
    rows.append(
        (
            "cost",
            f"about {_clock(cost['seconds'])} here: {cost['physical_batches_a_step']} physical batches of "
            f"{setup.config.execution.physical_batch_size} a step, {cost['ratio_to_plain']:.2f} x the same without "
            "privacy",
        )
    )
    if cost["canaries"] is not None:
        rows.append(("canaries", canary_line(cost["canaries"])))
    rows.append(("engine", engine_text(cost["engine"], cost["without_rule"])))
    rows += [("note", warning) for warning in plan.warnings]
    if mechanism is not None:
        rows.append(("advice", "advise=true weighs up other batches and lengths at this epsilon, free of charge"))
    rows.append(("read", "no private row was read"))
    return "\n".join(lines + [f"  {label:<12}{text}" for label, text in rows])


def engine_text(name: str, without_rule: dict[str, str] | None) -> str:
    """The clipping engine, and the functions that it has no rule for.

    Args:
        without_rule: function -> a parameter that it reads; None for engines that have no rules of their own.
    """
    if without_rule is None:
        return name
    if not without_rule:
        return f"{name}; every function that reads a parameter has a rule of its own"
    listed = ", ".join(f"{function} ({parameter})" for function, parameter in without_rule.items())
    return f"{name}; without a rule, by a copy of the parameter a row under vmap: {listed}"


def _beside(plan: Plan) -> list[tuple[str, str]]:
    """What epsilon covers beside the steps of one run."""
    assert plan.mechanism is not None
    trials, rows = plan.mechanism.trials, []
    if plan.mechanism.beside:
        looks = sum(count for event in plan.mechanism.beside for _, count in accounting.parts(event))
        price = accounting.epsilon(accounting.composed(plan.mechanism.beside), plan.priced_delta, plan.adjacency)
        rows.append(("looks", f"{looks} noisy counts on private units, epsilon {price:.4f} by themselves"))
    if trials is not None:
        rows.append(("search", f"the best of a secret number of runs, {trials.describe}"))
    return rows + ([("steps", f"epsilon {alone(plan):.4f} by themselves, in one run")] if rows else [])


def _on_delta(delta: float, size: int) -> str:
    expected = delta * size
    verdict = "comfortable" if expected <= 0.01 else "usual" if expected <= 0.1 else "large: choose a smaller delta"
    return (
        f"delta x units = {expected:.3g}, {verdict}; a mechanism may expose one unit outright with that chance in all"
    )


def _on_signal(ratio: float) -> str:
    return "learns easily" if ratio > 0.3 else "needs many steps" if ratio > 0.03 else "mostly noise: enlarge the batch"


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
