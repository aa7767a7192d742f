"""Line ``rollback``: whether a statement is older than one that is known, by its place in the ledger.

A bundle that was put back to an older one, validly signed, contradicts nothing by itself. Its statement names the
ledger's head of the moment it was signed, and heads only grow: whoever keeps the last statement that he saw (or what
``budget show format=json`` printed) can ask that nothing older be taken for it. Clocks are not asked.
"""

from __future__ import annotations

from typing import Any

from dptrain.privacy.verdict import MISMATCH, OK, UNKNOWN, Verdict


def check_rollback(statement: dict[str, Any], after: list[dict[str, Any]], verdict: Verdict) -> None:
    """Adds the line.

    Args:
        statement: fits its schema.
        after: heads that it must not be older than: {"ledger_id", "sequence", "hash"}.
        verdict: is added to. A statement that cannot be compared with a head that was given is refused.
    """
    block = statement["composition"]
    if not after:
        named = "no ledger head" if block is None else f"row {block['head']['sequence']}"
        verdict.add("rollback", UNKNOWN, f"it names {named}; give after=LATER to have nothing older pass")
        return
    for head in after:
        if block is None or head["ledger_id"] != block["ledger_id"]:
            detail = (
                f"statement.json names no head of ledger {head['ledger_id'][:12]}: it cannot be told from an older one"
            )
            verdict.add("rollback", MISMATCH, detail)
            return
        row = block["head"]["sequence"]
        if row < head["sequence"]:
            detail = (
                f"statement.json was signed at row {row} of the ledger, before row {head['sequence']}: an older bundle"
            )
            verdict.add("rollback", MISMATCH, detail)
            return
        if row == head["sequence"] and block["head"]["hash"] != head["hash"]:
            verdict.add("rollback", MISMATCH, f"statement.json names another row {row} than the head that was given")
            return
    verdict.add("rollback", OK, f"row {block['head']['sequence']} is not before any head that was given")
