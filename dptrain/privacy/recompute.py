"""A statement's numbers, computed anew from its public fields alone.

Epsilon is priced at another discretisation of the privacy loss than it was stated with (twice as coarse, hence no
lower; where the claim lies more than ``CLOSE`` below that, half as coarse decides), and by Renyi DP as an upper bound.
Every other field of the blocks that follow from the terms is derived again and compared leaf by leaf.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.guarantee import guarantee_block, interval_for
from dptrain.privacy.plan import NOISE_RESERVE
from dptrain.privacy.statement import derived_blocks
from dptrain.privacy.statement_words import CLASS_OF
from dptrain.privacy.stopping import epsilon_when_stopped
from dptrain.privacy.terms import Terms, terms_of_statement
from dptrain.privacy.tradeoff import Profile
from dptrain.privacy.verdict import MISMATCH, OK, UNKNOWN, Verdict

CLOSE = 0.002
"""Relative difference of epsilons that two discretisations may show."""
LOOSE = 0.01
"""The same for what is read off the curve: relative to the smaller of a probability and its complement."""
SMALLEST_NOISE = 0.15
LARGEST_STEPS = 100_000_000
MOST_CELLS = 4e6
"""Of a composed loss, where a cell is a number in a Fourier transform."""
MOST_STEP_CELLS = 3e5
"""Of the losses of single steps together, where a cell is a call of the loss function."""
MOST_GROUPS = 8
MOST_DELTAS = 8
"""Bounds on what is recomputed: beyond them a statement promises nothing worth the work, or means harm."""


def check_numbers(statement: dict[str, Any], verdict: Verdict) -> None:
    """Adds the lines ``terms``, ``epsilon``, ``upper bound``, ``deltas``, ``derived`` and ``tuning``.

    Args:
        statement: fits its schema, and promises something.
        verdict: is added to.
    """
    try:
        terms = terms_of_statement(statement)
        wrong = _unsound(statement, terms)
    except (ConfigError, ValueError, OverflowError) as error:
        terms, wrong = None, str(error)
    if terms is None or wrong:
        verdict.add("terms", MISMATCH, wrong)
        verdict.add("epsilon", MISMATCH, "not recomputed: its terms do not stand")
        return
    verdict.add("terms", OK, "noise, sampling, steps and declared size agree with one another")
    try:
        _check_epsilon(statement["guarantee"], terms, verdict)
        _check_deltas(statement["guarantee"], terms, verdict)
        _check_derived(statement, terms, verdict)
        _check_tuning(statement, terms, verdict)
    except (ConfigError, ValueError, OverflowError, ZeroDivisionError, MemoryError) as error:
        verdict.add("epsilon", MISMATCH, f"cannot be recomputed: {error}")


def _unsound(statement: dict[str, Any], terms: Terms) -> str:
    """Why the terms are not priced; empty where they can be.

    Raises:
        ConfigError: an event is outside the closed schema.
    """
    for event in (*terms.mechanism.beside, terms.mechanism.event()):
        accounting.to_dp_event(event)
    return _disagree(statement, terms) or _too_costly(terms)


def _disagree(statement: dict[str, Any], terms: Terms) -> str:
    """What in the terms contradicts itself; empty where nothing does."""
    sampling, mechanism = statement["sampling"], terms.mechanism
    if terms.expected_batch_size > terms.public_size:
        return "the expected batch is larger than the declared number of units"
    if not math.isclose(sampling["rate"], terms.expected_batch_size / terms.public_size, rel_tol=1e-12):
        return "sampling.rate is not the expected batch size over the declared number of units"
    if mechanism.divisor != terms.expected_batch_size:
        return "mechanism.divisor is not the expected batch size"
    if mechanism.steps < 1 or not 0 <= terms.steps_done <= mechanism.steps:
        return "more steps were taken than planned, or none planned"
    if terms.unit == "record" and terms.max_rows != 1:
        return "a record is one row"
    floating = terms.float_class == "floating"
    if floating != (terms.noise == "fast"):
        return "float class 'floating' belongs to fast noise, and to no other"
    if not floating and terms.float_class != CLASS_OF.get(terms.engine, terms.float_class):
        return f"engine '{terms.engine}' is of float class '{CLASS_OF[terms.engine]}'"
    if not statement["private"]:
        return "a guarantee is given, and private is false"
    return ""


def _too_costly(terms: Terms) -> str:
    """Why pricing is refused; empty where it is not."""
    if terms.mechanism.steps > LARGEST_STEPS:
        return f"more than {LARGEST_STEPS} steps are not recomputed"
    groups = list(_steps(terms.mechanism.event()))
    if any(sigma < SMALLEST_NOISE for sigma in groups):
        return f"noise multipliers below {SMALLEST_NOISE} promise nothing and are not recomputed"
    if len(groups) > MOST_GROUPS:
        return f"more than {MOST_GROUPS} kinds of steps are not recomputed"
    return ""


def _steps(event: Event) -> Iterator[float]:
    """Noise multipliers of all steps in an event."""
    if event["type"] == "gaussian":
        yield event["noise_multiplier"]
    for inner in event.get("events", [event["event"]] if "event" in event else []):
        yield from _steps(inner)


def other_interval(terms: Terms, epsilon: float, factor: float = 2.0) -> float:
    """A discretisation other than the one an epsilon of this size is stated with, kept to ``MOST_CELLS`` cells."""
    widths = sum(2.0 * (10.0 / sigma + 0.5 / sigma**2) for sigma in _steps(terms.mechanism.event()))
    renyi = Profile(terms.mechanism.event(), terms.adjacency, None).renyi_epsilon(1e-15)
    if not math.isfinite(renyi):
        raise ConfigError("event", "", "has no finite price", "it promises nothing")
    return max(factor * interval_for(epsilon), widths / MOST_STEP_CELLS, 2.0 * renyi / MOST_CELLS)


def _price(terms: Terms, delta: float, interval: float) -> float:
    return accounting.epsilon(terms.mechanism.event(), delta, terms.adjacency, interval)


def _low(terms: Terms, claimed: float, delta: float, coarse: float) -> float:
    """What a claim must not lie below: the coarse price, or the finer one where the claim lies clearly below that."""
    if claimed >= coarse * (1.0 - CLOSE):
        return claimed
    return _price(terms, delta, other_interval(terms, claimed, 0.5)) * (1.0 - 1e-4)


def _check_epsilon(guarantee: dict[str, Any], terms: Terms, verdict: Verdict) -> None:
    stated = guarantee["epsilon_planned"]
    interval = other_interval(terms, stated)
    coarse = _price(terms, terms.priced_delta, interval)
    claimed, expected = guarantee["epsilon"], stated
    if terms.stopped:
        at = (terms.mechanism, terms.steps_done, terms.priced_delta, terms.adjacency, stated)
        expected = epsilon_when_stopped(*at, interval=other_interval(terms, claimed))
    found = f"claimed {claimed:.6g} at delta {terms.delta:g}; recomputed {coarse:.6g} (discretisation {interval:.1g})"
    if stated < _low(terms, stated, terms.priced_delta, coarse):
        verdict.add("epsilon", MISMATCH, f"{found}: too low for the mechanism that is named")
    elif stated > coarse * (1.0 + CLOSE) + 1e-9:
        verdict.add("epsilon", MISMATCH, f"{found}: not that of the mechanism that is named")
    elif not math.isclose(claimed, expected, rel_tol=CLOSE if terms.stopped else 0.0, abs_tol=0.0):
        verdict.add("epsilon", MISMATCH, f"claimed {claimed:.6g}; the rules for '{terms.claim}' give {expected:.6g}")
    else:
        verdict.add("epsilon", OK, found + (f", stopped early: {expected:.6g}" if terms.stopped else ""))
    upper = accounting.rdp_epsilon(terms.mechanism.event(), terms.priced_delta, terms.adjacency)
    status = OK if max(stated, claimed, coarse / (1.0 + CLOSE)) <= upper * (1.0 + 1e-9) + 1e-9 else MISMATCH
    verdict.add("upper bound", status, f"{upper:.6g} by Renyi DP, other code than the privacy loss distribution's")


def _check_deltas(guarantee: dict[str, Any], terms: Terms, verdict: Verdict) -> None:
    listed = guarantee["epsilon_at"]
    if terms.stopped:
        status = MISMATCH if listed else OK
        verdict.add("deltas", status, "a run that stopped early is stated at its own delta alone")
        return
    if len(listed) > MOST_DELTAS:
        verdict.add("deltas", MISMATCH, f"more than {MOST_DELTAS} deltas are not recomputed")
        return
    largest = max((row["epsilon"] for row in listed), default=0.0)
    interval = other_interval(terms, largest)
    for row in listed:
        share = row["delta"] * (1.0 - NOISE_RESERVE)
        coarse = _price(terms, share, interval)
        if not _low(terms, row["epsilon"], share, coarse) <= row["epsilon"] <= coarse * (1.0 + CLOSE) + 1e-9:
            said = f"claimed {row['epsilon']:.6g} at delta {row['delta']:g}; recomputed {coarse:.6g}"
            verdict.add("deltas", MISMATCH, said)
            return
    if not any(row["delta"] == terms.delta for row in listed):
        verdict.add("deltas", MISMATCH, "the claimed delta is not among them")
        return
    verdict.add("deltas", OK, f"epsilon recomputed at {len(listed)} deltas")


def _check_derived(statement: dict[str, Any], terms: Terms, verdict: Verdict) -> None:
    guarantee = statement["guarantee"]
    block = guarantee_block(
        terms,
        epsilon=guarantee["epsilon"],
        planned=guarantee["epsilon_planned"],
        epsilon_at=guarantee["epsilon_at"],
        interval=other_interval(terms, guarantee["epsilon_planned"]),
    )
    expected = derived_blocks(terms, block)
    found = {name: statement[name] for name in expected}
    found["accounting"] = {key: statement["accounting"][key] for key in expected["accounting"]}
    differences = list(_differences(found, expected, ""))
    if differences:
        path, stated, recomputed = differences[0]
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        verdict.add("derived", MISMATCH, f"{path} is {_short(stated)}, recomputed {_short(recomputed)}{more}")
    else:
        count = sum(1 for _ in _leaves(expected))
        verdict.add("derived", OK, f"curve, advantage, rates, groups, sentence and assumptions: {count} fields agree")


def _differences(found: Any, expected: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(path, stated, recomputed) of every leaf that is not what it should be."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in sorted({*expected, *found}):
            yield from _differences(found.get(name), expected.get(name), f"{path}.{name}".lstrip("."))
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from _differences(one, other, f"{path}.{index}")
    elif not _agree(found, expected, path):
        yield path, found, expected


def _agree(found: Any, expected: Any, path: str) -> bool:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (found, expected))
    if not numbers:
        group = path.startswith("guarantee.groups.epsilon")
        if group and found is None:
            return expected is None or expected > 90.0  # the rule's own end lies at 100
        if group and expected is None:
            return isinstance(found, float) and 90.0 < found <= 100.0
        return type(found) is type(expected) and found == expected
    if not path.startswith("guarantee.") or path.endswith((".alpha", ".fpr", ".prior", ".k", ".delta")):
        return math.isclose(found, expected, rel_tol=1e-12)
    if path.endswith((".beta", ".tpr", ".right", "guarantee.advantage")):
        room = LOOSE * min(abs(expected), abs(1.0 - expected)) + 2e-6
        return abs(found - expected) <= room
    if path.endswith(".mu") or (".groups." in path and not path.endswith(".0.epsilon")):
        return math.isclose(found, expected, rel_tol=LOOSE, abs_tol=1e-9)
    return math.isclose(found, expected, rel_tol=1e-12)


def _check_tuning(statement: dict[str, Any], terms: Terms, verdict: Verdict) -> None:
    tuning = terms.tuning
    if tuning is None:
        detail = "nothing was declared; whether settings were tried out on private rows is the user's word"
        verdict.add("tuning", UNKNOWN if terms.mechanism.trials is None else MISMATCH, detail)
        return
    wrong = ""
    if tuning["public_only"]:
        if terms.mechanism.trials is not None:
            wrong = "said to be on public data only, and trials are charged"
    elif tuning["epsilon_after"] != statement["guarantee"]["epsilon_planned"]:
        wrong = "epsilon_after is not the epsilon that is claimed"
    elif tuning["epsilon_before"] is not None:
        alone = accounting.self_composed(terms.mechanism.steps, terms.mechanism.step_event())
        interval = other_interval(terms, tuning["epsilon_before"])
        price = accounting.epsilon(alone, terms.priced_delta, terms.adjacency, interval)
        if not math.isclose(price, tuning["epsilon_before"], rel_tol=LOOSE):
            wrong = f"epsilon_before is {tuning['epsilon_before']:.6g}; one run alone costs {price:.6g}"
    verdict.add("tuning", MISMATCH if wrong else OK, wrong or "its price is that of the mechanism named")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
