"""Conformance of the price: a plan's epsilons beside lower bounds that dp-accounting gives for its public numbers.

Everything that a run spends on is asked for: steps, noisy looks at private rows, the choice among trials, a stop before
the end, and the account's own sum over runs. What the settings at hand leave out is asked of small plans that have it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dptrain.config import TrainConfig
from dptrain.config_privacy import PrivacyConfig
from dptrain.config_tuning import EvaluationConfig, TuningConfig
from dptrain.conformance.stand import Result
from dptrain.data.source import SourceInfo
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.privacy.privacy_filter import UNIT, declare_rules, step_price, steps_of, value
from dptrain.training.private_metrics import looks_event, training_units
from dptrain.training.setup import trials_of

LOST = 0.05
"""Most of the composed privacy loss that rounding down to cells may take: a cell is this over the steps."""
CELLS = (2e-5, 1e-3)
"""Narrowest and widest cell."""
CLOSE = 1e-3
"""How much below the bound, relative to it, is left to rounding."""
STOPS = 20
"""Moments of stopping among which delta is shared: that a run stops is chosen by what it released."""
UNITS, BATCH = 400, 40
"""Public size and expected batch of the small plans."""


@dataclass(frozen=True)
class Spent:
    """Public numbers of what a run releases of its units. ``looks`` are Gaussian counts of them all."""

    sigma: float
    rate: float
    steps: int
    adjacency: str
    looks: int = 0
    look_sigma: float = 1.0

    def least(self, deltas: Sequence[float]) -> list[float]:
        """Epsilon that this costs at least, at each delta: privacy losses rounded down."""
        from dp_accounting.pld import privacy_loss_distribution as pld

        cell = min(max(LOST / (self.steps + self.looks), CELLS[0]), CELLS[1])

        def losses(sigma: float, rate: float) -> Any:
            return pld.from_gaussian_mechanism(
                sigma,
                pessimistic_estimate=False,
                use_connect_dots=False,
                value_discretization_interval=cell,
                sampling_prob=rate,
                neighboring_relation=_relation(self.adjacency),
            )

        whole = losses(self.sigma, self.rate).self_compose(self.steps)
        if self.looks:
            whole = whole.compose(losses(self.look_sigma, 1.0).self_compose(self.looks))
        return [float(whole.get_epsilon_for_delta(delta)) for delta in deltas]


def spent(plan: Plan, config: TrainConfig | None = None) -> Spent:
    """What a plan says that its run releases; looks from the settings, not from the plan's event."""
    mechanism = plan.mechanism
    assert mechanism is not None
    sigma = mechanism.noise_std / (mechanism.clipping_norm * (1.0 + mechanism.sensitivity_slack))
    alone = Spent(sigma, plan.sampling_rate, plan.steps, plan.adjacency)
    if config is None or config.evaluation.metrics != "dp":
        return alone
    stride = config.evaluation.every or math.ceil(plan.steps / STOPS)
    looks = plan.steps // stride + (plan.steps % stride != 0)
    return replace(alone, looks=looks, look_sigma=config.evaluation.noise_multiplier)


def price(plan: Plan, config: TrainConfig | None = None) -> Result:
    """What the run costs at least: losses rounded down, at the whole delta.

    It asks dp-accounting directly, from sampling rate, steps, deviation, C and s, so that it shares no code with what
    the plan was priced by. A run that is the best of several is priced by other rules (``of_trials``).
    """
    mechanism, epsilon = plan.mechanism, plan.epsilon
    if mechanism is None or epsilon is None or mechanism.trials is not None:
        return Result("price", None, "no run of its own is priced")
    what = spent(plan, config)
    (least,) = what.least([plan.delta])
    beside = f" and {what.looks} looks" if what.looks else ""
    says = f"epsilon {epsilon:.4f} is claimed, {least:.4f} is the least that its {plan.steps} steps{beside} cost"
    return Result("price", epsilon >= least * (1.0 - CLOSE), says)


def prices(plan: Plan, config: TrainConfig) -> Iterator[Result]:
    """The price of the run asked about, its public numbers, and the prices of small plans that spend in other ways."""
    yield price(plan, config)
    yield public_numbers(plan, config)
    small = _small(config)
    looks = replace(small, evaluation=EvaluationConfig(metrics="dp", every=3, noise_multiplier=12.0))
    other = replace(small.privacy, adjacency="add_remove", sensitivity_slack=0.05, expected_batch_size=BATCH / 4)
    yield of_settings("price, looks", looks)
    yield of_settings("price, units unknown", replace(small, privacy=other))
    yield of_trials(small)
    yield account(small)


def public_numbers(plan: Plan, config: TrainConfig) -> Result:
    """Rate, divisor and number of steps are the settings' and the public size's, and no target is exceeded."""
    name, asked, mechanism = "public numbers", config.privacy, plan.mechanism
    if mechanism is None or plan.epsilon is None:
        return Result(name, None, "no privacy is promised")
    batch = min(float(asked.expected_batch_size), float(plan.public_size))
    rate = batch / plan.public_size
    steps = asked.steps if asked.epochs is None else max(1, round(asked.epochs / rate))
    pairs = {
        "rate": (plan.sampling_rate, rate),
        "rate of the draws": (mechanism.sampling_rate, rate),
        "divisor": (mechanism.divisor, batch),
        "expected batch": (plan.expected_batch_size, batch),
        "steps": (mechanism.steps, plan.steps if steps is None else steps),
        "steps taken": (plan.steps, mechanism.steps),
        "clipping norm": (mechanism.clipping_norm, asked.clipping_norm),
        "slack": (mechanism.sensitivity_slack, asked.sensitivity_slack),
        "delta": (plan.delta, asked.delta),
    }
    if asked.noise_multiplier is not None:
        pairs["noise multiplier"] = (mechanism.noise_multiplier, asked.noise_multiplier)
    for what, (found, wanted) in pairs.items():
        if not math.isclose(found, wanted, rel_tol=1e-9):
            return Result(name, False, f"{what} is {found:g} where the settings say {wanted:g}")
    if asked.epsilon is not None and plan.epsilon > asked.epsilon * (1.0 + 1e-9):
        return Result(name, False, f"epsilon {plan.epsilon:.4f} exceeds the target {asked.epsilon:g}")
    return Result(
        name, True, f"rate {rate:g}, divisor {batch:g}, {plan.steps} steps: the settings' and the public size's"
    )


def of_settings(name: str, config: TrainConfig) -> Result:
    """A small plan's claims: at its end, at other deltas, over its steps, and stopped half way and a step before."""
    info = _made_up()
    units = training_units(config, info)
    plan = compile_plan(config.privacy, units, looks_event(config, info))
    if (wrong := public_numbers(plan, config)).passed is False:
        return replace(wrong, check=name)
    assert plan.epsilon is not None
    what, half = spent(plan, config), max(1, plan.steps // 2)
    curve = plan.epsilon_at()
    least = what.least([plan.delta, *(float(point["delta"]) for point in curve)])
    claims = [("at its end", plan.epsilon, least[0])]
    claims += [(f"at delta {p['delta']:g}", p["epsilon"], low) for p, low in zip(curve, least[1:], strict=True)]
    if half < plan.steps:
        shared = replace(what, steps=half).least([plan.delta / STOPS, plan.delta])
        claims.append((f"after {half} steps", plan.odometer([half, plan.steps])[0], shared[1]))
        claims.append((f"stopped after {half} steps", plan.epsilon_after(half) or 0.0, min(plan.epsilon, shared[0])))
    for where, claimed, low in claims:
        if not claimed >= low * (1.0 - CLOSE):
            return Result(name, False, f"epsilon {claimed:.4f} is claimed {where}, and {low:.4f} is the least it costs")
    says = f"{plan.steps} steps and {what.looks} looks: {len(claims)} claims, none below what it costs at least"
    return Result(name, True, says)


def of_trials(config: TrainConfig) -> Result:
    """The best of a random number of runs: dp-accounting's own Renyi price of them (Papernot & Steinke 2022)."""
    import dp_accounting as dp
    from dp_accounting.dp_event import RepeatAndSelectDpEvent
    from dp_accounting.rdp import RdpAccountant

    name, told = "price, best of trials", list[str]()
    for law, mean, shape in (("geometric", 10.0, 1.0), ("poisson", 5.0, math.inf)):
        searched = replace(config, tuning=TuningConfig(strategy="random", trials_distribution=law, mean_trials=mean))
        plan = compile_plan(searched.privacy, UNITS, (), trials_of(searched))
        what = spent(plan)
        step = dp.PoissonSampledDpEvent(what.rate, dp.GaussianDpEvent(what.sigma))
        run = RepeatAndSelectDpEvent(dp.SelfComposedDpEvent(step, what.steps), mean, shape)
        accountant = RdpAccountant(neighboring_relation=_relation(what.adjacency))
        log = logging.getLogger("absl")
        was, log.disabled = log.disabled, True  # orders whose series does not converge are left out, and told
        accountant.compose(run)
        log.disabled = was
        least = float(accountant.get_epsilon(plan.delta))
        if plan.epsilon is None or plan.epsilon < least * (1.0 - CLOSE):
            says = f"epsilon {plan.epsilon} is claimed of a {law} number of trials, mean {mean:g}; it is {least:.4f}"
            return Result(name, False, says)
        told.append(f"{law}, mean {mean:g}: {plan.epsilon:.3f} is claimed, it is {least:.3f}")
    return Result(name, True, "; ".join(told))


def account(config: TrainConfig) -> Result:
    """What an account charges for a step, and what it stands at after one, two and eight runs.

    Renyi divergences of whole orders have a closed form (Mironov, Talwar & Zhang 2019, section 3.3), written down here.
    """
    plan = compile_plan(config.privacy, UNITS)
    assert plan.mechanism is not None
    count, step = steps_of(plan.mechanism.event())
    rules = declare_rules(8.0, plan.delta)
    charged = step_price(step, [rule.order for rule in rules])
    what, told = spent(plan), list[str]()
    if count != plan.steps:
        return Result("account", False, f"{count} steps are reserved where {plan.steps} are planned")
    for rule, price_of in zip(rules, charged, strict=True):
        if rule.order == round(rule.order) and price_of * UNIT < _renyi(round(rule.order), what) * (1.0 - 1e-9):
            return Result(
                "account", False, f"a step is charged {price_of * UNIT:.3g} at order {rule.order:g}: too little"
            )
    for runs in (1, 2, 8):
        stands = value(rules, [runs * count * each for each in charged])
        (least,) = replace(what, steps=runs * plan.steps).least([plan.delta])
        if stands < least * (1.0 - CLOSE):
            says = f"{runs} runs of {plan.steps} steps stand at {stands:.4f}, and {least:.4f} is the least they cost"
            return Result("account", False, says)
        told.append(f"{runs}: {stands:.3f} over {least:.3f}")
    return Result(
        "account", True, f"runs of {plan.steps} steps on one account, at least as it costs ({', '.join(told)})"
    )


def _renyi(order: int, what: Spent) -> float:
    """Renyi divergence of one step at a whole order."""
    terms = [
        math.log(math.comb(order, k))
        + (order - k) * math.log1p(-what.rate)
        + k * math.log(what.rate)
        + k * (k - 1) / (2.0 * what.sigma**2)
        for k in range(order + 1)
    ]
    largest = max(terms)
    return (largest + math.log(sum(math.exp(term - largest) for term in terms))) / (order - 1)


def _small(config: TrainConfig) -> TrainConfig:
    privacy: PrivacyConfig = replace(
        config.privacy,
        adjacency="zero_out",
        epsilon=None,
        noise_multiplier=3.0,
        **_length(12),
        expected_batch_size=BATCH,
    )
    return replace(config, privacy=privacy, evaluation=EvaluationConfig(), tuning=TuningConfig())


def _length(steps: int) -> dict[str, Any]:
    return {"steps": steps, "epochs": None, "unit": "record", "max_rows_per_unit": 1, "delta": 1e-5}


def _made_up() -> SourceInfo:
    return SourceInfo(name="made up", task="binary", input_shape=(4,), num_classes=2, public_size=UNITS)


def _relation(adjacency: str) -> Any:
    import dp_accounting as dp

    relations = {
        "zero_out": dp.NeighboringRelation.REPLACE_SPECIAL,
        "add_remove": dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
    }
    return relations[adjacency]
