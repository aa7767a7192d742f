"""Which account pays, how long a lease is, and what an account shows."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dptrain.config_budget import LedgerConfig
from dptrain.errors import BudgetRefused, ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.lease import LONGEST, lease_size
from dptrain.privacy.ledger import Ledger, open_ledger
from dptrain.privacy.privacy_filter import least_limit
from dptrain.privacy.which_account import account_for

EVENT = accounting.self_composed(100, accounting.poisson_sampled(0.01, accounting.gaussian(1.2)))
FIRST, SECOND = "ab" * 32, "cd" * 32


def found(ledger: Ledger, digest: str = FIRST, **settings: Any) -> str:
    config = LedgerConfig(**settings)
    facts = {"digest": digest, "name": "adult", "delta": 1e-5, "unit": "record", "typical": EVENT}
    return account_for(ledger, config, **facts).name


def test_an_account_is_made_only_with_a_limit() -> None:
    ledger = open_ledger(None)
    with pytest.raises(ConfigError, match=r"adult: has no limit yet; .*ledger\.epsilon_limit=8"):
        found(ledger)
    assert found(ledger, epsilon_limit=4, delta_limit=1e-6) == "adult"
    made = ledger.account("adult")
    assert (made.epsilon, made.delta, made.unit, made.datasets) == (4.0, 1e-6, "record", {FIRST: "same"})
    assert found(ledger, epsilon_limit=99) == "adult"
    assert ledger.account("adult").epsilon == 4.0, "a limit is declared once"


def test_a_limit_that_cannot_bear_the_first_run_makes_no_account_and_says_what_would() -> None:
    """What the refusal asks for is enough; a little less is not."""
    ledger = open_ledger(None)
    asked = least_limit(EVENT, 0.01, 1e-5)
    for limit in (0.01, asked * 0.9):
        with pytest.raises(
            BudgetRefused, match=r"ledger.epsilon_limit=.*cannot bear this run, .*declare [\d.]+ or more"
        ):
            found(ledger, epsilon_limit=limit)
    assert not ledger.accounts()
    assert found(ledger, epsilon_limit=math.ceil(asked * 100) / 100) == "adult"
    ledger.reserve("adult", event=EVENT, run_id="r", purpose="final", delta=1e-5, epsilon=1.0)
    assert ledger.account("adult").value > 0.9 * asked, "and not by much too much"


def test_new_rows_of_the_same_people_share_the_account() -> None:
    ledger = open_ledger(None)
    found(ledger, epsilon_limit=4)
    assert found(ledger, SECOND) == "adult"
    assert ledger.account("adult").datasets == {FIRST: "same", SECOND: "version"}
    third = "ef" * 32
    with pytest.raises(ConfigError, match="holds other people"):
        found(ledger, third, same_people=False)
    assert found(ledger, third, same_people=False, account="others", epsilon_limit=1) == "others"
    assert found(ledger, third) == "others", "the digest decides"
    with pytest.raises(ConfigError, match="these rows belong to account 'others'"):
        found(ledger, third, account="adult")


def test_settings_out_of_range() -> None:
    wrongs: list[dict[str, Any]] = [
        {"epsilon_limit": 0},
        {"epsilon_limit": 1001},
        {"delta_limit": 1},
        {"lease_steps": 0},
    ]
    for wrong in wrongs:
        with pytest.raises(ConfigError, match=r"ledger\."):
            LedgerConfig(**wrong)
    with pytest.raises(ConfigError, match=r"ledger.uri=postgresql://host/db: holds a password") as refused:
        LedgerConfig(uri="postgresql://me:hunter2@host/db")
    assert "hunter2" not in str(refused.value)


def test_leases_keep_commits_under_a_twentieth_of_the_time() -> None:
    for step in (1.0, 0.2, 0.05, 0.01, 0.001):
        size = lease_size(step, 0.008)
        assert 0.05 * size * step * (1 + 1e-9) >= 0.008 or size == LONGEST
    assert lease_size(1.0, 0.008) == 1 and lease_size(0.0, 0.008) == LONGEST


def test_the_numbers_of_an_account_are_in_order() -> None:
    """Charged is at most reserved; the distribution of fixed runs is below the filter's value."""
    ledger = open_ledger(None)
    ledger.create_account("adult", 8, 1e-5)
    for n, done in enumerate((100, 40, None)):
        rates = accounting.self_composed(100, accounting.poisson_sampled(0.02 + n / 100, accounting.gaussian(1.5)))
        held = ledger.reserve("adult", event=rates, run_id=f"r{n}", purpose="trial", delta=1e-5, epsilon=1.0)
        ledger.commit(held, done or 20)
        if done is not None:
            ledger.settle(held, done)
    totals = ledger.totals("adult")
    assert totals.odometer is not None and totals.planned_pld is not None
    assert 0 < totals.odometer < totals.planned_pld < totals.epsilon < 8
    assert totals.odometer < totals.epsilon_settled < totals.epsilon
    assert totals.remaining == 8 - totals.epsilon
    assert [entry["status"] for entry in totals.entries] == ["settled", "settled", "running"]
