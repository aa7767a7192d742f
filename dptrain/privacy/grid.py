"""The integer grid that clipped sums and noise share under ``secure`` noise.

Every unit's contribution is rounded to whole multiples of the grid step before it is added, so that sums
are exact, do not depend on the order of addition, and no floating-point value can betray a unit
(Mironov 2012; Haney et al. 2022).
"""

from __future__ import annotations

import math


def grid_step(clipping_norm: float, slack: float, num_parameters: int) -> float:
    """The largest power of two whose rounding error stays within half of the sensitivity's slack.

    Rounding moves each of D coordinates by at most half a step, a contribution by at most
    ``sqrt(D) * step / 2`` in norm. The step returned keeps that at or below ``slack * clipping_norm / 4``.

    Guarantee: a contribution of norm at most C before rounding has norm below ``C * (1 + slack)`` after it.

    Args:
        clipping_norm: C, above 0.
        slack: s, the relative sensitivity slack of the plan.
        num_parameters: D, at least 1.
    """
    if num_parameters < 1:
        raise ValueError(f"num_parameters={num_parameters} is below 1")
    return 2.0 ** math.floor(math.log2(slack * clipping_norm / (2.0 * math.sqrt(num_parameters))))
