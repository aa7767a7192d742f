"""Which account pays for a data set: by its digest, else by name; whoever asks "same people?" is told yes."""

from __future__ import annotations

import math

from dptrain.config_budget import LedgerConfig
from dptrain.errors import BudgetRefused, ConfigError
from dptrain.privacy.accounting import Event
from dptrain.privacy.ledger import Ledger
from dptrain.privacy.ledger_state import Account
from dptrain.privacy.privacy_filter import least_limit


def account_for(
    ledger: Ledger, settings: LedgerConfig, *, digest: str, name: str, delta: float, unit: str, typical: Event | None
) -> Account:
    """Finds or, where a limit is given, makes the account of a data set. Spends nothing.

    A digest seen before decides. A new one is taken to hold people of the account of that name (``same_people``) and is
    linked to it as a version, since rows that were added or edited still belong to the same people.

    Args:
        settings: ``ledger`` of the config.
        digest: manifest digest under ``ledger.secret``.
        name: the account's name where the settings give none (the name of the data).
        delta: of a new account where the settings give none.
        unit: whose presence a new account protects.
        typical: the planned event, for the filter of a new account.

    Raises:
        ConfigError: no such account and no limit to make one with; or the digest belongs to another account; or other
            people's rows are offered to an account that exists.
        BudgetRefused: the limit cannot bear even this run; no account is made.
    """
    known = ledger.account_of(digest)
    if known is not None:
        if settings.account not in (None, known.name):
            raise ConfigError(
                "ledger.account", settings.account, f"these rows belong to account '{known.name}'", "leave it unset"
            )
        return known
    chosen = settings.account or name
    if any(account.name == chosen for account in ledger.accounts()):
        if not settings.same_people:
            raise ConfigError(
                "ledger.same_people",
                False,
                f"account '{chosen}' is there already, and holds other people",
                "name an account of their own: ledger.account=NAME",
            )
        ledger.link(digest, chosen, "version")
        return ledger.account(chosen)
    if settings.epsilon_limit is None:
        raise ConfigError(
            "ledger.account",
            chosen,
            "has no limit yet",
            f"declare one before the first run: ledger.epsilon_limit=8 (or 'dptrain budget create dataset={chosen}')",
        )
    limit = settings.delta_limit if settings.delta_limit is not None else delta
    least = settings.epsilon_limit if typical is None else least_limit(typical, settings.epsilon_limit, limit)
    if least > settings.epsilon_limit:
        raise BudgetRefused(
            "ledger.epsilon_limit",
            settings.epsilon_limit,
            f"cannot bear this run, which would put account '{chosen}' at epsilon {least:.4g}: a run weighs more in an "
            "account, whose rule holds for runs chosen one after another, than it claims alone",
            f"declare {math.ceil(least * 100) / 100:g} or more, or lower privacy.epsilon"
            if math.isfinite(least)
            else "lower privacy.epsilon",
        )
    return ledger.create_account(chosen, settings.epsilon_limit, limit, unit=unit, digest=digest, typical=typical)
