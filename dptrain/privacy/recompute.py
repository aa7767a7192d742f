"""A statement's numbers, computed anew from its public fields alone.

Epsilon is priced at the discretisation of the privacy loss that it was stated with, which is itself a bound and which
no claim may lie below; at a coarser one, which no claim may lie above; and by Renyi DP, an upper bound by other code.
Every other field of the blocks that follow from the terms is derived again and compared leaf by leaf.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from dptrain.privacy.tradeoff import Profile, group_epsilon
from dptrain.privacy.tuning import PUBLIC
from dptrain.privacy.verdict import MISMATCH, OK, UNKNOWN, Verdict

CLOSE = 0.002
"""How much above what is recomputed an epsilon may be stated, relative to it."""
BELOW = 1e-4
"""How much below: rounding of two grids that differ a little, and no more, for what passes is believed."""
COARSER = 4.0
"""How much wider the cells of the other discretisation are."""
LOOSE = 0.002
"""What is read off the curve: how far from what is recomputed, relative to the smaller of p and 1 - p."""
GRANTED = (0.7, 1.3)
"""Shares of the reserve for arithmetic between which another processor's rounding may have brought a profile."""
SMALLEST_NOISE = 0.15
LARGEST_STEPS = 100_000_000
LARGEST_EPSILON = 2000.0
"""At delta 1e-15, by Renyi DP."""
MOST_CELLS = 4e6
"""Of a composed loss, where a cell is a number in a Fourier transform."""
MOST_STEP_CELLS = 5e5
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


def _grid(terms: Terms, event: Event, wanted: float) -> float:
    """The discretisation that is wanted, made coarser where it would take more cells than are computed here.

    Raises:
        ConfigError: the event costs so much that it promises nothing.
    """
    renyi = Profile(event, terms.adjacency, None).renyi_epsilon(1e-15)
    if not renyi < LARGEST_EPSILON:  # past 9,000 a step even that is no bound (privacy_filter.LARGEST)
        raise ConfigError("event", "", f"costs more than epsilon {LARGEST_EPSILON:g}", "it promises nothing")
    widths = sum(_width(rate, sigma) for rate, sigma in accounting.kinds_of_steps(accounting.parts(event)))
    grid = max(wanted, widths / MOST_STEP_CELLS, 2.0 * renyi / MOST_CELLS)
    return grid * (1.0 + 1e-12)  # at FINE itself the accountant chooses for itself, without bounds


def _width(rate: float, sigma: float) -> float:
    """Privacy losses of a step from end to end, both ways: ten deviations of the noise are looked at."""
    if rate == 1.0:
        return 20.0 / sigma
    largest = 10.0 / sigma + 0.5 / sigma**2
    return 2.0 * (math.log1p(rate * math.expm1(largest)) - math.log1p(-rate))


def _prices(terms: Terms, event: Event, deltas: Sequence[float], wider: float = 1.0) -> list[float]:
    """Epsilons as ``accounting.epsilons`` states them, on cells ``wider`` times as wide, within the bounds above."""
    starts = [interval_for(event, math.inf, delta) for delta in deltas]
    if None in starts:
        return accounting.epsilons(event, deltas, terms.adjacency)
    grids = [_grid(terms, event, wider * start) for start in starts if start is not None]
    pairs = zip(deltas, grids, strict=True)
    values = [accounting.epsilon(event, delta, terms.adjacency, grid) for delta, grid in pairs]
    if max(values) >= 0.2 or len(accounting.kinds_of_steps(accounting.parts(event))) > 1:
        return values
    finer = _grid(terms, event, wider * max(max(values) * 1e-3, 1e-7))
    again = accounting.epsilons(event, deltas, terms.adjacency, finer)
    return [min(pair) for pair in zip(values, again, strict=True)]


def _check_epsilon(guarantee: dict[str, Any], terms: Terms, verdict: Verdict) -> None:
    stated, claimed = guarantee["epsilon_planned"], guarantee["epsilon"]
    event, delta = terms.mechanism.event(), terms.priced_delta
    other = _prices(terms, event, [delta], COARSER)[0]
    expected = _when_stopped(terms, stated) if terms.stopped else stated
    price = _prices(terms, event, [delta])[0]
    selects = accounting.has_selection(event)
    how = "Renyi DP, as any selection is" if selects else f"{other:.6g} on cells {COARSER:g} times as wide"
    found = f"claimed {claimed:.6g} at delta {terms.delta:g}; recomputed {price:.6g} ({how})"
    low, high = (1.0 - BELOW, 1.0 + CLOSE) if terms.stopped else (1.0, 1.0)
    if stated < price * (1.0 - BELOW):
        verdict.add("epsilon", MISMATCH, f"{found}: too low for the mechanism that is named")
    elif stated > price * (1.0 + CLOSE) + 1e-9 or stated > other * (1.0 + BELOW) + 1e-9:
        verdict.add("epsilon", MISMATCH, f"{found}: not that of the mechanism that is named")
    elif not expected * low <= claimed <= expected * high:
        verdict.add("epsilon", MISMATCH, f"claimed {claimed:.6g}; the rules for '{terms.claim}' give {expected:.6g}")
    else:
        verdict.add("epsilon", OK, found + (f", stopped early: {expected:.6g}" if terms.stopped else ""))
    if selects:
        verdict.add("upper bound", UNKNOWN, "none by other code: Renyi DP is the only price known of a selection")
        return
    upper = accounting.rdp_epsilon(event, delta, terms.adjacency)
    status = OK if max(stated, claimed) <= upper * (1.0 + BELOW) + 1e-9 else MISMATCH
    verdict.add("upper bound", status, f"{upper:.6g} by Renyi DP, other code than the privacy loss distribution's")


def _when_stopped(terms: Terms, stated: float) -> float:
    """What the ladder gives (``stopping.epsilon_when_stopped``), priced within the bounds above."""

    def priced(event: Event, delta: float) -> float:
        return _prices(terms, event, [delta])[0]

    return epsilon_when_stopped(
        terms.mechanism, terms.steps_done, terms.priced_delta, terms.adjacency, stated, priced=priced
    )


def _check_deltas(guarantee: dict[str, Any], terms: Terms, verdict: Verdict) -> None:
    listed = guarantee["epsilon_at"]
    if terms.stopped:
        status = MISMATCH if listed else OK
        verdict.add("deltas", status, "a run that stopped early is stated at its own delta alone")
        return
    if len(listed) > MOST_DELTAS:
        verdict.add("deltas", MISMATCH, f"more than {MOST_DELTAS} deltas are not recomputed")
        return
    shares = [row["delta"] * (1.0 - NOISE_RESERVE) for row in listed]
    prices = _prices(terms, terms.mechanism.event(), shares) if shares else []
    for row, price in zip(listed, prices, strict=True):
        if not price * (1.0 - BELOW) <= row["epsilon"] <= price * (1.0 + CLOSE) + 1e-9:
            said = f"claimed {row['epsilon']:.6g} at delta {row['delta']:g}; recomputed {price:.6g}"
            verdict.add("deltas", MISMATCH, said)
            return
    if not any(row["delta"] == terms.delta for row in listed):
        verdict.add("deltas", MISMATCH, "the claimed delta is not among them")
        return
    verdict.add("deltas", OK, f"epsilon recomputed at {len(listed)} deltas")


def _check_derived(statement: dict[str, Any], terms: Terms, verdict: Verdict) -> None:
    guarantee = statement["guarantee"]
    event, planned = terms.mechanism.event(), guarantee["epsilon_planned"]
    stated = interval_for(event, planned, terms.priced_delta)
    interval = None if stated is None else _grid(terms, event, stated)
    block = guarantee_block(
        terms,
        epsilon=guarantee["epsilon"],
        planned=planned,
        epsilon_at=guarantee["epsilon_at"],
        interval=interval,
    )
    _grant_rounding(block["groups"]["epsilon"][1:], guarantee["groups"]["epsilon"][1:], terms, interval, planned)
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


def _grant_rounding(
    expected: list[dict[str, Any]], found: list[Any], terms: Terms, interval: float | None, planned: float
) -> None:
    """Takes over what is stated of groups where no more than another processor's rounding lies between.

    A group's epsilon is read off the profile at deltas of 1e-12 and less, where the Fourier transforms of two machines
    differ visibly: by a quarter of the reserve for arithmetic at worst so far (32 mechanisms, seven grids).

    Args:
        expected: as recomputed; changed in place.
        found: as stated; anything at all.
    """
    less, more = (Profile(terms.mechanism.event(), terms.adjacency, interval, share) for share in GRANTED)
    for mine, theirs in zip(expected, found, strict=False):
        stated = theirs.get("epsilon") if isinstance(theirs, dict) else None
        if isinstance(stated, float) and not _agree(stated, mine["epsilon"], "guarantee.groups.epsilon."):
            ends = [group_epsilon(profile, terms.priced_delta, mine["k"], planned) for profile in (less, more)]
            low, high = (100.0 if end is None else end for end in ends)
            if low * (1.0 - LOOSE) <= stated <= high * (1.0 + LOOSE):
                mine["epsilon"] = stated


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
    trials = terms.mechanism.trials
    law = None if trials is None else trials.describe
    wrong = ""
    if tuning["public_only"]:
        wrong = "" if tuning == PUBLIC and trials is None else "said to be on public data only, and is charged"
    elif (tuning["strategy"], tuning["trials_distribution"]) != ("grid" if trials is None else "random", law):
        wrong = "strategy and law of trials are not those of the mechanism"
    elif tuning["epsilon_after"] != statement["guarantee"]["epsilon_planned"]:
        wrong = "epsilon_after is not the epsilon that is claimed"
    else:
        alone = accounting.self_composed(terms.mechanism.steps, terms.mechanism.step_event())
        before = tuning["epsilon_before"] or 0.0
        price = _prices(terms, alone, [terms.priced_delta])[0]
        if not price * (1.0 - BELOW) <= before <= price * (1.0 + CLOSE):
            wrong = f"epsilon_before is {before:.6g}; one run alone costs {price:.6g}"
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
