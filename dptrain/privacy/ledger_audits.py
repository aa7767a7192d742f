"""Audits in the ledger: who attacked which checkpoint, when, with what. Written before any score is computed.

An audit releases nothing, so its row has no price: it moves no total, opens no entry, and ``budget verify`` refuses
one that claims a price. It is kept because every look at private rows counts in another sense: whoever runs an audit
again and again until one agrees can be seen to have done so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dptrain.errors import ConfigError
from dptrain.privacy.ledger import Ledger
from dptrain.privacy.ledger_rules import find_account
from dptrain.privacy.ledger_state import AuditNote, State


def note_audit(ledger: Ledger, account: str, *, run_id: str, bundle: str, attacks: Sequence[str]) -> AuditNote:
    """Writes that a checkpoint of an account's rows is about to be attacked; durable when it returns.

    Guarantee: totals, open entries and limits are what they were. A frozen account takes notes: a freeze refuses
    spending, and an audit spends nothing.

    Args:
        ledger: as ``open_ledger`` gives it.
        account: whose rows are read.
        run_id: of the run that made the checkpoint.
        bundle: SHA-256 of its statement, which names the weights, in hexadecimal digits.
        attacks: what is about to be computed.

    Raises:
        ConfigError: no such account, no digest, or nothing is computed.
    """
    if not (len(bundle) == 64 and set(bundle) <= set("0123456789abcdef")):
        raise ConfigError("bundle", bundle[:80], "is not a SHA-256", "give its 64 hexadecimal digits")
    if not attacks:
        raise ConfigError("attacks", [], "names none", "say what is computed")

    def row(state: State) -> dict[str, Any]:
        name = find_account(state, account).name
        shared = {"account": name, "run_id": run_id, "purpose": "audit"}
        return {"kind": "audit", **shared, "bundle": bundle, "attacks": list(attacks)}

    written = ledger.log.write(row)
    assert written is not None
    notes = ledger.account(account).audits
    return next(note for note in reversed(notes) if note.row == written["sequence"])
