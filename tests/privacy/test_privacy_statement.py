"""The statement: true of what was executed, complete, and silent about the private rows."""

from __future__ import annotations

import json

import pytest

from dptrain.config_privacy import PrivacyConfig
from dptrain.privacy import accounting
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.privacy.statement import RunFacts, make_statement

DATA = {"name": "ward", "licence": "not stated", "public_size": 1000, "public_split": "test rows"}


def plan(**changes: object) -> Plan:
    settings = {"epsilon": 2.0, "epochs": 5, "expected_batch_size": 50, **changes}
    return compile_plan(PrivacyConfig(**settings), 1000)  # type: ignore[arg-type]


def facts(steps: int, **changes: object) -> RunFacts:
    settings = {"run_id": "r", "steps_done": steps, "engine": "vmap", "float_class": "exact", "data": DATA, **changes}
    return RunFacts(**settings)  # type: ignore[arg-type]


def test_anyone_can_recompute_epsilon_from_the_statement() -> None:
    made = plan()
    stated = json.loads(json.dumps(make_statement(made, facts(made.steps)), allow_nan=False))
    guarantee = stated["guarantee"]
    again = accounting.epsilon(stated["mechanism"]["event"], guarantee["delta"], stated["adjacency"]["relation"])
    assert again <= guarantee["epsilon"] <= 2.0
    assert guarantee["epsilon"] == pytest.approx(again, rel=1e-4)
    assert guarantee["claim"] == "planned"


def test_the_sentence_rounds_up() -> None:
    made = plan()
    stated = make_statement(made, facts(made.steps))
    shown = float(stated["sentence"].split("(")[1].split(",")[0])
    assert shown >= stated["guarantee"]["epsilon"]
    assert shown - stated["guarantee"]["epsilon"] <= 1e-3


def test_a_stopped_run_says_so_and_claims_no_less_than_its_steps_cost() -> None:
    made = plan()
    stated = make_statement(made, facts(made.steps // 2))
    assert stated["guarantee"]["claim"] == "stopped_early"
    executed = accounting.epsilon(stated["mechanism"]["event"], made.delta)
    assert executed <= stated["guarantee"]["epsilon"] <= made.epsilon  # type: ignore[operator]
    assert any("stopping" in a["claim"] for a in stated["accounting"]["assumptions"])


def test_no_privacy_and_test_keys_promise_nothing() -> None:
    off = plan(mechanism="none")
    for stated in (
        make_statement(off, facts(off.steps)),
        make_statement(plan(), facts(10, test_randomness=True)),
    ):
        assert stated["private"] is False
        assert stated["guarantee"] is None
        assert "no privacy" in stated["sentence"]


def test_published_internal_metrics_are_stamped() -> None:
    made = plan()
    stated = make_statement(made, facts(made.steps, nonprivate_metrics=["batch_size"]))
    assert stated["scope"]["nonprivate_metrics"] == ["batch_size"]
    assert "batch_size" in stated["sentence"]
    assert any("batch_size" in entry for entry in stated["limits"]["not_covered"])


def test_users_are_called_users() -> None:
    made = plan(unit="user", max_rows_per_unit=4)
    stated = make_statement(made, facts(made.steps))
    assert "user (at most 4 rows each)" in stated["sentence"]
    assert (stated["unit"]["kind"], stated["unit"]["max_rows"]) == ("user", 4)
    assert any("names each person once" in a["claim"] for a in stated["accounting"]["assumptions"])


def test_fast_noise_is_not_stated_flatly() -> None:
    made = plan(noise="fast")
    stated = make_statement(made, facts(made.steps, float_class="floating"))
    assert "if the noise were ideal" in stated["sentence"]
