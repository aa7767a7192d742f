"""Conformance of the price: the plan's epsilon beside a lower bound that dp-accounting gives for its public numbers."""

from __future__ import annotations

from dptrain.conformance.stand import Result
from dptrain.privacy.plan import Plan

LOST = 0.05
"""Most of the composed privacy loss that rounding down to cells may take: a cell is this over the steps."""
CELLS = (2e-5, 1e-3)
"""Narrowest and widest cell."""
CLOSE = 1e-3
"""How much below the bound, relative to it, is left to rounding."""


def price(plan: Plan) -> Result:
    """What the steps cost at least: losses rounded down, at the whole delta, nothing else of the run counted.

    It asks dp-accounting directly, from sampling rate, steps, deviation, C and s, so that it shares no code with what
    the plan was priced by. A run that is the best of several is priced by other rules, and not asked about.
    """
    import dp_accounting as dp
    from dp_accounting.pld import privacy_loss_distribution as pld

    mechanism, epsilon = plan.mechanism, plan.epsilon
    if mechanism is None or epsilon is None or mechanism.trials is not None:
        return Result("price", None, "no run of its own is priced")
    sigma = mechanism.noise_std / (mechanism.clipping_norm * (1.0 + mechanism.sensitivity_slack))
    relations = {
        "zero_out": dp.NeighboringRelation.REPLACE_SPECIAL,
        "add_remove": dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
    }
    step = pld.from_gaussian_mechanism(
        sigma,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=min(max(LOST / plan.steps, CELLS[0]), CELLS[1]),
        sampling_prob=plan.sampling_rate,
        neighboring_relation=relations[plan.adjacency],
    )
    least = float(step.self_compose(plan.steps).get_epsilon_for_delta(plan.delta))
    says = f"epsilon {epsilon:.4f} is claimed, {least:.4f} is the least that its {plan.steps} steps cost"
    return Result("price", epsilon >= least * (1.0 - CLOSE), says)
