"""What may be written to a ledger, and how it says no."""

from __future__ import annotations

import re

from dptrain.errors import BudgetRefused, ConfigError, suggest
from dptrain.privacy.accounting import Event
from dptrain.privacy.ledger_state import Account, EntryState, State
from dptrain.privacy.privacy_filter import fits, value
from dptrain.privacy.reservation import Reservation

PURPOSES = ("debug", "trial", "final", "evaluation", "audit")
RELATIONS = ("same", "version", "subset")


def find_account(state: State, name: str) -> Account:
    """The account of that name; a stranger is refused with a suggestion."""
    if name not in state.accounts:
        remedy = suggest(name, state.accounts) if state.accounts else "'dptrain budget create' makes one"
        raise ConfigError("account", name, "is not an account of this ledger", remedy)
    return state.accounts[name]


def check_free(state: State, digest: str | None, name: str) -> None:
    """Refuses a digest that another account holds."""
    other = state.account_of.get(digest or "")
    if other is not None and other != name:
        raise ConfigError("digest", digest, f"belongs to account '{other}'", f"use ledger.account={other}")


def check_purpose(purpose: str, event: Event | None) -> None:
    """Refuses private data without a class, and a price without private data."""
    if purpose not in PURPOSES:
        raise ConfigError("purpose", purpose, "is not a purpose", suggest(purpose, PURPOSES))
    if purpose == "debug" and event is not None:
        remedy = "say trial, final, evaluation or audit; debug is for public and synthetic data"
        raise ConfigError("purpose", purpose, "costs nothing, and this run reads private rows", remedy)
    if purpose != "debug" and event is None:
        raise ConfigError("event", None, f"a run of purpose {purpose} has a price", "give the plan's event")


def check_account(account: Account, unit: str | None) -> None:
    """Refuses a frozen account, and a run that protects another unit."""
    if account.frozen is not None:
        raise BudgetRefused(
            "account", account.name, f"is frozen: {account.frozen}", "'dptrain budget unfreeze' ends it"
        )
    if unit is not None and unit != account.unit:
        remedy = "set privacy.unit, or make an account of its own"
        raise ConfigError("privacy.unit", unit, f"account '{account.name}' protects a {account.unit}", remedy)


def admitted(account: Account, prices: tuple[int, ...], planned: int) -> float:
    """The account's epsilon with the event on top; refuses what does not fit."""
    totals = account.with_more(prices, planned)
    after = value(account.rules, totals)
    if planned and any(prices) and not fits(account.rules, totals, account.epsilon):
        raise BudgetRefused(
            "account",
            account.name,
            f"would stand at epsilon {after:.4g}, above its limit {account.epsilon:g} (delta {account.delta:g}); "
            f"it stands at {account.value:.4g}",
            f"ask for less: 'dptrain budget forecast dataset={account.name}' says what fits",
        )
    return after


def find_open(state: State, reservation: Reservation) -> EntryState:
    """The open entry that a reservation still holds."""
    entry = state.entries.get(reservation.entry)
    if entry is None or entry.run_id != reservation.run_id:
        raise BudgetRefused("entry", reservation.entry, "is not in this ledger", "open the ledger it was reserved in")
    if not entry.is_open:
        raise BudgetRefused("run.id", entry.run_id, f"its entry was {entry.status}", "start a new run")
    if entry.attempt != reservation.attempt:
        raise BudgetRefused("run.id", entry.run_id, "was taken over by another process", "leave it to that one")
    return entry


def check_name(name: str) -> None:
    """Refuses an account's name that is not plain."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is None:
        raise ConfigError("account", name, "is not a plain name", "use letters, digits, '.', '_' and '-'")


def check_reason(text: str) -> str:
    """A reason that says something."""
    if not text.strip():
        raise ConfigError("reason", text, "is empty", "say why: it is kept in the ledger")
    return text.strip()
