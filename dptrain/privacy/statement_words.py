"""The words of a statement: the plain sentence, what must hold for it, what it leaves out.

Every text is a function of the terms. Verification derives it anew and compares, so wording is a part of the schema: a
change to any word here needs a new ``SCHEMA`` in ``statement_schema.py`` (a committed statement in the tests says so).
"""

from __future__ import annotations

import math
from typing import Any

from dptrain.privacy.terms import Terms

ADJACENCY = {
    "zero_out": "one {unit}'s contribution replaced by nothing, the number of {unit}s being public",
    "add_remove": "one {unit} added or removed, the number of {unit}s not being public",
}
NOISE = {
    "secure": "AES-256 counter-mode keystream keyed by the operating system; rounded Gaussian on an integer grid",
    "fast": "on a CPU an AES-256 counter-mode keystream and Box-Muller in float32; on CUDA torch's pseudo-random "
    "generator, not cryptographic, in float64; both keyed by the operating system; added to floating-point sums; no "
    "bound on its distance from a Gaussian is known, and the bits of an output can betray a unit",
}
CLIPPED = {
    "exact": "a unit's norm is taken of the very values that are added; each unit is rounded to an integer grid, whole "
    "numbers are added without error, and rounding lies inside s",
    "measured": "norms and the weighted sum of units are computed apart, both in floating point, and the sum is "
    "rounded to an integer grid afterwards; that what a unit adds stays inside s was measured on inputs made to hurt "
    "it, and is not proved for every input",
    "floating": "units are clipped and added in floating point and rounded to no grid: how a sum is rounded can depend "
    "on any of its units",
}
"""By float class: what keeps a unit's part in a clipped sum small."""
CLASS_OF = {
    "bookkeeping": "measured",
    "opacus_ghost": "measured",
    "vmap": "exact",
    "opacus_hooks": "exact",
    "loop": "exact",
}
"""Float class of the engines that come with dptrain, where noise is secure; with fast noise it is ``floating``."""
CHECK = {
    False: "RDP, an upper bound",
    True: "none: RDP is the only price known of a choice among trials",
}
"""By whether a choice among trials is priced: what epsilon is held against."""
UNHEARD = "nothing is known of it here"
MEASURED = "tests/gradients/, docs/results/engine_exactness.md"
COUPLING = 7e-8
"""Most that one other unit in a physical batch was measured to move a unit's float32 contribution, as a share of C
(docs/results/engine_exactness.md)."""
NOT_COVERED = [
    "rows of the split declared public, and anything published about them",
    "facts about groups: the model may reveal what holds for the population whether or not a unit took part",
    "timing, memory and other side channels of the machine that trained",
]
UNCHARGED_TUNING = "the choice of settings, where earlier runs on the same private rows informed it"
OTHER_RUNS = "other runs on the same units: their epsilons add up"
COUNTED_RUNS = "runs on the same units outside the account named in 'composition': their epsilons add up"
PUBLIC_START = "whatever the weights that training started from had been trained on, which is taken as public:"
NO_PRIVACY = {
    "none": "This model promises no privacy: it was trained without privacy.",
    "test_key": "This model promises no privacy: draws and noise came from a test key.",
}
NOTHING = ["everything"]
NOTHING_COVERED = ["everything: no differential privacy is claimed"]


def adjacency_meaning(terms: Terms) -> str:
    """Which two data sets are neighbours."""
    return ADJACENCY[terms.adjacency].format(unit=terms.unit)


def scope(terms: Terms) -> dict[str, Any]:
    """What the numbers count, what they do not, and why each may be left out."""
    covered = ["training: every gradient that private rows had a part in", "the released weights"]
    if terms.mechanism.beside:
        covered.append("evaluation: noisy looks at private rows, listed in mechanism.beside")
    elsewhere = "what was published beside them" if terms.mechanism.beside or terms.nonprivate_metrics else "evaluation"
    uncovered = [f"{elsewhere}: from rows declared public only, hence not an access to private rows"]
    if terms.nonprivate_metrics:
        uncovered.append("nonprivate_metrics: computed from private rows without noise, and published")
    preprocessing = "preprocessing: bounds, categories and sizes are declared, not learnt; a declaration read off "
    uncovered.append(preprocessing + "private rows is not covered")
    return {"covered": covered, "uncovered": uncovered, "nonprivate_metrics": list(terms.nonprivate_metrics)}


def enforced_by(unit: str, max_rows: int) -> str:
    """How a unit's rows are kept together and counted."""
    if unit == "record":
        return "each row is one record; rows of one person are as many records as there are rows"
    return f"rows are grouped by the declared unit column; at most {max_rows} of a {unit} are kept, the rest dropped"


def sentence(terms: Terms, epsilon: float) -> str:
    """The promise in words; epsilon is rounded up."""
    noun = "record" if terms.unit == "record" else f"user (at most {terms.max_rows} rows each)"
    shown = math.ceil(epsilon * 1000) / 1000
    text = (
        f"Training was ({shown:g}, {terms.delta:g})-differentially private for each {noun} of "
        f"{terms.data_name}: whoever sees the model can tell whether one {terms.unit} took part only "
        f"as well as that allows, under {adjacency_meaning(terms)}."
    )
    if terms.mechanism.trials is not None:
        text += " The choice among trials is counted in it."
    if terms.noise == "fast":
        text += " That would hold if the noise were ideal; 'fast' noise was used, whose distance from it is not known."
    if terms.nonprivate_metrics:
        text += f" Metrics published outside this promise: {', '.join(terms.nonprivate_metrics)}."
    return text + ("" if terms.start is None else terms.start.sentence(epsilon, terms.delta, terms.unit))


def not_covered(terms: Terms) -> list[str]:
    """What the promise leaves open."""
    left = [*NOT_COVERED, COUNTED_RUNS if terms.counted else OTHER_RUNS]
    if terms.tuning is None:
        left.append(UNCHARGED_TUNING)
    if terms.start is not None and not terms.start.is_private:
        left.append(f"{PUBLIC_START} '{terms.start.name}'")
    return left + [f"published metric computed from private rows: {m}" for m in terms.nonprivate_metrics]


def assumptions(terms: Terms) -> list[dict[str, Any]]:
    """What must hold for the promise: {claim, assumed (nothing enforces it), implemented (what makes it hold),
    verified_by (test or measurement; None where there is none)}."""
    held: list[tuple[str, bool, str | None, str | None]] = [
        (
            "each unit is in each draw independently with probability q",
            False,
            "own Poisson sampler on the keystream",
            "tests/data/test_data_sampler.py",
        ),
        (
            "q, the divisor and the number of steps are public constants",
            False,
            "compiled into the plan before data was read",
            "tests/privacy/test_privacy_plan.py, tests/privacy/test_privacy_public_tier.py",
        ),
        (
            "a unit moves a clipped sum by at most C(1+s)",
            terms.float_class not in ("exact", "measured"),
            f"engine '{terms.engine}', float class '{terms.float_class}': {CLIPPED.get(terms.float_class, UNHEARD)}",
            MEASURED if terms.engine in CLASS_OF else None,
        ),
        ("a unit's gradient does not depend on other units", False, _apart(terms), "tests/models/"),
        (
            "noise is Gaussian with the planned deviation and never reused",
            terms.noise == "fast",
            NOISE[terms.noise],
            "tests/noise/, docs/noise.md" if terms.noise == "secure" else None,
        ),
        ("AES-256 is a pseudo-random permutation", True, None, None),
        ("the machine that trained ran this code, and kept its keys and private rows to itself", True, None, None),
    ]
    if terms.tuning is None:
        held.append(("settings were not tuned on these private rows without charge", True, None, None))
    if terms.unit == "user":
        held.append(("data.unit_column names each person once", True, None, None))
    if terms.stopped:
        why = "privacy/stopping.py"
        held.append(("the moment of stopping looked only at what was released", True, f"see {why}", None))
        twice = "epsilon as a function of when the run stopped holds with at most twice the stated delta"
        held.append((twice, False, why, None))
    return [{"claim": c, "assumed": a, "implemented": i, "verified_by": v} for c, a, i, v in held]


def _apart(terms: Terms) -> str:
    """How units are kept apart, and what is left of it if all float rounding errors of a draw pointed one way."""
    worst, slack = COUPLING * terms.expected_batch_size, 0.75 * terms.mechanism.sensitivity_slack
    place = "inside" if worst <= slack else "beyond"
    return (
        "model check before training; kernels round a row's gradient by its place and neighbours in a batch: on "
        f"ordinary rows in float32 on a CPU {worst:.1e} C were measured for a draw if all errors pointed one way, "
        f"{place} the {slack:.1e} C set aside. That is a measurement, not a worst case: rows of wild scale can do more"
    )
