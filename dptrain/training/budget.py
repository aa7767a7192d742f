"""A run's side of the ledger: reserved before the first step, committed before a step's noise, settled at the end."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from dptrain.checkpoint.step_journal import StepJournal
from dptrain.config import TrainConfig
from dptrain.data.source import SourceInfo
from dptrain.errors import BudgetRefused, ConfigError
from dptrain.privacy.accounting import Event
from dptrain.privacy.lease import lease_size
from dptrain.privacy.ledger import Ledger, Reservation, open_ledger
from dptrain.privacy.ledger_again import entry_of, held, take_up
from dptrain.privacy.plan import Plan
from dptrain.privacy.privacy_filter import step_price, steps_of, value
from dptrain.privacy.which_account import account_for

RULE = (
    "fully adaptive Renyi filter over pre-declared orders: holds whoever chose the runs, and whenever they stopped, by "
    "what was released before"
)
JOURNAL_OVERHEAD = 0.01
"""Largest share of training time that the journal of an uncounted run may take."""


def check_purpose(config: TrainConfig, info: SourceInfo) -> str:
    """The class of a run: what its spending is for. Reads no private row.

    Runs on data that is public or synthetic throughout are ``debug`` unless they say otherwise, and free.

    Raises:
        ConfigError: private rows without a class, or a class that does not fit them.
    """
    purpose = config.run.purpose
    is_public = info.is_public or config.data.all_public
    if purpose is None and is_public:
        return "debug"
    if purpose is None:
        raise ConfigError(
            "run.purpose",
            "null",
            f"data '{info.name}' is private, and every use of it must say what it is for",
            "set run.purpose=trial or run.purpose=final (data.all_public=true only if nobody needs protecting)",
        )
    if purpose == "debug" and not is_public:
        raise ConfigError(
            "run.purpose",
            purpose,
            f"is for public or synthetic data only, and data '{info.name}' is private",
            "set run.purpose=trial or run.purpose=final",
        )
    if purpose != "debug" and config.privacy.mechanism == "none" and config.ledger.uri != "none":
        raise ConfigError(
            "privacy",
            "off",
            "spends without bound, which no account can bear",
            "choose a private plan, or set ledger.uri=none, which the statement will say",
        )
    return purpose


class Budget:
    """What one run may still do, and what it has done, as its ledger knows it. A context: leaving it settles.

    Without a ledger (``debug`` runs, ``ledger.uri=none``) its statement block is None, and steps are counted where the
    run is to be resumable (``count_in``).

    Guarantee: ``intend(step)`` returns only after the ledger (without one: the run's journal, if it keeps one) holds,
    on disk, that ``step`` may be executed. What is settled is never less than the steps intended.

    Args:
        ledger: None where none is kept.
        reservation: of this run.
        event: the whole planned event.
        lease: steps of one commit; None to fit them to the step's own time.
    """

    def __init__(
        self,
        ledger: Ledger | None = None,
        reservation: Reservation | None = None,
        event: Event | None = None,
        lease: int | None = None,
    ) -> None:
        self._ledger = ledger
        self._reservation = reservation
        self._lease = lease
        self._committed = 0 if reservation is None else reservation.committed_steps
        self._intended = self._committed
        self._settled = reservation is not None and ledger is not None and not _is_open(ledger, reservation)
        self._journal: StepJournal | None = None
        self._planned = 0 if reservation is None else reservation.planned_steps
        self._whole = event is not None and event["type"] != "self_composed"
        self._last: float | None = None
        self._step_seconds = 0.0
        self._commit_seconds = 0.01
        if ledger is not None and reservation is not None and event is not None:
            account = ledger.account(reservation.account)
            own = ledger.state.entries[reservation.entry]
            self._rules, self._limit = account.rules, (account.epsilon, account.delta)
            _, step = steps_of(event)
            self._prices = step_price(step, [rule.order for rule in account.rules])
            self._before = [
                total - own.reserved_steps * price for total, price in zip(account.reserved, self._prices, strict=True)
            ]

    @property
    def is_kept(self) -> bool:
        """Whether a ledger counts this run."""
        return self._reservation is not None

    @property
    def entry(self) -> int | None:
        """The ledger's entry; None where none is kept."""
        return None if self._reservation is None else self._reservation.entry

    @property
    def executed(self) -> int:
        """Steps that count as executed: a resumed run begins behind them."""
        return self._committed

    def count_in(self, journal: StepJournal, planned: int) -> None:
        """Counts steps in the run's own journal; where a ledger counts them, this does nothing."""
        if not self.is_kept:
            self._journal, self._planned = journal, planned
            self._committed = self._intended = journal.executed

    def intend(self, step: int) -> None:
        """Declares that a step (from 1) is about to be released. Durable when it returns.

        Raises:
            BudgetRefused: the entry was closed by someone else, or more steps than planned are wanted.
        """
        now = time.monotonic()
        if self._last is not None:
            self._step_seconds = now - self._last
        if self._whole:
            step = 1  # an event that is not made of steps is committed whole, before the first of them
        if self._ledger is not None and self._reservation is not None and step > self._committed:
            size = self._lease or (1 if self._last is None else lease_size(self._step_seconds, self._commit_seconds))
            target = max(step, min(step + size - 1, self._reservation.planned_steps))
            self._ledger.commit(self._reservation, target)
            self._committed = target
            self._commit_seconds = time.monotonic() - now
        elif self._journal is not None and step > self._committed:
            fitted = lease_size(self._step_seconds, self._commit_seconds, JOURNAL_OVERHEAD)
            size = self._lease or (1 if self._last is None else fitted)
            target = max(step, min(step + size - 1, self._planned))
            self._journal.commit(target)
            self._committed = target
            self._commit_seconds = time.monotonic() - now
        self._intended = max(self._intended, step)
        self._last = time.monotonic()

    def standing(self, steps: int) -> tuple[float, float] | None:
        """(epsilon at which the account stands after that many steps of this run, its limit); None without a ledger.

        Runs that others reserve meanwhile are not in it.
        """
        if self._reservation is None:
            return None
        done = min(steps, 1) if self._whole else steps
        totals = [before + done * price for before, price in zip(self._before, self._prices, strict=True)]
        return value(self._rules, totals), self._limit[0]

    def settle(self, steps_done: int | None = None) -> None:
        """Closes the entry, charged for ``steps_done`` (left out: every step intended), which is never fewer than were
        intended. Closing twice does nothing."""
        if self._settled:
            return
        done = max(self._intended, steps_done or 0)
        if self._journal is not None:
            with suppress(OSError):  # then the whole lease counts
                self._journal.close(min(done, self._committed))
            self._settled = True
        if self._ledger is None or self._reservation is None:
            return
        self._ledger.settle(self._reservation, min(done, self._committed))
        self._settled = True

    def composition(self, epsilon: float | None) -> dict[str, Any] | None:
        """The statement's block on what the account bears beside this run; after ``settle``.

        Args:
            epsilon: what this run claims alone.
        """
        if self._ledger is None or self._reservation is None:
            return None
        totals = self._ledger.totals(self._reservation.account, pld=False)
        head = self._ledger.head()
        return {
            "ledger_id": self._ledger.id,
            "entry": self._reservation.entry,
            "account": self._reservation.account,
            "prior": self._reservation.prior,
            "this_run": epsilon,
            "total": totals.epsilon,
            "limit_epsilon": totals.limit_epsilon,
            "limit_delta": totals.limit_delta,
            "remaining": totals.remaining,
            "head": {"sequence": head.sequence, "hash": head.hash},
            "rule": RULE,
        }

    def __enter__(self) -> Budget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.settle()
        except BudgetRefused:
            if error is None:  # else the first error is the one to show; an open entry counts whole
                raise
        finally:
            if self._journal is not None:
                self._journal.release()
            if self._ledger is not None:
                self._ledger.close()


def _is_open(ledger: Ledger, reservation: Reservation) -> bool:
    return ledger.state.entries[reservation.entry].is_open


def open_account(config: TrainConfig, purpose: str) -> Ledger | None:
    """The ledger that a run of this class is counted in; None for ``debug`` and ``ledger.uri=none``.

    Reads no private row, so that a ledger out of reach, or broken, stops a run before it has seen anything.
    """
    return None if purpose == "debug" or config.ledger.uri == "none" else open_ledger(config.ledger.uri)


def reserve(
    ledger: Ledger | None,
    config: TrainConfig,
    info: SourceInfo,
    plan: Plan,
    digest: str | None,
    run_id: str,
    purpose: str,
    label: str = "",
) -> Budget:
    """Finds the account that knows these rows and reserves the whole planned event.

    Args:
        ledger: of ``open_account``.
        info: facts about the data; its name is the account's where the settings give none.
        plan: of the run; its own price is recorded for show.
        digest: names the rows, under the ledger's key.
        label: name of the sweep that the run belongs to.

    Raises:
        BudgetRefused: the account cannot bear it; nothing was written (exit code 3).
        ConfigError: there is no account, and no limit to make one with.
    """
    if ledger is None or digest is None or plan.mechanism is None or plan.epsilon is None:
        return Budget(lease=config.ledger.lease_steps)
    event, name, unit = plan.mechanism.event(), info.name, config.privacy.unit
    account = account_for(ledger, config.ledger, digest=digest, name=name, delta=plan.delta, unit=unit, typical=event)
    reservation = ledger.reserve(
        account.name,
        event=event,
        run_id=run_id,
        purpose=purpose,
        unit=unit,
        delta=plan.delta,
        epsilon=plan.epsilon,
        label=label,
    )
    return Budget(ledger, reservation, event, config.ledger.lease_steps)


def reserve_again(ledger: Ledger | None, config: TrainConfig, plan: Plan, entry: int | None, run_id: str) -> Budget:
    """Takes a run's own entry up again: what it ever committed counts as executed.

    An entry that was settled (a clean stop) is opened again where the account still admits the rest: what went back may
    have been spent since, so it is weighed like a new reservation, and refused like one.

    Raises:
        BudgetRefused: it is not this run's entry, or the account cannot bear what is left; nothing was written.
    """
    if ledger is None or entry is None or plan.mechanism is None:
        return Budget(lease=config.ledger.lease_steps)
    event = plan.mechanism.event()
    known = entry_of(ledger, entry, run_id=run_id, event=event)
    all_taken = not known.is_open and known.charged_steps >= known.planned_steps
    reservation = held(ledger, entry) if all_taken else take_up(ledger, entry)
    return Budget(ledger, reservation, event, config.ledger.lease_steps)
