"""What a report says, as plain strings: the page and the terminal table show the same facts.

Nothing here is escaped; whoever renders must do so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dptrain.report.audit_facts import selfcheck
from dptrain.report.phrases import (
    MISSING,
    duration,
    epsilon_up,
    interval,
    is_number,
    percent,
    plain,
    rate,
    small,
)
from dptrain.report.record import FROM_PRIVATE_ROWS, RunRecord
from dptrain.report.tradeoff import SOURCES, readings, tradeoff_of

Row = tuple[str, str]

NAMES = {
    "test_accuracy": "Accuracy",
    "test_mae": "Mean absolute error",
    "test_rmse": "Root mean squared error",
    "test_auroc": "AUROC",
    "test_f1": "F1",
    "test_average_precision": "Average precision",
    "test_log_loss": "Log loss",
    "public_loss": "Public loss",
}
SHARES = ("test_accuracy",)
ADJACENCY = {
    "zero_out": "zero-out: one {unit}'s contribution is replaced by nothing; how many {unit}s there are is public",
    "add_remove": "add or remove one {unit}; how many {unit}s there are is not public",
}
STATUS = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
CLAIM = {"planned": "the planned run, all steps taken", "stopped_early": "a run stopped before its planned end"}


@dataclass(frozen=True)
class Card:
    """One of the few numbers on top."""

    label: str
    value: str
    note: str
    tone: str = "plain"  # plain | private | alarm | found


@dataclass(frozen=True)
class Attack:
    """One line of the attack table: AUC and the rate of members found at each false-positive rate."""

    name: str
    auc: str
    found: list[Row]


def no_promise(record: RunRecord) -> str | None:
    """The banner of a run that promises nothing; None for a private one."""
    if record.private:
        return None
    return "No privacy promise. This model may reveal anything about the rows it was trained on."


def headline_name(record: RunRecord) -> str | None:
    """The metric that says how good the model is."""
    for name in ("test_accuracy", "test_mae", *sorted(record.final)):
        if name.startswith("test_") and is_number(record.final.get(name)):
            return name
    return None


def headline(record: RunRecord) -> Row | None:
    """Name and value of that metric, for people."""
    name = headline_name(record)
    return None if name is None else metric(name, record.final[name])


def metric(name: str, value: Any) -> Row:
    """A metric's name and value for people."""
    label = NAMES.get(name, name.removeprefix("test_").replace("_", " "))
    return label, percent(value) if name in SHARES else plain(value)


def story(record: RunRecord) -> str:
    """The run in one breath."""
    found = headline(record)
    good = f"{found[0]} {found[1]} on public rows" if found else "How good it is was not measured"
    if not record.private:
        return f"{good}, trained without a privacy promise."
    epsilon, delta = record.get("statement.guarantee.epsilon"), record.get("statement.guarantee.delta")
    unit = record.get("statement.unit.kind") or "unit"
    return f"{good}, at a privacy cost of ε = {epsilon_up(epsilon)} per {unit} (δ = {small(delta)})."


def cards(record: RunRecord) -> list[Card]:
    """How good, how private, what an attack finds."""
    found = headline(record)
    made = [Card(found[0] if found else "Accuracy", found[1] if found else MISSING, "on the public split")]
    if record.private:
        delta = small(record.get("statement.guarantee.delta"))
        target = record.get("plan.target_epsilon")
        of = f", of {epsilon_up(target)} allowed" if is_number(target) else ""
        made.append(
            Card(
                "Privacy cost ε",
                epsilon_up(record.get("statement.guarantee.epsilon")),
                f"at δ = {delta}{of}",
                "private",
            )
        )
    else:
        made.append(Card("Privacy cost ε", "none promised", "the model may reveal any row", "alarm"))
    if record.tier == "internal":
        strongest = _strongest(record)
        if strongest is None:
            made.append(Card("Attack AUC", "not run", "dptrain audit runs it"))
        else:
            note = _against_guessing(record, strongest)
            tone = "found" if note.startswith("better") else "plain"
            made.append(Card("Attack AUC", f"{strongest['auc']['value']:.3f}", note, tone))
    else:
        done, planned = record.get("result.steps"), record.get("plan.steps")
        made.append(Card("Noisy steps", plain(done), f"of {plain(planned)} planned"))
    return made


def promise(record: RunRecord) -> list[Row]:
    """The terms of the statement."""
    if not record.private:
        return []
    unit = str(record.get("statement.unit.kind") or "unit")
    cap = record.get("statement.unit.max_rows")
    adjacency = str(record.get("statement.adjacency.relation"))
    claim = str(record.get("statement.guarantee.claim"))
    rows = [
        ("Protected", "each record" if unit == "record" else f"each {unit}, with at most {plain(cap)} rows"),
        ("Neighbouring data", ADJACENCY.get(adjacency, adjacency).format(unit=unit)),
        ("Claim", CLAIM.get(claim, claim)),
    ]
    rows += selfcheck(record)
    rows += choice_of_settings(record)
    published = record.get("statement.scope.nonprivate_metrics") or []
    if published:
        rows.append(("Published outside the promise", ", ".join(str(name) for name in published)))
    return rows


def choice_of_settings(record: RunRecord) -> list[Row]:
    """What choosing the settings added to the promise; empty where nothing was declared."""
    tuning = record.get("statement.tuning")
    if not isinstance(tuning, dict):
        return []
    if tuning.get("public_only") is True:
        return [("Choice of settings", "on public or synthetic rows only: free")]
    law = tuning.get("trials_distribution")
    kind = f"the best of a secret number of trials ({law})" if law else "the best of several runs, all charged"
    before, after = epsilon_up(tuning.get("epsilon_before")), epsilon_up(tuning.get("epsilon_after"))
    return [("Choice of settings", f"{kind}: ε = {before} for one trial alone, {after} with the choice")]


def assumptions(record: RunRecord) -> list[Row]:
    """What must hold for the promise, and what makes it hold."""
    entries = record.get("statement.accounting.assumptions") or []
    return [(str(e.get("claim", "")), _held_by(e)) for e in entries if isinstance(e, dict)]


def _held_by(entry: dict[str, Any]) -> str:
    """What makes an assumption hold, and where that is verified; ``assumed`` where nothing does."""
    made, where = entry.get("implemented"), entry.get("verified_by")
    if not made:
        return "assumed"
    return f"{made}{'; assumed' if entry.get('assumed') else ''}{f' (verified by {where})' if where else ''}"


def not_covered(record: RunRecord) -> list[str]:
    """What the promise leaves open."""
    return [str(entry) for entry in record.get("statement.limits.not_covered") or []]


def cost(record: RunRecord) -> list[Row]:
    """What the promise was paid with."""
    if not record.private:
        return []
    get = record.get
    done, planned = get("statement.sampling.steps_done"), get("statement.sampling.steps_planned")
    steps = plain(done) if done == planned else f"{plain(done)} of {plain(planned)} planned"
    rows = [
        ("Noise multiplier σ", plain(get("statement.mechanism.noise_multiplier"))),  # noqa: RUF001
        ("Clipping norm C", plain(get("statement.mechanism.clipping_norm"))),
        ("Sampling rate q", f"{plain(get('statement.sampling.rate'))} (Poisson)"),
        ("Expected batch size", plain(get("statement.sampling.expected_batch_size"))),
        ("Steps T", steps),
        ("Signal to noise, best case", f"{plain(get('plan.signal_to_noise'), 3)} a step"),
        ("Noise source", str(get("statement.randomness.source") or get("statement.randomness.noise") or MISSING)),
        ("Arithmetic of the clipped sum", str(get("statement.mechanism.float_class") or MISSING)),
        ("Accountant", " ".join(str(get(f"statement.accounting.{k}") or "") for k in ("method", "library", "version"))),
    ]
    return [(label, value) for label, value in rows if not value.startswith(MISSING) and value.strip()]


def epsilon_table(record: RunRecord) -> list[Row]:
    """One guarantee read at several δ: (δ, ε)."""
    entries = record.get("statement.guarantee.epsilon_at") or []
    return [(small(e.get("delta")), epsilon_up(e.get("epsilon"))) for e in entries if isinstance(e, dict)]


def limits(record: RunRecord) -> list[Row]:
    """What the promise leaves any attack: (false alarms, most members found)."""
    curve = tradeoff_of(record)
    if curve is None:
        return []
    return [(rate(alpha), percent(math.ceil(1000 * found) / 1000)) for alpha, found in readings(curve)]


def limits_source(record: RunRecord) -> str:
    """Where the trade-off curve comes from."""
    curve = tradeoff_of(record)
    return f"The curve is {SOURCES[curve.source]}." if curve else ""


def level(record: RunRecord) -> str:
    """The coverage of the audit's intervals: ``95 %``."""
    return rate(record.audit.get("confidence", 0.95))


def verdict(record: RunRecord) -> str:
    """What the audit concluded; empty without one."""
    return str(record.audit.get("verdict") or "")


def attacks(record: RunRecord) -> list[Attack]:
    """The attack table; rates the sample could not support carry the reason in place of a number."""
    table = []
    for attack in _attacks(record):
        found = []
        for entry in attack.get("tpr") or []:
            refused = entry.get("refused")
            text = f"not shown: {refused}" if refused else interval(entry, as_percent=True)
            found.append((rate(entry.get("fpr")), text))
        name = str(attack.get("name", "?")).replace("_", " ")
        table.append(Attack(name, interval(attack.get("auc"), as_percent=False), found))
    return table


def audit_sample(record: RunRecord) -> str:
    """How many rows the attacks saw."""
    members, others = record.audit.get("members"), record.audit.get("non_members")
    return f"{plain(members)} members and {plain(others)} non-members scored; intervals cover {level(record)}."


def run_facts(record: RunRecord) -> list[Row]:
    """Which data, which model, how long."""
    get = record.get
    parts = (get("statement.dataset.name") or get("result.data"), get("statement.dataset.licence"))
    data = " · ".join(str(part) for part in parts if part)
    size = get("statement.dataset.public_size") or get("plan.public_size")
    rows = [
        ("Run", record.run_id),
        ("Status", STATUS.get(str(get("result.status")), str(get("result.status")))),
        ("Data", data or MISSING),
        ("Public size", f"{plain(size)} {get('plan.unit') or 'unit'}s"),
        ("Public split", str(get("statement.dataset.public_split") or MISSING)),
        ("Model", f"{get('result.model') or MISSING}, {plain(get('result.parameters'))} parameters"),
        ("Features", _unless("none", get("settings.model.features"))),
        ("Optimizer", _optimizer(get("settings.optimizer"))),
        ("Seed", plain(get("settings.seed"))),
        ("Steps", f"{plain(get('result.steps'))} of {plain(get('result.planned_steps'))} planned"),
        ("Device", str(get("result.device") or MISSING)),
        ("Training time", duration(get("result.seconds"))),
        ("Statement made", str(get("statement.identity.created") or MISSING)),
        ("MLflow run", str(get("result.mlflow_run_id") or MISSING)),
        ("Tracking store", str(get("result.tracking_uri") or MISSING)),
    ]
    return [(label, value) for label, value in rows if value != MISSING]


def final_metrics(record: RunRecord) -> list[Row]:
    """Every metric of the finished model; in the internal tier those from private rows too, named as such."""
    order = sorted(record.final, key=lambda name: (name not in ("test_accuracy", "test_mae"), name == "public_loss"))
    rows = [metric(name, record.final[name]) for name in order if is_number(record.final[name])]
    last = record.internal_metrics[-1] if record.internal_metrics else {}
    inside = [(name, last.get(name)) for name in FROM_PRIVATE_ROWS]
    return rows + [(f"{name.replace('_', ' ')} (internal)", plain(value)) for name, value in inside if is_number(value)]


def cautions(record: RunRecord) -> list[str]:
    """The plan's own warnings."""
    return [str(warning) for warning in record.get("plan.warnings") or []]


def _attacks(record: RunRecord) -> list[dict[str, Any]]:
    return [a for a in record.audit.get("attacks") or [] if isinstance(a, dict)]


def _strongest(record: RunRecord) -> dict[str, Any] | None:
    """The attack with the highest AUC."""
    usable = [a for a in _attacks(record) if isinstance(a.get("auc"), dict) and is_number(a["auc"].get("value"))]
    return max(usable, key=lambda a: a["auc"]["value"], default=None)


def _against_guessing(record: RunRecord, attack: dict[str, Any]) -> str:
    """Where the highest AUC lies beside 0.5, by the interval that holds for all attacks together: it was picked."""
    together, count = attack.get("auc_together"), len(_attacks(record))
    ends = together if isinstance(together, dict) else attack["auc"]
    low, high = ends.get("low"), ends.get("high")
    if not (is_number(low) and is_number(high)):
        return "0.5 is guessing"
    if count > 1 and ends is not together:  # an audit of before: the interval is that of one attack by itself
        return f"0.5 is guessing; the highest of {count} attacks, {low:.3f} to {high:.3f} by itself"
    of = f"the highest of {count} attacks; " if count > 1 else ""
    said = f"{of}{level(record)} interval{' for all of them' if count > 1 else ''} {low:.3f} to {high:.3f}"
    if low > 0.5:
        return f"better than guessing (0.5); {said}"
    return f"not told apart from guessing (0.5); {said}" if high >= 0.5 else f"0.5 is guessing; {said}"


def _unless(default: str, value: Any) -> str:
    return MISSING if value in (None, default) else str(value)


def _optimizer(settings: Any) -> str:
    if not isinstance(settings, dict) or "name" not in settings:
        return MISSING
    options = settings.get("options") or {}
    parts = [f"learning rate {plain(settings.get('lr'))}", *(f"{key} {value}" for key, value in options.items())]
    if settings.get("schedule") not in (None, "constant"):
        parts.append(f"{settings['schedule']} schedule")
    return f"{settings['name']}, " + ", ".join(parts)
