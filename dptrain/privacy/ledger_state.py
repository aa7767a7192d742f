"""What the rows of a ledger add up to: accounts, entries, data sets. Made by replaying rows, and by nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from dptrain.privacy.accounting import Event
from dptrain.privacy.privacy_filter import Rule, rules_from, value

OPEN = ("reserved", "running")
CLOSED = ("settled", "abandoned")


@dataclass
class EntryState:
    """One reservation and what became of it. ``entry`` is the sequence number of its row."""

    entry: int
    account: str
    run_id: str
    purpose: str
    label: str
    created: str
    planned_steps: int
    event: Event | None
    prices: tuple[int, ...]
    epsilon: float
    delta: float
    epsilon_account_before: float
    epsilon_account_after: float
    attempt: int = 1
    committed_steps: int = 0
    steps_done: int | None = None
    status: str = "reserved"
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether more of it may still be executed."""
        return self.status in OPEN

    @property
    def reserved_steps(self) -> int:
        """Steps that count while it is open: all of them."""
        return self.planned_steps if self.steps_done is None else self.steps_done

    @property
    def charged_steps(self) -> int:
        """Steps that can no longer be given back."""
        return self.committed_steps if self.steps_done is None else self.steps_done

    def to_json(self) -> dict[str, Any]:
        """Plain data for pages and commands."""
        names = ("entry", "account", "run_id", "purpose", "label", "created", "status", "planned_steps")
        more = ("committed_steps", "steps_done", "event", "epsilon", "delta", "epsilon_account_after", "reason")
        return {name: getattr(self, name) for name in names + more}


@dataclass(frozen=True)
class AuditNote:
    """One audit of a checkpoint: no price, no steps, nothing reserved."""

    row: int
    run_id: str
    bundle: str
    """SHA-256 of the checkpoint's statement."""
    attacks: tuple[str, ...]
    created: str
    by: str
    """Key of whoever wrote the row."""
    look: int
    """How many times this checkpoint had been audited then, this one included."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for pages and commands."""
        return asdict(self) | {"attacks": list(self.attacks), "purpose": "audit"}


@dataclass
class Account:
    """The people of one data set, and the limit they were promised."""

    name: str
    epsilon: float
    delta: float
    unit: str
    note: str
    created: str
    rules: tuple[Rule, ...]
    frozen: str | None = None
    """Why nothing more may be reserved; None where it may."""
    limits: list[dict[str, Any]] = field(default_factory=list)
    """Every change of the limit: when, from, to, why."""
    datasets: dict[str, str] = field(default_factory=dict)
    """Manifest digest -> relation (same, version, subset)."""
    entries: list[int] = field(default_factory=list)
    reserved: list[int] = field(default_factory=list)
    """Per rule: price of everything closed, and of everything open as if it ran whole."""
    charged: list[int] = field(default_factory=list)
    """Per rule: price of what can no longer be given back."""
    audits: list[AuditNote] = field(default_factory=list)
    """Audits that read these people's rows, in order."""

    @property
    def value(self) -> float:
        """Epsilon at which the account stands, everything open counted whole."""
        return value(self.rules, self.reserved)

    @property
    def value_charged(self) -> float:
        """Epsilon of what was committed or closed."""
        return value(self.rules, self.charged)

    def with_more(self, prices: tuple[int, ...], steps: int) -> list[int]:
        """Reserved totals after ``steps`` more steps of these prices."""
        return [total + steps * price for total, price in zip(self.reserved, prices, strict=True)]


@dataclass
class State:
    """All accounts and entries after ``sequence`` rows."""

    ledger_id: str = ""
    sequence: int = 0
    hash: str = ""
    accounts: dict[str, Account] = field(default_factory=dict)
    entries: dict[int, EntryState] = field(default_factory=dict)
    open_now: set[int] = field(default_factory=set)
    account_of: dict[str, str] = field(default_factory=dict)
    secret_digest: str = ""

    def apply(self, row: dict[str, Any], row_hash: str) -> None:
        """Takes in one row that the chain has vouched for."""
        match row["kind"]:
            case "ledger":
                self.ledger_id, self.secret_digest = row["ledger_id"], row["secret_sha256"]
            case "account":
                self._account(row)
            case "limit":
                account = self.accounts[row["account"]]
                change = {name: row[name] for name in ("time", "was", "epsilon", "reason")}
                account.limits.append(change)
                account.epsilon = _limit(row["epsilon"])
            case "freeze":
                self.accounts[row["account"]].frozen = row["reason"]
            case "unfreeze":
                self.accounts[row["account"]].frozen = None
            case "link":
                self.accounts[row["account"]].datasets[row["digest"]] = row["relation"]
                self.account_of[row["digest"]] = row["account"]
            case "reserve":
                self._reserve(row)
            case "audit":
                self._audit(row)
            case "commit":
                entry = self.entries[row["entry"]]
                self._charge(entry, _count(row["steps"]) - entry.committed_steps)
                entry.committed_steps, entry.status = row["steps"], "running"
            case "resume":
                self.entries[row["entry"]].attempt = row["attempt"]
            case "reopen":
                self._reopen(row)
            case "settle" | "abandon":
                self._close(row)
            case kind:
                raise ValueError(f"kind {kind} is not known; the ledger was written by a newer dptrain")
        self.sequence, self.hash = row["sequence"], row_hash

    def open_entries(self, run_id: str) -> list[EntryState]:
        """Entries of a run that are still open."""
        return [self.entries[number] for number in sorted(self.open_now) if self.entries[number].run_id == run_id]

    def _account(self, row: dict[str, Any]) -> None:
        rules = rules_from(row["rules"])
        made = Account(
            name=row["account"],
            epsilon=_limit(row["epsilon"]),
            delta=_limit(row["delta"]),
            unit=row["unit"],
            note=row["note"],
            created=row["time"],
            rules=rules,
            reserved=[0] * len(rules),
            charged=[0] * len(rules),
        )
        self.accounts[made.name] = made

    def _reserve(self, row: dict[str, Any]) -> None:
        names = ("account", "run_id", "purpose", "label", "planned_steps", "event", "epsilon", "delta")
        entry = EntryState(
            entry=row["sequence"],
            created=row["time"],
            prices=tuple(_count(price) for price in row["prices"]),
            epsilon_account_before=row["epsilon_account_before"],
            epsilon_account_after=row["epsilon_account_after"],
            **{name: row[name] for name in names},
        )
        account = self.accounts[entry.account]
        account.reserved = account.with_more(entry.prices, _count(entry.planned_steps))
        account.entries.append(entry.entry)
        self.entries[entry.entry] = entry
        self.open_now.add(entry.entry)

    def _audit(self, row: dict[str, Any]) -> None:
        notes, bundle = self.accounts[row["account"]].audits, str(row["bundle"])
        look = 1 + sum(note.bundle == bundle for note in notes)
        attacks = tuple(str(name) for name in row["attacks"])
        notes.append(AuditNote(row["sequence"], str(row["run_id"]), bundle, attacks, row["time"], str(row["by"]), look))

    def _charge(self, entry: EntryState, steps: int) -> None:
        charged = self.accounts[entry.account].charged
        for k, price in enumerate(entry.prices):
            charged[k] += steps * price

    def _close(self, row: dict[str, Any]) -> None:
        entry = self.entries[row["entry"]]
        self._charge(entry, _count(row["steps"]) - entry.committed_steps)
        account = self.accounts[entry.account]
        account.reserved = account.with_more(entry.prices, row["steps"] - entry.planned_steps)
        entry.steps_done, entry.reason = row["steps"], row.get("reason", "")
        self.open_now.discard(entry.entry)
        entry.status = "settled" if row["kind"] == "settle" else "abandoned"

    def _reopen(self, row: dict[str, Any]) -> None:
        entry = self.entries[row["entry"]]
        assert entry.steps_done is not None
        account = self.accounts[entry.account]
        account.reserved = account.with_more(entry.prices, entry.planned_steps - entry.steps_done)
        entry.committed_steps, entry.steps_done = entry.steps_done, None
        entry.attempt, entry.status, entry.reason = row["attempt"], "running", ""
        self.open_now.add(entry.entry)


def _limit(value: Any) -> float:
    """A limit: a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{str(value)[:40]} is no limit")
    return value


def _count(value: Any) -> int:
    """A number of steps, or a price: whole, and never negative, which would give back what was spent."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{str(value)[:40]} is no whole number of at least 0")
    return value
