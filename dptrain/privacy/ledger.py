"""The ledger: one account per data set across all runs. Reserve, commit, settle.

    ledger = open_ledger(None)
    ledger.create_account("adult", epsilon=8, delta=1e-5, digest=digest)
    reservation = ledger.reserve("adult", event=event, run_id="r1", purpose="final", delta=1e-5, epsilon=3.0)
    ledger.commit(reservation, 20)       # on disk: steps 1 to 20 may be executed from now on
    ledger.settle(reservation, 17)       # charged for 17; the rest goes back

Guarantee: while every private step is committed here before its noise leaves the process, what was released from an
account is (limit epsilon, delta)-DP for one unit, under the rule of ``privacy/privacy_filter.py``: across processes,
kills, concurrent runs, early stops and refunds. What is open counts whole; a run that died stays charged at least for
its last committed lease. The account can be over-counted, never under-counted.

What is checked when. At open: every row against its hash and its place, the last row against the signed head, the head
against the newest one remembered here. At every reserve, commit and settle: the rows that others have added since, in
the same way, and that nothing was taken back. ``budget verify`` recomputes prices and admissions besides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from dptrain.errors import BudgetRefused, ConfigError, suggest
from dptrain.privacy.accounting import Event
from dptrain.privacy.chain import Head, LedgerBroken
from dptrain.privacy.ledger_log import LedgerLog
from dptrain.privacy.ledger_rules import (
    PURPOSES,
    RELATIONS,
    admitted,
    check_account,
    check_free,
    check_name,
    check_purpose,
    check_reason,
    find_account,
    find_open,
)
from dptrain.privacy.ledger_state import Account, EntryState, State
from dptrain.privacy.ledger_store import WAIT_SECONDS, LedgerStore
from dptrain.privacy.ledger_totals import Totals, totals_of
from dptrain.privacy.privacy_filter import check_limit, declare_rules, fits, step_price, steps_of, value
from dptrain.privacy.reservation import Reservation
from dptrain.signing import Signer, home, load_signer

__all__ = ["PURPOSES", "RELATIONS", "Account", "Ledger", "Reservation", "Totals", "open_ledger"]


def default_uri() -> str:
    """``ledger.db`` in the user's own room."""
    return f"sqlite:///{(home() / 'ledger.db').absolute()}"


def open_ledger(
    uri: str | None,
    signer: Signer | None = None,
    *,
    create: bool = True,
    check: bool = True,
    wait: float = WAIT_SECONDS,
) -> Ledger:
    """Opens a ledger, checked from its first row to its signed head; makes it where there is none.

    Args:
        uri: ``sqlite:///FILE`` or ``postgresql+psycopg://...``; None for ``ledger.db`` in the user's own room.
        signer: who signs what is written; None for the user's own key.
        create: False refuses where no ledger was made yet.
        check: False leaves the check out, for ``verify_chain``, which says more than the first thing it finds.
        wait: seconds to wait for another process.

    Raises:
        ConfigError: the address is refused or cannot be reached.
        LedgerBroken: a row, the head or a remembered head contradicts the rest (exit code 3).
    """
    ledger = Ledger(LedgerStore(uri or default_uri(), wait), signer or load_signer())
    if not ledger.store.exists():
        if not create:
            raise ConfigError("ledger", ledger.store.place, "holds no ledger yet", "make an account: 'budget create'")
        ledger.log.make()
    if check:
        ledger.log.refresh()
    return ledger


class Ledger:
    """An open ledger; made by ``open_ledger``. Safe to use from several threads and processes at once."""

    def __init__(self, store: LedgerStore, signer: Signer) -> None:
        self.store = store
        self.log = LedgerLog(store, signer)

    @property
    def id(self) -> str:
        """32 hexadecimal digits, drawn when the ledger was made."""
        return self.state.ledger_id

    @property
    def state(self) -> State:
        """What the rows add up to, as of the last look."""
        return self.log.state

    @property
    def secret(self) -> bytes:
        """Key of data-set digests (32 bytes): the same rows have the same digest in one ledger, and in no other.

        Whoever can read the ledger can compute digests, and so test a guess of a whole data set against it.
        """
        with self.store.read() as connection:
            found = self.store.secret(connection)
        if hashlib.sha256(found).hexdigest() != self.state.secret_digest:
            raise LedgerBroken("secret", "is not the one that row 1 names")
        return found

    # --- accounts

    def create_account(
        self,
        name: str,
        epsilon: float,
        delta: float,
        *,
        unit: str = "record",
        digest: str | None = None,
        note: str = "",
        typical: Event | None = None,
    ) -> Account:
        """Declares an account, its limit and its filter's rules, before anything is spent.

        Args:
            name: letters, digits, '.', '_' and '-'.
            epsilon, delta: the limit. Delta and the rules are fixed for good.
            unit: whose presence is protected, ``record`` or ``user``.
            digest: manifest digest of the data set.
            note: free text, kept in the ledger.
            typical: the event of a typical run, which the filter's main order is chosen for.
        """
        check_name(name)
        rules = [rule.to_json() for rule in declare_rules(epsilon, delta, typical)]

        def row(state: State) -> dict[str, Any]:
            if name in state.accounts:
                raise ConfigError("account", name, "exists already", "'budget limit' changes its limit")
            check_free(state, digest, name)
            shared = {"account": name, "epsilon": float(epsilon), "delta": float(delta), "unit": unit}
            return {"kind": "account", **shared, "note": note, "rules": rules}

        self.log.write(row)
        if digest is not None:
            self.link(digest, name, "same")
        return self.account(name)

    def account(self, name: str) -> Account:
        """The account of that name, as of the last look; a stranger's name is refused with a suggestion."""
        return find_account(self.state, name)

    def accounts(self) -> list[Account]:
        """All accounts, by name."""
        return [self.state.accounts[name] for name in sorted(self.state.accounts)]

    def account_of(self, digest: str) -> Account | None:
        """The account that a data set is linked to."""
        name = self.state.account_of.get(digest)
        return None if name is None else self.state.accounts[name]

    def link(self, digest: str, account_name: str, relation: str) -> None:
        """Says that a data set holds (some of) an account's people: ``same``, ``version`` or ``subset``."""
        if relation not in RELATIONS:
            raise ConfigError("relation", relation, "is not a relation", suggest(relation, RELATIONS))
        if not (len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
            raise ConfigError("digest", digest[:80], "is not a manifest digest", "give its 64 hexadecimal digits")

        def row(state: State) -> dict[str, Any] | None:
            account = find_account(state, account_name)
            check_free(state, digest, account_name)
            if digest in account.datasets:
                return None
            return {"kind": "link", "digest": digest, "account": account_name, "relation": relation}

        self.log.write(row)

    def set_limit(self, name: str, epsilon: float, reason: str) -> Account:
        """Changes the limit, as a row of its own with a reason. Delta and the rules stay.

        A raised limit is the guarantee from then on; what was stated before stays what was promised then. Lowered
        below what is spent, it refuses everything new.
        """
        reason = check_reason(reason)

        def row(state: State) -> dict[str, Any]:
            account = find_account(state, name)
            check_limit(epsilon, account.delta)
            was = account.epsilon
            return {"kind": "limit", "account": name, "was": was, "epsilon": float(epsilon), "reason": reason}

        self.log.write(row)
        return self.account(name)

    def freeze(self, name: str, why: str) -> None:
        """Refuses every new reservation, resumption and commit: a running run stops where its last lease ends, charged
        for what it executed. What was committed whole (a search, a grid) goes on; ``abandon`` ends one dead run."""
        why = check_reason(why)
        self.log.write(lambda state: {"kind": "freeze", "account": find_account(state, name).name, "reason": why})

    def unfreeze(self, name: str, why: str) -> None:
        """Ends a freeze."""
        why = check_reason(why)
        self.log.write(lambda state: {"kind": "unfreeze", "account": find_account(state, name).name, "reason": why})

    # --- reserve, commit, settle

    def reserve(
        self,
        account_name: str,
        *,
        event: Event | None,
        run_id: str,
        purpose: str,
        delta: float,
        epsilon: float,
        label: str = "",
        unit: str | None = None,
    ) -> Reservation:
        """Admits the whole planned event, or refuses and writes nothing.

        Args:
            account_name: who pays.
            event: everything the run may do, in the closed schema; steps are the repetitions of ``self_composed``,
                any other event is one step. None for ``debug`` alone, which reads no private row and costs nothing.
            run_id: at most one entry of a run and purpose is open at a time.
            purpose: one of ``PURPOSES``.
            delta, epsilon: the run's own planned price, recorded for show; the filter uses the account's delta.
            label: free text for people.
            unit: the run's unit, compared with the account's where given.

        Raises:
            BudgetRefused: the account is frozen, or would stand above its limit (exit code 3).
            ConfigError: purpose, event or unit do not fit.
        """
        check_purpose(purpose, event)
        planned, prices = self._priced(account_name, event)

        def row(state: State) -> dict[str, Any]:
            account = find_account(state, account_name)
            check_account(account, unit)
            for entry in state.open_entries(run_id):
                if entry.purpose == purpose:
                    remedy = f"'dptrain budget close run={run_id}' if it is dead, or name the run anew: run.id"
                    raise BudgetRefused("run.id", run_id, f"is open already, as entry {entry.entry}", remedy)
            after = admitted(account, prices, planned)
            return {
                "kind": "reserve",
                "account": account_name,
                "run_id": run_id,
                "purpose": purpose,
                "label": label,
                "event": event,
                "planned_steps": planned,
                "prices": list(prices),
                "epsilon": float(epsilon),
                "delta": float(delta),
                "epsilon_account_before": account.value,
                "epsilon_account_after": after,
            }

        written = self.log.write(row)
        assert written is not None
        before, after = written["epsilon_account_before"], written["epsilon_account_after"]
        return Reservation(written["sequence"], account_name, run_id, purpose, planned, 0, 1, before, after)

    def commit(self, reservation: Reservation, steps: int) -> None:
        """Declares that steps 1 to ``steps`` may be executed; on disk when it returns.

        Args:
            reservation: of ``reserve`` or ``resume``.
            steps: rising; the same number again writes nothing.

        Raises:
            BudgetRefused: more than planned, the account is frozen, or the entry was closed or resumed by someone else.
        """

        def row(state: State) -> dict[str, Any] | None:
            entry = find_open(state, reservation)
            if not entry.committed_steps <= steps <= entry.planned_steps:
                what = f"is not between the {entry.committed_steps} committed and the {entry.planned_steps} planned"
                raise BudgetRefused("steps", steps, what, "reserve anew for further steps")
            if steps == entry.committed_steps:
                return None
            check_account(find_account(state, entry.account), None)
            return {"kind": "commit", "entry": entry.entry, "steps": int(steps), "attempt": reservation.attempt}

        self.log.write(row)

    def settle(self, reservation: Reservation, steps_done: int) -> None:
        """Closes an entry: charged for ``steps_done``, which is at most what was committed. The rest goes back.

        Raises:
            BudgetRefused: more than was committed, or the entry was closed or resumed by someone else.
        """

        def row(state: State) -> dict[str, Any] | None:
            known = state.entries.get(reservation.entry)
            if known is not None and (known.status, known.steps_done) == ("settled", steps_done):
                return None
            entry = find_open(state, reservation)
            if not 0 <= steps_done <= entry.committed_steps:
                what = f"is not between 0 and the {entry.committed_steps} committed"
                raise BudgetRefused("steps_done", steps_done, what, "commit steps before they are executed")
            return {"kind": "settle", "entry": entry.entry, "steps": int(steps_done), "attempt": reservation.attempt}

        self.log.write(row)

    def resume(self, entry: int) -> Reservation:
        """Takes over an open entry after a crash: what was committed counts as executed, the old holder may no longer
        commit. The filter admitted the whole event, so nothing is weighed anew.

        Raises:
            BudgetRefused: no such open entry, or the account is frozen.
        """

        def row(state: State) -> dict[str, Any]:
            found = state.entries.get(entry)
            if found is None or not found.is_open:
                raise BudgetRefused("entry", entry, "is not an open entry", "'dptrain budget show' lists them")
            check_account(find_account(state, found.account), None)
            return {"kind": "resume", "entry": entry, "attempt": found.attempt + 1}

        self.log.write(row)
        again = self.state.entries[entry]
        now = self.state.accounts[again.account].value
        shared = (again.account, again.run_id, again.purpose, again.planned_steps, again.committed_steps)
        return Reservation(entry, *shared, again.attempt, again.epsilon_account_before, now)

    def abandon(self, run_id: str, reason: str) -> list[EntryState]:
        """Closes the open entries of a dead run, charged for what they had committed.

        Safe at any time: a run that turns out to be alive is refused at its next commit, and what it may have executed
        by then was committed, hence charged.
        """
        reason = check_reason(reason)
        self.log.refresh()
        open_now = [entry.entry for entry in self.state.open_entries(run_id)]
        if not open_now:
            known = {entry.run_id for entry in self.state.entries.values() if entry.is_open}
            raise ConfigError("run", run_id, "has no open entry", suggest(run_id, known))
        for number in open_now:

            def row(state: State, number: int = number) -> dict[str, Any] | None:
                found = state.entries[number]
                if not found.is_open:
                    return None
                return {"kind": "abandon", "entry": number, "steps": found.committed_steps, "reason": reason}

            self.log.write(row)
        return [self.state.entries[number] for number in open_now]

    # --- reading

    def totals(self, account_name: str, *, pld: bool = True) -> Totals:
        """Where an account stands, by the filter and beside it; ``pld=False`` leaves out the two slow numbers."""
        self.log.refresh()
        return totals_of(self.state, self.account(account_name), pld)

    def what_if(self, account_name: str, event: Event) -> float:
        """Epsilon at which the account would stand with this event planned on top."""
        planned, prices = self._priced(account_name, event)
        account = self.account(account_name)
        return value(account.rules, account.with_more(prices, planned))

    def admits(self, account_name: str, event: Event) -> bool:
        """Whether ``reserve`` would admit this event now."""
        planned, prices = self._priced(account_name, event)
        account = self.account(account_name)
        return account.frozen is None and fits(account.rules, account.with_more(prices, planned), account.epsilon)

    def head(self) -> Head:
        """The newest signed head."""
        self.log.refresh()
        return self.log.head

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row as plain data, with its hash: the append-only chain."""
        return self.log.rows()

    def close(self) -> None:
        """Lets go of the database."""
        self.store.close()

    def _priced(self, account_name: str, event: Event | None) -> tuple[int, tuple[int, ...]]:
        """(planned steps, price of a step by rule); before the ledger is held, since the first price takes a second."""
        self.log.refresh()
        rules = self.account(account_name).rules
        if event is None:
            return 0, (0,) * len(rules)
        planned, step = steps_of(event)
        return planned, step_price(step, [rule.order for rule in rules])
