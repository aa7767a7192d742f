"""An entry that is taken up again: a run that was killed (its entry is open) or stopped (its entry was settled).

Guarantee: an entry keeps its one planned event, and every step that was ever committed and not given back by a settling
counts towards it. So all attempts of a run together release at most the planned steps, and the account bears the event
once. What a settling gave back is weighed anew, like a new reservation: meanwhile others may have spent it.
"""

from __future__ import annotations

from typing import Any

from dptrain.errors import BudgetRefused
from dptrain.privacy.accounting import Event
from dptrain.privacy.ledger import Ledger
from dptrain.privacy.ledger_rules import admitted, check_account, find_account
from dptrain.privacy.ledger_state import EntryState, State
from dptrain.privacy.reservation import Reservation
from dptrain.signing import canonical


def entry_of(ledger: Ledger, number: int, *, run_id: str, event: Event) -> EntryState:
    """A run's own entry, whatever became of it.

    Args:
        number: of the entry, as the run noted it.
        run_id, event: of the run; an entry with others is refused.

    Raises:
        BudgetRefused: the ledger has no such entry, or it is of another run or another mechanism.
    """
    entry = ledger.state.entries.get(number)
    if entry is None:
        raise BudgetRefused("entry", number, "is not in this ledger", "open the ledger it was reserved in")
    if entry.run_id != run_id:
        raise BudgetRefused("run.id", run_id, f"entry {number} is of run '{entry.run_id}'", "resume that one")
    if entry.event is None or canonical(entry.event) != canonical(event):
        raise BudgetRefused("entry", number, "was reserved for another mechanism", "start a new run")
    return entry


def take_up(ledger: Ledger, number: int) -> Reservation:
    """The entry with all that is left of it, for this process alone: an older holder may no longer commit.

    An entry that is open goes on as it is. One that was closed is opened again, if the account admits what is left.

    Raises:
        BudgetRefused: the account is frozen or cannot bear the rest; or nothing is left. Nothing was written.
    """
    ledger.log.refresh()
    entry = ledger.state.entries[number]
    if entry.is_open:
        return ledger.resume(number)

    def row(state: State) -> dict[str, Any]:
        found = state.entries[number]
        if found.is_open:
            raise BudgetRefused("run.id", found.run_id, "was taken up by another process", "leave it to that one")
        left = found.planned_steps - found.charged_steps
        if left <= 0:
            raise BudgetRefused("run.id", found.run_id, "has taken all its planned steps", "start a new run")
        for other in state.open_entries(found.run_id):
            if other.purpose == found.purpose:
                raise BudgetRefused("run.id", found.run_id, f"is open as entry {other.entry}", "'dptrain budget show'")
        account = find_account(state, found.account)
        check_account(account, None)
        admitted(account, found.prices, left)
        return {"kind": "reopen", "entry": number, "attempt": found.attempt + 1}

    ledger.log.write(row)
    return held(ledger, number)


def held(ledger: Ledger, number: int) -> Reservation:
    """The reservation of an entry as it stands; adds no row."""
    entry = ledger.state.entries[number]
    return Reservation(
        entry.entry,
        entry.account,
        entry.run_id,
        entry.purpose,
        entry.planned_steps,
        entry.charged_steps,
        entry.attempt,
        entry.epsilon_account_before,
        ledger.state.accounts[entry.account].value,
    )
