"""Many runs composed: the privacy loss distribution of all their steps together, if all were planned beforehand.

Steps with the same parameters are one group, so a sweep over seeds costs what one run costs.
Source: Koskela et al. 2020; Doroshenko et al. 2022 ("connect the dots"), through dp-accounting, pessimistic.
"""

from __future__ import annotations

from collections.abc import Iterable

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event


def compose_epsilon(parts: Iterable[tuple[Event, int]], delta: float) -> float:
    """An upper bound on epsilon of all parts together, at ``delta``.

    Guarantee: a mechanism that releases every step of every part, with lengths and parameters fixed beforehand, is
    (returned, delta)-DP for one unit.

    Args:
        parts: (event of one step, number of steps); a step is a Gaussian, on a Poisson sample or on everyone.
        delta: in (0, 1).

    Raises:
        ConfigError: a step has no privacy loss distribution here, or delta is too small for the arithmetic.
    """
    groups: dict[tuple[float, float], int] = {}
    for step, count in parts:
        if count:
            key = accounting._sampled_gaussian(step)
            groups[key] = groups.get(key, 0) + count
    total = sum(groups.values())
    if total and delta < accounting.smallest_delta(total):
        raise ConfigError("delta", delta, f"is too small for {total} steps", "it cannot be composed")
    if not groups:
        return 0.0
    from dp_accounting.pld import privacy_loss_distribution as pld

    made = [
        pld.from_gaussian_mechanism(
            sigma,
            value_discretization_interval=1e-3,
            sampling_prob=rate,
            neighboring_relation=accounting._relation("zero_out"),
        ).self_compose(count)
        for (rate, sigma), count in groups.items()
    ]
    while len(made) > 1:
        pairs = zip(made[::2], made[1::2], strict=False)
        made = [one.compose(other) for one, other in pairs] + made[len(made) - len(made) % 2 :]
    reserve = accounting.ARITHMETIC * total
    return max(0.0, float(made[0].get_epsilon_for_delta(delta - reserve)))
