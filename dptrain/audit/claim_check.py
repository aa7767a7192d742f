"""The claim check: do the canaries of a run contradict what its statement claims?

Two answers, from one score that is fixed before any is computed (``SCORE``), so that nothing is chosen by its outcome:

1. lower bounds on epsilon. ``one_run`` and ``f_dp`` hold however the scores of one run's canaries depend on each other;
   ``clopper_pearson`` and ``gaussian`` come with the assumptions that they need, and decide nothing;
2. a p-value for "these scores come from the mechanism that the statement claims", against the run's own trade-off
   curve, computed from the event in the statement. It decides: below the level the claim is rejected.

Guarantee: if the run did what its statement says, it is rejected with probability at most the level, over coins,
draws and noise, whatever the score. The coins are the run's own (``data/canaries.py``) and sealed. A claim that is not
rejected is not verified: a weak score, or few canaries, see little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dptrain.audit.bounds.bound import Bound
from dptrain.audit.bounds.claim import ClaimTest, p_value, p_value_independent
from dptrain.audit.bounds.clopper_pearson import clopper_pearson
from dptrain.audit.bounds.curve import Curve, curve_of_event, dp_curve
from dptrain.audit.bounds.f_dp import f_dp
from dptrain.audit.bounds.gaussian import gaussian
from dptrain.audit.bounds.one_run import one_run
from dptrain.audit.scores import ATTACKS, per_unit
from dptrain.audit.verdict import NONE_CLAIMED_DELTA
from dptrain.checkpoint.canary_record import read_canaries
from dptrain.checkpoint.sealing_key import key_ring
from dptrain.data.canaries import Canaries, crafted_of, natural_units, without_left_out
from dptrain.data.source import Rows, SourceInfo
from dptrain.errors import ConfigError

SCHEMA = "dptrain.claim_check/1"
SCORE = "logit_difference"
"""The one score that decides. On crafted and natural canaries it is at least as strong as the loss, which saturates."""
SHARES = {0.1: 0.8, 0.4: 0.1, 0.8: 0.1}
"""Shares of the canaries that the deciding test guesses about, and what part of the error each may use; fixed in
advance. A tenth sees a weak signal among thousands of canaries best; a large epsilon can be contradicted by a few
hundred canaries only where most are guessed about (simulations in docs/results/claim_check.md)."""
NONE = "No canaries: the claim was not tested by canaries; what members and non-members tell apart is below."
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Planted:
    """A run's canaries as rows, unit i being canary i, and who trained beside them."""

    canaries: Canaries
    rows: Rows
    members: Rows
    """Records that trained: without the natural canaries that were left out."""


def planted(
    statement: Mapping[str, Any], internal: Path, key: str | None, run_id: str, rows: Rows, info: SourceInfo
) -> Planted | None:
    """The canaries that a statement says were planted; None where it names none.

    Args:
        statement: verified.
        internal: the run's internal room.
        key: source of the sealing key; None for the user's own.
        run_id: of the run.
        rows: all rows that a run without canaries would have trained on, as the source gives them.
        info: facts about them.

    Raises:
        ConfigError: the sealed record is missing, does not open, or is not what the statement says.
    """
    said = (statement.get("audit") or {}).get("canaries")
    if said is None:
        return None
    found = read_canaries(internal, key_ring(key), run_id)
    if {"count": len(found), "kind": found.kind} != said:
        raise ConfigError("run", internal, "holds other canaries than the statement names", "restore it from a copy")
    if found.kind == "crafted":
        return Planted(found, crafted_of(found, info), rows)
    return Planted(found, _units(rows, natural_units(found, rows.num_units)), without_left_out(rows, found))


def _units(rows: Rows, units: torch.Tensor) -> Rows:
    """The rows of some units, renumbered by their place in ``units``."""
    place = torch.full((rows.num_units,), -1, dtype=torch.int64)
    place[units] = torch.arange(len(units))
    index = torch.nonzero(place[rows.unit_id] >= 0).flatten()
    return Rows(rows.inputs[index], rows.targets[index], place[rows.unit_id[index]])


def check_claim(
    found: Planted | None,
    outputs: Callable[[Rows], Any],
    statement: Mapping[str, Any],
    task: str,
    level: float,
    confidence: float,
) -> dict[str, Any]:
    """The ``claim_check`` of internal/audit.json.

    Args:
        found: of ``planted``.
        outputs: the model's outputs (N, K) for rows.
        statement: verified; its event is what is claimed.
        task: of the model.
        level: largest chance that an honest run is rejected, in (0, 1).
        confidence: of each lower bound.

    Returns:
        See docs/canaries.md. "rejected" is None where nothing was tested.
    """
    if found is None:
        return {"schema": SCHEMA, "canaries": None, "rejected": None, "sentence": NONE}
    made = outputs(found.rows)
    scores = per_unit(ATTACKS[SCORE](made, found.rows.targets.numpy(), task), found.rows.unit_id.numpy())
    return {"schema": SCHEMA, "canaries": _about(found)} | judged(
        scores, found.canaries.included, statement, level, confidence, found.canaries.kind
    )


def judged(
    scores: Floats,
    included: NDArray[np.bool_],
    statement: Mapping[str, Any],
    level: float,
    confidence: float,
    kind: str = "crafted",
) -> dict[str, Any]:
    """Both answers for scores of canaries, by whatever score they were made."""
    guarantee = statement.get("guarantee") or {}
    claimed, delta = guarantee.get("epsilon"), guarantee.get("delta") or NONE_CLAIMED_DELTA
    scores = np.nan_to_num(scores, nan=0.0, posinf=1e100, neginf=-1e100)  # a diverged model: no score is refused
    bounds = [bound(scores, included, delta, confidence) for bound in (one_run, f_dp, clopper_pearson, gaussian)]
    facts: dict[str, Any] = {
        "score": SCORE,
        "level": level,
        "confidence": confidence,
        "epsilon_claimed": claimed,
        "delta": delta,
        "bounds": [_plain(bound) for bound in bounds],
        "epsilon_low": bounds[0].epsilon,
        "test": None,
        "independent_test": None,
        "rejected": None,
    }
    if claimed is None:
        return facts | {"sentence": _no_claim(facts, len(scores), kind)}
    curve = claimed_curve(statement)
    test = deciding_test(scores, included, curve)
    facts |= {
        "test": {"curve": curve.name, **_readable(asdict(test))},
        "independent_test": {"curve": curve.name, **_readable(asdict(p_value_independent(scores, included, curve)))},
        "rejected": test.p_value <= level,
    }
    return facts | {"sentence": _sentence(facts, len(scores), kind)}


def deciding_test(scores: Floats, included: NDArray[np.bool_], curve: Curve) -> ClaimTest:
    """``p_value`` at every share of ``SHARES``: the least of them all, each over its part of the error (Bonferroni's
    inequality with weights)."""
    tests = [p_value(scores, included, curve, (share,)) for share in SHARES]
    values = [test.p_value / part for test, part in zip(tests, SHARES.values(), strict=True)]
    best = int(np.argmin(values))
    tried = [test.details["guesses"] for test in tests]
    return replace(tests[best], p_value=min(1.0, values[best]), details={**tests[best].details, "tried": tried})


def claimed_curve(statement: Mapping[str, Any]) -> Curve:
    """The trade-off curve that a statement claims: its own event's.

    A run that stopped early is held against its plan's event, because when it stopped may depend on what it had
    released; one whose event has no curve, against (epsilon, delta) alone.
    """
    mechanism, sampling, guarantee = (statement[name] for name in ("mechanism", "sampling", "guarantee"))
    stopped = sampling["steps_done"] < sampling["steps_planned"]
    event = mechanism["planned_event" if stopped else "event"]
    top = min(40.0, max(12.0, 3.0 * guarantee["epsilon"]))
    return _curve(json.dumps(event, sort_keys=True), statement["adjacency"]["relation"], top) or dp_curve(
        guarantee["epsilon"], guarantee["delta"]
    )


@lru_cache(maxsize=64)
def _curve(event: str, adjacency: str, top: float) -> Curve | None:
    try:
        return curve_of_event(json.loads(event), adjacency, top)
    except ConfigError:
        return None


def _about(found: Planted) -> dict[str, Any]:
    canaries = found.canaries
    facts = {"kind": canaries.kind, "count": len(canaries), "included": int(canaries.included.sum())}
    return facts | ({"craft": canaries.craft} if canaries.kind == "crafted" else {})


def _plain(bound: Bound) -> dict[str, Any]:
    return _readable(asdict(bound))


def _readable(value: Any) -> Any:
    """Plain data without NumPy's numbers."""
    if isinstance(value, Mapping):
        return {str(name): _readable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def _shown(facts: Mapping[str, Any]) -> str:
    return (
        f"they show an epsilon of at least {facts['epsilon_low']:.3g} at delta {facts['delta']:g} "
        f"({100 * facts['confidence']:g} % confidence, however scores depend on each other)"
    )


def _no_claim(facts: Mapping[str, Any], count: int, kind: str) -> str:
    return (
        f"No epsilon is claimed, so there is none to test; {count} {kind} canaries were planted, and {_shown(facts)}."
    )


def _sentence(facts: Mapping[str, Any], count: int, kind: str) -> str:
    test, claimed = facts["test"], facts["epsilon_claimed"]
    right = f"{test['details']['right']} of {test['details']['guesses']} coins guessed right"
    chance = f"p {test['p_value']:.2g}, level {facts['level']:g}, {right}"
    if facts["rejected"]:
        return (
            f"Rejected: {count} {kind} canaries are found too often for the claimed mechanism, epsilon {claimed:.4g} "
            f"({chance}); {_shown(facts)}."
        )
    beyond = facts["epsilon_low"] > claimed
    doubt = " That is more than is claimed, at a lower confidence than rejects: plant canaries in another run." * beyond
    return (
        f"Not rejected: no violation larger than the claimed epsilon {claimed:.4g} found with {count} {kind} canaries "
        f"({chance}); {_shown(facts)}.{doubt} A stronger attack may find what this one did not."
    )
