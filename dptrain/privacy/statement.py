"""The privacy statement: what a checkpoint promises, as 22 blocks of JSON and as one sentence.

The public tier holds public facts only: no number computed from private rows without noise, no digest of them, keyed
or salted or neither. Anyone can recompute every number of ``guarantee`` from ``mechanism``, ``sampling``, ``dataset``
and delta (``dptrain verify``); docs/statement.md explains the fields. The internal tier is the public one and a block
``internal``, and stays in the building.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dptrain import __version__
from dptrain.privacy import accounting
from dptrain.privacy import statement_words as words
from dptrain.privacy.guarantee import guarantee_block, interval_for
from dptrain.privacy.plan import NOISE_RESERVE, Plan
from dptrain.privacy.started import Started
from dptrain.privacy.statement_schema import SCHEMA
from dptrain.privacy.terms import Terms, terms_of_plan

TRUSTED = ["whoever ran the training, its machine, and its signing key"]
ADVERSARY = "sees the released model and everything about the training but draws, noise and the private rows; the "
ADVERSARY += "numbers hold even if it saw the model after every step"
SIDE_CHANNELS = "excluded: timing, memory, error texts and power of the machine that trained"
KINDS: dict[Any, str] = {True: "public", False: "private"}
CLIP_RULE = (
    "a unit's gradient is the mean over its rows, scaled to norm at most clipping_norm; not finite counts as zero"
)
SAMPLER = "each unit independently with probability rate, anew in every step; a draw may be empty, none is repeated"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the statement needs to know of a run beside its plan. Public facts only."""

    run_id: str
    steps_done: int
    engine: str
    float_class: str
    data: dict[str, Any]
    """name, licence, public_size, public_split; is_public where every row is."""
    test_randomness: bool = False
    """Draws and noise came from a test key: the run promises nothing."""
    nonprivate_metrics: list[str] = field(default_factory=list)
    composition: dict[str, Any] | None = None
    """What the data set's account bears beside this run; None where no ledger was kept."""
    tuning: dict[str, Any] | None = None
    """How settings were chosen, and what that cost; None where nothing was tried."""
    selfcheck: dict[str, Any] | None = None
    """What the run found when it checked itself, ``{"state": "off"}`` where it did not; None without privacy."""
    audit: dict[str, Any] | None = None
    """What an audit found, where its user chose to publish it."""
    files: dict[str, Any] = field(default_factory=dict)
    """File name -> {sha256, bytes} of the bundle's weights and model description."""
    utility: dict[str, Any] | None = None
    """{"metrics": {name: value}, "evaluation_data": phrase}, on public rows."""
    environment: dict[str, Any] | None = None
    """{"device", "torch", "dtype"}: what the run knows of its machine."""
    start: Started | None = None
    """What the model was before it was trained; None where it began at random."""
    governance: dict[str, Any] | None = None


def make_statement(plan: Plan, facts: RunFacts) -> dict[str, Any]:
    """The public statement of a finished or stopped run, not yet signed (``seal.sign_statement``).

    Guarantee: its epsilon is that of the plan when the run took all planned steps, else the smaller of that and
    the early-stop price (``privacy/stopping.py``); where choosing among trials was charged, that of the choice. Never
    that of fewer steps than were executed.
    """
    why = "test_key" if facts.test_randomness else "none"
    promised = plan.mechanism is not None and not facts.test_randomness
    terms = None
    if promised:
        terms = terms_of_plan(
            plan,
            data_name=str(facts.data.get("name", "the data")),
            steps_done=facts.steps_done,
            engine=facts.engine,
            float_class=facts.float_class,
            nonprivate_metrics=facts.nonprivate_metrics,
            tuning=facts.tuning,
            counted=facts.composition is not None,
            start=facts.start,
        )
    head = {"schema": SCHEMA, "tier": "public", "private": promised}
    promise = no_promise(plan, facts, why) if terms is None else promise_blocks(terms, _guarantee(plan, terms), facts)
    records = _records(plan, facts)
    if facts.start is not None:
        numbers = (promise["guarantee"]["epsilon"], plan.delta) if promise["guarantee"] else (None, None)
        records["pretraining"] = facts.start.block(*numbers)
    return head | promise | records | {"integrity": None}


def internal_statement(statement: dict[str, Any], internal: dict[str, Any]) -> dict[str, Any]:
    """The internal tier: the public statement, and what must not leave the building beside it. Not yet signed.

    Args:
        statement: public tier.
        internal: {"manifest": {"salt", "digest", "rows"}, ...} and whatever else was computed from private rows.
    """
    return {**statement, "tier": "internal", "internal": internal, "integrity": None}


def promise_blocks(terms: Terms, guarantee: dict[str, Any], facts: RunFacts) -> dict[str, Any]:
    """The blocks that a promise consists of."""
    derived = derived_blocks(terms, guarantee)
    return derived | {"tuning": facts.tuning, "accounting": derived["accounting"] | _library()}


def derived_blocks(terms: Terms, guarantee: dict[str, Any]) -> dict[str, Any]:
    """Every block that follows from the terms alone: verification derives them anew and compares each leaf."""
    mechanism, selects = terms.mechanism, terms.mechanism.trials is not None
    return {
        "sentence": words.sentence(terms, guarantee["epsilon"]),
        "unit": {
            "kind": terms.unit,
            "max_rows": terms.max_rows,
            "enforced_by": words.enforced_by(terms.unit, terms.max_rows),
        },
        "adjacency": {
            "relation": terms.adjacency,
            "size_is_public": terms.adjacency == "zero_out",
            "meaning": words.adjacency_meaning(terms),
        },
        "scope": words.scope(terms),
        "threat": {"model": "central", "trusted": TRUSTED, "adversary": ADVERSARY, "side_channels": SIDE_CHANNELS},
        "mechanism": {
            "name": mechanism.name,
            "noise_multiplier": mechanism.noise_multiplier,
            "clipping_norm": mechanism.clipping_norm,
            "clip_rule": CLIP_RULE,
            "sensitivity": mechanism.sensitivity,
            "sensitivity_slack": mechanism.sensitivity_slack,
            "divisor": terms.expected_batch_size,
            "engine": terms.engine,
            "float_class": terms.float_class,
            "beside": list(mechanism.beside),
            "trials": None if mechanism.trials is None else mechanism.trials.to_json(),
            "event": mechanism.event(terms.steps_done),
            "planned_event": mechanism.event(),
        },
        "sampling": {
            "name": mechanism.sampler,
            "rate": terms.expected_batch_size / terms.public_size,
            "expected_batch_size": terms.expected_batch_size,
            "steps_planned": mechanism.steps,
            "steps_done": terms.steps_done,
            "implementation": SAMPLER,
        },
        "randomness": {
            "noise": terms.noise,
            "source": words.NOISE[terms.noise],
            "cryptographic": terms.noise == "secure",
            "seed_disclosed": False,
        },
        "guarantee": guarantee,
        "accounting": {
            "method": "RDP" if selects else "PLD",
            "interval": interval_for(mechanism.event(), guarantee["epsilon_planned"], terms.priced_delta),
            "rounding": "pessimistic",
            "check": words.CHECK[selects],
            "delta_for_noise": terms.delta * NOISE_RESERVE,
            "assumptions": words.assumptions(terms),
        },
        "limits": {
            "claim": words.sentence(terms, guarantee["epsilon"]),
            "not_covered": words.not_covered(terms),
        },
    }


def no_promise(plan: Plan, facts: RunFacts, why: str) -> dict[str, Any]:
    """The same blocks where nothing is promised."""
    return {
        "sentence": words.NO_PRIVACY[why],
        "unit": {
            "kind": plan.unit,
            "max_rows": plan.max_rows_per_unit,
            "enforced_by": words.enforced_by(plan.unit, plan.max_rows_per_unit),
        },
        "adjacency": None,
        "scope": {"covered": [], "uncovered": words.NOTHING, "nonprivate_metrics": facts.nonprivate_metrics},
        "threat": None,
        "mechanism": None,
        "sampling": {"steps_planned": plan.steps, "steps_done": facts.steps_done},
        "randomness": None,
        "guarantee": None,
        "accounting": None,
        "tuning": None,
        "limits": {"claim": words.NO_PRIVACY[why], "not_covered": words.NOTHING_COVERED},
    }


def _guarantee(plan: Plan, terms: Terms) -> dict[str, Any]:
    planned, claimed = plan.epsilon, plan.epsilon_after(terms.steps_done)
    assert planned is not None and claimed is not None
    listed = [] if terms.stopped else plan.epsilon_at()
    interval = interval_for(terms.mechanism.event(), planned, terms.priced_delta)
    return guarantee_block(terms, epsilon=claimed, planned=planned, epsilon_at=listed, interval=interval)


def _library() -> dict[str, str]:
    """Whose code computed the numbers; which rule it applied follows from the terms."""
    return {key: value for key, value in accounting.method().items() if key != "method"}


def _records(plan: Plan, facts: RunFacts) -> dict[str, Any]:
    """The blocks that are on record only: nothing in ``guarantee`` rests on them but the declared size."""
    data, metrics = facts.data, facts.nonprivate_metrics
    return {
        "identity": {
            "run_id": facts.run_id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "software": f"dptrain {__version__}",
            "supersedes": None,
        },
        "artifact": {
            "format": "safetensors",
            "files": facts.files,
            "released_outputs": ["final weights", *(f"metric {name}" for name in metrics)],
            "base_model": None,
            "adapters": None,
        },
        "dataset": {
            "name": str(data.get("name", "the data")),
            "licence": str(data.get("licence", "not stated")),
            "classification": KINDS.get(data.get("is_public"), "not stated"),
            "public_size": plan.public_size,
            "public_split": str(data.get("public_split", "not stated")),
            "version": None,
            "time_range": None,
            "manifest_digest": "kept in the internal tier: a digest of private rows lets a guess be tested",
        },
        "composition": facts.composition,
        "selfcheck": facts.selfcheck,
        "audit": facts.audit,
        "utility": facts.utility,
        "pretraining": None,
        "environment": facts.environment,
        "governance": facts.governance,
    }
