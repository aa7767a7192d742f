"""An audit makes itself known to the ledger whose account its rows belong to, before it computes a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dptrain.errors import ConfigError
from dptrain.privacy.chain import LedgerBroken
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.ledger_audits import note_audit
from dptrain.privacy.seal import statement_digest

NO_ACCOUNT = "no account counts this run"


def note(
    statement: Mapping[str, Any], run_id: str, given: str | None, of_run: str | None, attacks: Sequence[str]
) -> dict[str, Any]:
    """Writes a row without a price to the account that the statement names, where its ledger is at hand.

    An audit goes on where it is not: it spends nothing, and whoever audits may not be who trained. What is found then
    says that the ledger does not know of it.

    Args:
        statement: verified.
        run_id: of the audited run.
        given: address of the ledger, by whoever audits; None for the one that the run used.
        of_run: the address that the run's config names; None for the user's own ledger. A server that only a run
            folder names is not spoken to.
        attacks: what is about to be computed.

    Returns:
        "noted"; where it was, "account", "row" and "look" (how many audits of this checkpoint there were, with this
        one); else "why".

    Raises:
        ConfigError: the ledger that was given cannot be opened, or is not the one that the statement names.
        LedgerBroken: the ledger contradicts itself (exit code 3).
    """
    block = statement.get("composition")
    if not isinstance(block, Mapping) or not block.get("account"):
        return _not(NO_ACCOUNT)
    if given is None and of_run is not None and not of_run.startswith("sqlite:"):
        return _not("the run used a ledger on a server that only its folder names: give ledger_uri")
    try:
        ledger = open_ledger(given or of_run, create=False)
    except LedgerBroken:
        raise
    except ConfigError as error:
        if given is not None:
            raise
        return _not(f"the run's ledger is not at hand ({error.problem}): give ledger_uri")
    try:
        if ledger.id != block["ledger_id"]:
            problem = f"is ledger {ledger.id[:8]}, and the run was counted in {str(block['ledger_id'])[:8]}"
            if given is not None:
                raise ConfigError("ledger_uri", given, problem, "give the one that the run was counted in")
            return _not(f"the ledger at hand {problem}: give ledger_uri")
        written = note_audit(
            ledger, str(block["account"]), run_id=run_id, bundle=statement_digest(statement), attacks=attacks
        )
        return {"noted": True, "account": block["account"], "row": written.row, "look": written.look}
    finally:
        ledger.close()


def noted_line(found: Mapping[str, Any]) -> str:
    """The same for a terminal."""
    if not found["noted"]:
        return f"does not know of this audit: {found['why']}"
    again = "; the stated level holds for each look by itself" if found["look"] > 1 else ""
    return f"account {found['account']}, row {found['row']}: look {found['look']} at this checkpoint{again}"


def _not(why: str) -> dict[str, Any]:
    return {"noted": False, "why": why}
