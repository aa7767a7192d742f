"""The quarantine: which data sets may not be trained on, since when and why. Prints JSON.

dptrain data quarantine dataset=patients reason="consent form was wrong"
dptrain data release digest=4f0c... reason="form corrected, asked again"
python recipes/data.py show
"""

from __future__ import annotations

import json
import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config_gate import QuarantineConfig
from dptrain.errors import ConfigError, suggest

VERBS = ("show", "quarantine", "release")


def run(verb: str, config: QuarantineConfig) -> dict[str, Any]:
    """Carries out one verb, and prints how the quarantine stands after it."""
    from dptrain.data.quarantine import quarantine, release, standing

    if verb == "quarantine":
        sets = [{digest: key} for digest, key in asked_for(config, must_exist=True).items()]
        quarantine(sets, config.reason, dataset=config.dataset)
    elif verb == "release":
        named = asked_for(config, must_exist=False)
        release(str(config.dataset or config.digest), config.reason, named, config.dataset)
    else:
        refuse_others(config)
    found = standing()
    print(json.dumps(found, indent=2))
    return found


def asked_for(config: QuarantineConfig, must_exist: bool) -> dict[str, str]:
    """Digest -> key of every data set that is meant: one, or all that are linked to the account of that name.

    Raises:
        ConfigError: neither is given; or the account must exist, and does not, or has no data set.
    """
    from dptrain.data.quarantine_names import GIVEN, ledger_key
    from dptrain.privacy.ledger import default_uri, open_ledger
    from dptrain.privacy.ledger_store import LedgerStore

    if config.dataset is None and config.digest is None:
        raise ConfigError("dataset", None, "is needed", "give dataset=ACCOUNT or digest=...")
    if not LedgerStore(config.uri or default_uri()).exists():
        if config.dataset is None:
            return {str(config.digest): GIVEN}
        if not must_exist:
            return {}
    ledger = open_ledger(config.uri, create=False)
    try:
        if config.digest is not None:
            return {config.digest: ledger_key(ledger) if ledger.account_of(config.digest) else GIVEN}
        name = str(config.dataset)
        known = must_exist or any(account.name == name for account in ledger.accounts())
        sets = ledger.account(name).datasets if known else {}
        if must_exist and not sets:
            raise ConfigError("dataset", name, "has no data set linked yet", "give digest=... instead")
        return dict.fromkeys(sets, ledger_key(ledger))
    finally:
        ledger.close()


def refuse_others(config: QuarantineConfig) -> None:
    """'show' shows everything; a key that it would pass over is refused."""
    for name in ("dataset", "digest", "reason", "uri"):
        if getattr(config, name):
            raise ConfigError(name, getattr(config, name), "makes no difference to 'show'", "leave it out")


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain data``: a verb, then settings."""
    from dptrain.compose import compose
    from dptrain.teach import command_help

    if not arguments or arguments[0] in ("-h", "--help") or "--help" in arguments:
        print(f"{__doc__}\nverbs: {', '.join(VERBS)}\n\nkeys\n" + command_help("data").split("\nkeys\n", 1)[1], end="")
    elif arguments[0] not in VERBS:
        raise ConfigError("data", arguments[0], "is not a verb", suggest(arguments[0], VERBS))
    else:
        run(arguments[0], compose("data", arguments[1:]))


if __name__ == "__main__":
    sys.exit(guarded("data", sys.argv[1:]))
