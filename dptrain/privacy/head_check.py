"""Lines ``composition`` and ``ledger``: a statement's ledger head against what this machine knows of that ledger.

A ledger that was put back to an older copy, or replaced, does not hold the row that a statement names. Where neither
the ledger nor a head of it is at hand, the answer is ``unknown``, never ``ok``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dptrain.errors import DptrainError
from dptrain.privacy import witness
from dptrain.privacy.verdict import MISMATCH, OK, UNKNOWN, Verdict
from dptrain.signing import canonical, trusted_keys

SQLITE = "sqlite:///"


def check_ledger(statement: dict[str, Any], heads: list[dict[str, Any]], verdict: Verdict) -> None:
    """Adds the lines.

    Args:
        statement: fits its schema.
        heads: heads from elsewhere: {"ledger_id", "sequence", "hash"}.
        verdict: is added to.
    """
    block = statement["composition"]
    if block is None:
        verdict.add("ledger", UNKNOWN, "no ledger was kept: other runs on the same data are not counted")
        return
    _check_block(statement, block, verdict)
    named = block["head"]
    others = [head for head in heads if head.get("ledger_id") == block["ledger_id"]]
    for head in others:
        if head["sequence"] == named["sequence"] and head["hash"] != named["hash"]:
            verdict.add("ledger", MISMATCH, f"row {named['sequence']} has another hash in a head given")
            return
    try:
        _check_here(statement, block, others, verdict)
    except DptrainError as error:
        verdict.add("ledger", MISMATCH, f"the ledger here does not stand: {error}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a row that is no row
        verdict.add("ledger", MISMATCH, f"the ledger here cannot be read ({type(error).__name__}: {error})")


def _check_block(statement: dict[str, Any], block: dict[str, Any], verdict: Verdict) -> None:
    """The block against itself and against the claim."""
    claimed = (statement["guarantee"] or {}).get("epsilon")
    left = max(0.0, block["limit_epsilon"] - block["total"])
    if block["this_run"] != claimed:
        verdict.add("composition", MISMATCH, "this_run is not the epsilon that is claimed")
    elif not math.isclose(block["remaining"], left, rel_tol=1e-9, abs_tol=1e-9):
        verdict.add("composition", MISMATCH, f"remaining is {block['remaining']:g}; limit less total is {left:g}")
    elif block["head"]["sequence"] < block["entry"]:
        verdict.add("composition", MISMATCH, "the ledger's head lies before this run's own entry")
    else:
        verdict.add("composition", OK, f"account at {block['total']:.4g} of {block['limit_epsilon']:g}: adds up")


def _check_here(
    statement: dict[str, Any], block: dict[str, Any], others: list[dict[str, Any]], verdict: Verdict
) -> None:
    named, row = block["head"], block["head"]["sequence"]
    kept = witness.recall_with_place(block["ledger_id"])
    if kept is None:
        if any(head["sequence"] == row for head in others):
            verdict.add("ledger", OK, f"row {row} is the one that a head given names")
        else:
            verdict.add("ledger", UNKNOWN, f"ledger {block['ledger_id'][:12]} is not known here, no head of it given")
        return
    head, place = kept
    head.check(trusted_keys())
    file = Path(place.removeprefix(SQLITE)) if place.startswith(SQLITE) else None
    if file is not None and file.is_file():
        _check_file(statement, place, [*others, named, {"sequence": head.sequence, "hash": head.hash}], verdict)
    elif head.sequence == row:
        agrees = head.hash == named["hash"]
        detail = f"row {row} is the newest that this machine has seen" if agrees else f"row {row} is another here"
        verdict.add("ledger", OK if agrees else MISMATCH, detail)
    elif head.sequence < row and file is not None:
        detail = f"row {row} is named; the ledger here ended at row {head.sequence}: put back, or the head is made up"
        verdict.add("ledger", MISMATCH, detail)
    else:
        detail = f"this machine has seen row {head.sequence}, and cannot look up row {row}: the ledger is not at hand"
        verdict.add("ledger", UNKNOWN, detail)


def _check_file(statement: dict[str, Any], place: str, heads: list[dict[str, Any]], verdict: Verdict) -> None:
    """Looks the rows up in the ledger itself, and the run's own entry beside them."""
    from dptrain.privacy.ledger_store import LedgerStore

    block = statement["composition"]
    store = LedgerStore(place)
    try:
        with store.read() as connection:
            end = store.head(connection)
            if end is None or end.ledger_id != block["ledger_id"]:
                verdict.add("ledger", MISMATCH, "another ledger lies where this one lay")
                return
            end.check(trusted_keys())
            for head in heads:
                found = store.row_hash(connection, head["sequence"])
                if found != head["hash"]:
                    what = f"ends at row {end.sequence}" if found is None else "holds another"
                    said = f"row {head['sequence']} is named outside of the ledger, which {what}: put back, or cut"
                    verdict.add("ledger", MISMATCH, said)
                    return
            wrong = _entry_differs(statement, store, connection)
    finally:
        store.close()
    if wrong:
        verdict.add("ledger", MISMATCH, wrong)
    else:
        row = block["head"]["sequence"]
        newer = "its newest" if end.sequence == row else f"which went on to row {end.sequence}"
        detail = f"row {row} and this run's entry {block['entry']} stand in the ledger here, {newer}"
        verdict.add("ledger", OK, detail)


def _entry_differs(statement: dict[str, Any], store: Any, connection: Any) -> str:
    """How the ledger's entry is not that of this run; empty where it is."""
    block, mechanism = statement["composition"], statement["mechanism"]
    number, entry, charged = block["entry"], None, None
    for sequence, text, _ in store.rows(connection, number - 1):
        body = json.loads(text)
        if sequence == number:
            entry = body
        if body.get("entry") == number and body.get("kind") in ("settle", "abandon", "commit"):
            charged = body["steps"]  # of the last such row: a run that was stopped may have gone on
    if entry is None or entry.get("kind") != "reserve" or entry.get("account") != block["account"]:
        return f"row {number} of the ledger is no reservation on account '{block['account']}'"
    if mechanism is None or mechanism["beside"] or mechanism["trials"] is not None:
        return ""  # a sweep's entry is one for all its runs
    if entry.get("run_id") != statement["identity"]["run_id"]:
        return f"entry {number} of the ledger is of another run"
    if canonical(entry.get("event")) != canonical(mechanism["planned_event"]):
        return f"entry {number} of the ledger is of another mechanism"
    if (charged or 0) < statement["sampling"]["steps_done"]:
        return f"entry {number} of the ledger is charged for {charged or 0} steps, and more were taken"
    return ""
