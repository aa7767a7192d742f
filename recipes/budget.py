"""The budget account of a data set: what was promised, what is spent, what still fits.

dptrain budget create dataset=adult epsilon=8 delta=1e-5
dptrain budget show dataset=adult
python recipes/budget.py forecast dataset=adult epsilon=2
"""

from __future__ import annotations

import json
import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config_budget import BudgetConfig
from dptrain.errors import ClaimRejected, ConfigError, suggest

VERBS = ("show", "create", "limit", "freeze", "unfreeze", "forecast", "link", "close", "export", "verify")


def run(verb: str, config: BudgetConfig) -> None:
    """Carries out one verb and prints what came of it."""
    from dptrain.privacy.ledger import open_ledger

    ledger = open_ledger(config.uri, create=verb == "create", check=verb != "verify")
    if verb == "verify":
        verify(ledger, config)
    elif verb == "export":
        sys.stdout.writelines(json.dumps(row, sort_keys=True) + "\n" for row in ledger.rows())
    elif verb == "forecast":
        from dptrain.privacy.budget_view import forecast_text
        from dptrain.privacy.forecast import forecast

        sizes = [config.epsilon] if config.epsilon is not None else []
        found = forecast(ledger, needed(config, "dataset"), sizes, config.sampling_rate, config.steps)
        say(config, found, forecast_text(found))
    else:
        change(verb, ledger, config)
        show(ledger, config)


def change(verb: str, ledger: Any, config: BudgetConfig) -> None:
    """The verbs that add a row; 'show' adds none."""
    if verb == "create":
        from dptrain.privacy.forecast import typical_run

        limit = (needed(config, "epsilon"), needed(config, "delta"))
        more = {"unit": config.unit, "digest": config.digest, "note": config.note}
        typical = typical_run(*limit, config.sampling_rate, config.steps)
        ledger.create_account(needed(config, "dataset"), *limit, **more, typical=typical)
    elif verb == "limit":
        if config.delta is not None:
            raise ConfigError("delta", config.delta, "is fixed for the life of an account", "leave it out")
        ledger.set_limit(needed(config, "dataset"), needed(config, "epsilon"), config.reason)
    elif verb == "freeze":
        ledger.freeze(needed(config, "dataset"), config.reason)
    elif verb == "unfreeze":
        ledger.unfreeze(needed(config, "dataset"), config.reason)
    elif verb == "link":
        config.dataset = needed(config, "account")
        ledger.link(needed(config, "digest"), config.dataset, config.relation)
    elif verb == "close":
        closed = ledger.abandon(needed(config, "run"), config.reason)
        config.dataset = closed[0].account


def show(ledger: Any, config: BudgetConfig) -> None:
    """One account, or all of them where none is named."""
    from dptrain.privacy import budget_view as view

    if config.dataset is None:
        data = view.overview_data(ledger)
        return say(config, data, view.overview_text(data))
    data = view.account_data(ledger, config.dataset)
    say(config, data, view.account_text(data))


def verify(ledger: Any, config: BudgetConfig) -> None:
    """The chain, the signature, every price and admission, and the heads at hand; exit code 4 where one contradicts."""
    from dptrain.privacy.budget_view import verdict_text
    from dptrain.privacy.chain import verify_chain
    from dptrain.privacy.outside_heads import read_heads

    verdict = verify_chain(ledger, read_heads(config.heads))
    say(config, verdict.to_json(), verdict_text(verdict))
    if not verdict.holds:
        remedy = "restore the ledger from a copy that is whole"
        raise ClaimRejected("ledger", ledger.store.place, verdict.problems[0], remedy)


def say(config: BudgetConfig, data: dict[str, Any], text: str) -> None:
    """Prints one or the other."""
    print(json.dumps(data, indent=2) if config.format == "json" else text)


def needed(config: BudgetConfig, key: str) -> Any:
    """A setting that the verb cannot do without."""
    value = getattr(config, key)
    if value is None:
        raise ConfigError(key, None, "is needed", f"give {key}=...")
    return value


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain budget``: a verb, then settings."""
    from dptrain.compose import compose
    from dptrain.teach import command_help

    if not arguments or arguments[0] in ("-h", "--help") or "--help" in arguments:
        print(
            f"{__doc__}\nverbs: {', '.join(VERBS)}\n\nkeys\n" + command_help("budget").split("\nkeys\n", 1)[1], end=""
        )
    elif arguments[0] not in VERBS:
        raise ConfigError("budget", arguments[0], "is not a verb", suggest(arguments[0], VERBS))
    else:
        run(arguments[0], compose("budget", arguments[1:]))


if __name__ == "__main__":
    sys.exit(guarded("budget", sys.argv[1:]))
