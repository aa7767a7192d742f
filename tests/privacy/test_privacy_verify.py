"""dptrain verify: a changed statement, an inconsistent one and a stranger's are told apart from a true one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from statement_maker import RECORDS, changes, facts, leaves, plan, put, signed, stated, status, written

from dptrain.cli import run
from dptrain.config_privacy import PrivacyConfig
from dptrain.errors import ConfigError
from dptrain.privacy import accounting, recompute
from dptrain.privacy.plan import compile_plan
from dptrain.privacy.selection import trials_with_mean
from dptrain.privacy.statement import make_statement
from dptrain.privacy.verdict import MISMATCH, OK, UNKNOWN, Verdict
from dptrain.privacy.verify import verified
from dptrain.signing import Signer, load_signer

pytestmark = pytest.mark.usefixtures("remembered")

PRIMARY = {
    ("guarantee", "delta"),
    ("dataset", "public_size"),
}
"""Terms: nothing in a statement says that another value would have been wrong, but all else follows from them."""
FREE = {("accounting", "library"), ("accounting", "version"), ("schema",), ("tier",)}


BY_USER = {"epsilon": None, "noise_multiplier": 2.0, "adjacency": "add_remove", "unit": "user"}
BY_USER |= {"max_rows_per_unit": 4, "noise": "fast"}


def other_signer(tmp_path: Path) -> Signer:
    return load_signer(tmp_path / "other.key")


def test_a_true_statement_holds(tmp_path: Path) -> None:
    for number, (steps, settings) in enumerate(
        [
            (None, {}),
            (None, {"epsilon": None, "noise_multiplier": 30.0}),
            (None, {"epsilon": None, "noise_multiplier": 3.0, "expected_batch_size": 1000, "epochs": 3}),
            (None, BY_USER),
            (0, {}),
        ]
    ):
        verdict = verified(written(tmp_path, stated(steps, None, **settings), f"{number}.json"))
        assert verdict.holds, (settings, verdict.problems)
        assert status(verdict, "files") == UNKNOWN and status(verdict, "ledger") == UNKNOWN


def test_a_statement_without_a_promise_holds_and_promises_nothing(tmp_path: Path) -> None:
    bare = stated(mechanism="none")
    assert verified(written(tmp_path, bare)).holds
    for place, value in [(("sentence",), "Very private."), (("private",), True), (("limits", "not_covered"), [])]:
        assert not verified(written(tmp_path, signed(put(bare, place, value)))).holds, place


def test_any_changed_field_breaks_the_signature(true_statement: dict[str, Any], tmp_path: Path) -> None:
    """Every leaf of every block, in both directions, through the command: exit code 4."""
    statement = signed(true_statement)
    tried = 0
    for place, value in leaves(statement):
        for change in changes(value):
            verdict = verified(written(tmp_path, put(statement, place, change)))
            assert not verdict.holds, place
            tried += 1
    assert tried > 400
    for block in ("guarantee", "mechanism", "sampling", "composition"):
        file = written(tmp_path, {k: v for k, v in statement.items() if k != block})
        assert run(["verify", f"path={file}"]) == 4


def test_the_command_exits_with_4_and_one_line(
    true_statement: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = put(signed(true_statement), ("guarantee", "epsilon"), 0.5)
    assert run(["verify", f"path={written(tmp_path, changed)}"]) == 4
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "changed after it was signed" in shown.err
    assert "signature    MISMATCH" in shown.out
    assert run(["verify", f"path={written(tmp_path, signed(true_statement))}", "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] and {line["status"] for line in found["lines"]} == {OK, UNKNOWN}


def lies(statement: dict[str, Any]) -> list[tuple[tuple[str | int, ...], Any]]:
    """Every change of one leaf that bears on the promise."""
    found = []
    for place, value in leaves(statement):
        on_record = place[0] in (*RECORDS, "integrity") and place not in {("dataset", "name"), *PRIMARY}
        if place in FREE or on_record:
            continue
        found += [(place, change) for change in changes(value)]
    return found


def test_a_trusted_signer_who_changes_one_field_is_caught_by_recomputation(
    true_statement: dict[str, Any], tmp_path: Path
) -> None:
    """Every leaf that bears on the promise, one way each, signed again by the trusted key."""
    tried = dict(lies(true_statement)) | dict(lies(true_statement)[::-1][::2])
    assert len(tried) > 180
    kinds = {place[0] for place in tried}
    assert {"guarantee", "mechanism", "sampling", "unit", "adjacency", "randomness", "limits", "accounting"} <= kinds
    for place, change in tried.items():
        verdict = verified(written(tmp_path, signed(put(true_statement, place, change))))
        assert not verdict.holds, (place, change)


def test_a_group_price_may_differ_by_the_rounding_of_another_processor(
    true_statement: dict[str, Any], tmp_path: Path
) -> None:
    """Two gave 20.975 and 21.034 for five units; a hundredth lower is a lie, a tenth higher another mechanism."""
    place = ("guarantee", "groups", "epsilon", 2, "epsilon")
    (stated_there,) = [value for at, value in leaves(true_statement) if at == place]
    for factor, holds in ((0.99, False), (0.9975, True), (1.0, True), (1.003, True), (1.1, False)):
        changed = signed(put(true_statement, place, stated_there * factor))
        verdict = verified(written(tmp_path, changed))
        assert verdict.holds == holds, (factor, verdict.problems)


@pytest.mark.slow
def test_every_way_of_changing_one_field_is_caught_by_recomputation(tmp_path: Path) -> None:
    """The same in every direction, for a whole run, one that stopped early, and one by user with fast noise.

    docs/results/verify.md gives how many.
    """
    tried = 0
    for steps, settings in [(None, {}), (40, {}), (None, BY_USER)]:
        statement = stated(steps, None, **settings)
        for place, change in lies(statement):
            verdict = verified(written(tmp_path, signed(put(statement, place, change))))
            assert not verdict.holds, (place, change)
            tried += 1
    print(tried, "changed and signed again, all caught")
    assert tried > 1000


@pytest.mark.parametrize("less", [0.005, 0.05])
def test_a_slightly_lower_claim_is_caught(true_statement: dict[str, Any], tmp_path: Path, less: float) -> None:
    """Half a percent is more than two discretisations differ; the whole guarantee is rewritten to agree."""
    from dptrain.privacy.guarantee import guarantee_block
    from dptrain.privacy.statement import derived_blocks
    from dptrain.privacy.terms import terms_of_statement

    terms = terms_of_statement(true_statement)
    low = true_statement["guarantee"]["epsilon"] * (1.0 - less)
    pairs = [row | {"epsilon": row["epsilon"] * (1.0 - less)} for row in true_statement["guarantee"]["epsilon_at"]]
    block = guarantee_block(terms, epsilon=low, planned=low, epsilon_at=pairs, interval=1e-4)
    derived = derived_blocks(terms, block)
    derived["accounting"] = true_statement["accounting"] | derived["accounting"]
    verdict = verified(written(tmp_path, signed(true_statement | derived)))
    assert status(verdict, "epsilon") == MISMATCH and status(verdict, "deltas") == MISMATCH


@pytest.mark.parametrize("steps", [99, 30])
def test_a_run_that_stopped_early_cannot_claim_less_than_its_ladder(tmp_path: Path, steps: int) -> None:
    statement = stated(steps)
    assert statement["guarantee"]["claim"] == "stopped_early"
    assert verified(written(tmp_path, statement)).holds
    fewer = put(statement, ("sampling", "steps_done"), steps - 10)
    assert not verified(written(tmp_path, signed(fewer))).holds
    lower = put(statement, ("guarantee", "epsilon"), statement["guarantee"]["epsilon"] * 0.97)
    assert status(verified(written(tmp_path, signed(lower))), "epsilon") == MISMATCH


def test_a_consistent_forgery_is_caught_by_its_signature(tmp_path: Path) -> None:
    """Noise, steps and every number changed to agree, signed by another key: numbers hold, the signer does not."""
    load_signer()
    forged = stated(epsilon=0.5, epochs=2, signer=other_signer(tmp_path))
    file = written(tmp_path, forged)
    verdict = verified(file)
    assert status(verdict, "epsilon") == OK and status(verdict, "derived") == OK
    assert status(verdict, "signer") == MISMATCH and not verdict.holds
    assert run(["verify", f"path={file}"]) == 4
    borrowed = put(forged, ("integrity", "public_key"), load_signer().public_key)
    borrowed = put(borrowed, ("integrity", "key_id"), load_signer().key_id)
    assert status(verified(written(tmp_path, borrowed)), "signature") == MISMATCH


def test_a_signer_is_trusted_by_name_or_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = other_signer(tmp_path)
    file = written(tmp_path, stated(signer=stranger))
    key = tmp_path / "stranger.pub"
    key.write_text(stranger.public_key + "\n")
    assert not verified(file).holds
    assert verified(file, key=key).holds
    assert run(["verify", f"path={file}", f"key={key}"]) == 0
    mine = written(tmp_path, stated(), "mine.json")
    assert verified(mine).holds
    assert not verified(mine, key=key).holds, "key= names the one signer to accept"
    from dptrain.signing import home

    (home() / "trusted").mkdir(parents=True)
    (home() / "trusted" / "stranger.pub").write_text(stranger.public_key)
    assert verified(file).holds
    key.write_text("not a key")
    with pytest.raises(ConfigError, match="not a public key"):
        verified(file, key=key)


def test_tuning_is_held_to_the_mechanism(true_statement: dict[str, Any], tmp_path: Path) -> None:
    price = true_statement["guarantee"]["epsilon"]
    block = {"strategy": "grid", "trials_distribution": None, "public_only": False}
    block |= {"epsilon_before": price, "epsilon_after": price}
    lies = [{"epsilon_after": price / 2}, {"epsilon_before": price / 2}, {"epsilon_before": None}]
    lies += [{"strategy": "random", "trials_distribution": "geometric, mean 10"}, {"public_only": True}]
    verdict = Verdict("")
    for change in [{}, *lies]:
        recompute._check_tuning(*_with_tuning(true_statement, {**block, **change}), verdict)
    assert [line.status for line in verdict.lines] == [OK] + [MISMATCH] * len(lies)


def _with_tuning(statement: dict[str, Any], block: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    from dptrain.privacy.terms import terms_of_statement

    changed = statement | {"tuning": block}
    return changed, terms_of_statement(changed)


def test_a_search_and_what_ran_beside_it_are_recomputed(tmp_path: Path) -> None:
    """The winner of a search over a secret number of trials, and a run with a noisy evaluation beside it."""
    config = PrivacyConfig(epsilon=None, noise_multiplier=1.5, epochs=5, expected_batch_size=50)
    look = accounting.self_composed(3, accounting.gaussian(20.0))
    for beside, trials in [((), trials_with_mean("geometric", 10.0)), ((look,), None)]:
        made = compile_plan(config, 1000, beside, trials)
        tuning = None
        if trials is not None:
            alone = accounting.self_composed(made.steps, made.mechanism.step_event())  # type: ignore[union-attr]
            before = accounting.epsilon(alone, made.priced_delta)
            tuning = {"strategy": "random", "trials_distribution": trials.describe, "epsilon_before": before}
            tuning |= {"epsilon_after": made.epsilon, "public_only": False}
        statement = json.loads(json.dumps(make_statement(made, facts(made.steps, tuning=tuning))))
        verdict = verified(written(tmp_path, signed(statement)))
        assert verdict.holds, verdict.problems
        looked = any("noisy looks at private rows" in text for text in statement["scope"]["covered"])
        assert looked == bool(beside), "what was looked at is said to be counted, and not said where nothing was"
        for block, name in [("guarantee", "epsilon"), ("guarantee", "epsilon_planned")]:
            lower = put(statement, (block, name), statement[block][name] * 0.97)
            assert not verified(written(tmp_path, signed(lower))).holds, name
        stripped = put(put(statement, ("mechanism", "trials"), None), ("mechanism", "beside"), [])
        assert not verified(written(tmp_path, signed(stripped))).holds


@pytest.mark.parametrize(
    ("engine", "float_class", "noise", "holds"),
    [
        ("bookkeeping", "measured", "secure", True),
        ("vmap", "exact", "secure", True),
        ("bookkeeping", "floating", "fast", True),
        ("an_engine_of_your_own", "exact", "secure", True),
        ("bookkeeping", "exact", "secure", False),
        ("vmap", "floating", "secure", False),
        ("vmap", "exact", "fast", False),
    ],
)
def test_arithmetic_is_named_as_it_is(engine: str, float_class: str, noise: str, holds: bool, tmp_path: Path) -> None:
    """Made consistently, so that only what is known of the engines tells a false float class from a true one."""
    made = plan(epsilon=None, noise_multiplier=3.0, noise=noise)
    statement = make_statement(made, facts(made.steps, engine=engine, float_class=float_class))
    verdict = verified(written(tmp_path, signed(json.loads(json.dumps(statement)))))
    assert verdict.holds == holds and (holds or status(verdict, "terms") == MISMATCH)
    [claim] = [a for a in statement["accounting"]["assumptions"] if "clipped sum" in a["claim"]]
    assert ("not proved" in claim["implemented"]) == (float_class == "measured")
    assert (claim["verified_by"] is None) == (engine == "an_engine_of_your_own")


def test_an_audit_that_contradicts_the_claim_is_a_mismatch(true_statement: dict[str, Any], tmp_path: Path) -> None:
    for audit, expected in [
        ({"epsilon_lower": 0.4, "consistent": True}, UNKNOWN),
        ({"epsilon_lower": 3.0}, MISMATCH),
        ({"rejected": True}, MISMATCH),
        ({"consistent": False}, MISMATCH),
    ]:
        assert status(verified(written(tmp_path, signed(true_statement | {"audit": audit}))), "audit") == expected


@pytest.mark.parametrize(
    ("canaries", "said"),
    [
        ({"count": 4000, "kind": "crafted"}, "none was published; 4,000 canaries were planted"),
        ({"count": 1, "kind": "natural"}, "none was published; 1 canary was planted"),
        ({"count": True}, "none was published; of canaries it says nothing that can be read"),
        (["4000"], "none was published; of canaries it says nothing that can be read"),
    ],
)
def test_planted_canaries_alone_are_no_published_audit(
    true_statement: dict[str, Any], tmp_path: Path, canaries: Any, said: str
) -> None:
    verdict = verified(written(tmp_path, signed(true_statement | {"audit": {"canaries": canaries}})))
    assert [(line.status, line.detail) for line in verdict.lines if line.name == "audit"] == [(UNKNOWN, said)]
    assert verdict.holds
