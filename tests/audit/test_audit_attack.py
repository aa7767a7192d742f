"""From outputs to the content of internal/audit.json, and the verdict on a claim."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from dptrain.audit.attack import attack_result, run_attacks, verdict
from dptrain.audit.verdict import epsilon_shown


def attacked(members: NDArray, others: NDArray, fprs=(0.01, 0.001), units=None) -> dict[str, Any]:
    """Attacks on binary logits of class 1, whose scores are the logits themselves."""
    n, m = len(members), len(others)
    units = np.arange(n) if units is None else units
    ones = np.ones(n), np.ones(m)
    return run_attacks(members[:, None], ones[0], units, others[:, None], ones[1], np.arange(m), "binary", fprs, 0.95)


def null(members: int = 360, others: int = 360, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return attacked(rng.normal(size=members), rng.normal(size=others))


def test_result_has_what_the_report_reads_and_is_json() -> None:
    found = null(500, 360)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["members"], found["non_members"]) == (500, 360)
    assert [a["name"] for a in found["attacks"]] == ["loss", "logit_difference", "calibrated"]
    for attack in found["attacks"]:
        assert set(attack["auc"]) == {"value", "low", "high"}
        assert attack["auc"]["low"] < attack["auc"]["value"] < attack["auc"]["high"]
        assert set(attack["tpr"][0]) == {"fpr", "tpr", "low", "high"}
        assert len(attack["roc"]["fpr"]) == len(attack["roc"]["tpr"]) <= 400


def test_a_rate_that_the_sample_cannot_support_is_refused() -> None:
    rates = null()["attacks"][0]["tpr"]
    assert rates[0]["fpr"] == 0.01 and "tpr" in rates[0]
    assert rates[1] == {"fpr": 0.001, "refused": "needs at least 1000 non-members; 360 given"}
    assert "tpr" in null(50, 1000)["attacks"][0]["tpr"][1]


def test_no_leak_is_seen_where_there_is_none() -> None:
    found = null()
    for attack in found["attacks"]:
        assert attack["auc"]["low"] < 0.5 < attack["auc"]["high"]
    judged = verdict(found, 1.0, 1e-5, 0.95)
    assert not judged["rejected"]
    assert judged["epsilon_low"] < 0.2
    assert "No violation larger than the claimed epsilon 1 found" in judged["verdict"]


def test_a_planted_leak_is_found_and_the_claim_rejected() -> None:
    rng = np.random.default_rng(1)
    found = attacked(rng.normal(3, 1, 1000), rng.normal(0, 1, 1000))
    assert found["attacks"][0]["auc"]["low"] > 0.95
    assert found["attacks"][1]["tpr"][0]["low"] > 0.5
    judged = verdict(found, 1.0, 1e-5, 0.95)
    assert judged["rejected"]
    assert 1.0 < judged["epsilon_low"] <= judged["epsilon_ceiling"]
    assert judged["verdict"].startswith("Rejected:")
    assert not verdict(found, 9.0, 1e-5, 0.95)["rejected"]
    assert not verdict(found, None, None, 0.95)["rejected"]


@pytest.mark.parametrize("epsilon", [None, 0.1, 3.0, 100.0])
@pytest.mark.parametrize("shift", [0.0, 4.0])
def test_the_sentence_says_what_was_compared_and_never_that_all_is_well(epsilon: float | None, shift: float) -> None:
    rng = np.random.default_rng(2)
    found = attacked(rng.normal(shift, 1, 400), rng.normal(0, 1, 400))
    said = verdict(found, epsilon, None if epsilon is None else 1e-5, 0.95, unit="user")["verdict"]
    assert "compares training rows with held-out rows and assumes that they are drawn alike" in said
    assert "95 % confidence over all 15 tests together" in said
    assert "one observation is one user" in said
    assert "\n" not in said
    for word in ("verified", "safe", "secure", "proves", "guarantee"):
        assert word not in said.lower()


def randomised(rng: np.random.Generator, epsilon: float, member: bool, size: int) -> NDArray:
    """Randomised response on membership: exactly epsilon-DP, and as leaky as that allows."""
    truth = rng.random(size) < 1 / (1 + math.exp(-epsilon))
    return (truth == member).astype(float) + 0.01 * rng.normal(size=size)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_a_true_claim_is_rejected_no_more_often_than_stated(epsilon: float) -> None:
    """The claim is exact. Stated level 5 %; more than the allowed count has a chance below 1e-4."""
    rng = np.random.default_rng(3)
    runs, rejected = 200, 0
    for _ in range(runs):
        members, others = (randomised(rng, epsilon, member, 500) for member in (True, False))
        rejected += verdict(attacked(members, others), epsilon, 0.0, 0.95)["rejected"]
    assert rejected <= binom.isf(1e-4, runs, 0.05)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_a_claim_of_half_the_leak_is_rejected(epsilon: float) -> None:
    rng = np.random.default_rng(4)
    members, others = (randomised(rng, epsilon, member, 3000) for member in (True, False))
    found = attacked(members, others)
    judged = verdict(found, epsilon / 2, 0.0, 0.95)
    assert judged["rejected"]
    assert judged["epsilon_low"] < epsilon


def test_many_rows_of_a_user_are_one_observation() -> None:
    rng = np.random.default_rng(5)
    users = np.repeat(np.arange(40), 25)
    members = np.repeat(rng.normal(0, 1, 40), 25)  # 40 users, each repeated 25 times
    found = attacked(members, rng.normal(0, 1, 400), units=users)
    alone = attacked(members[::25], rng.normal(0, 1, 400))
    assert found["members"] == 40

    def width(result: dict[str, Any]) -> float:
        auc = result["attacks"][0]["auc"]
        return auc["high"] - auc["low"]

    assert width(found) == pytest.approx(width(alone), rel=0.3)
    assert width(attacked(members, rng.normal(0, 1, 400))) < 0.6 * width(found)


def test_a_leak_only_the_margin_shows_is_found_where_the_loss_saturates() -> None:
    """Losses below the smallest float are all zero: the loss attack ties, the margin does not."""
    rng = np.random.default_rng(6)
    found = attacked(rng.normal(1000, 20, 500), rng.normal(900, 20, 500))
    assert found["attacks"][0]["auc"]["value"] == pytest.approx(0.5)
    assert found["attacks"][1]["auc"]["value"] > 0.99


def test_a_model_whose_outputs_are_not_numbers_is_audited_all_the_same() -> None:
    found = attacked(np.full(50, np.nan), np.full(50, np.nan))
    assert found["attacks"][0]["auc"]["value"] == 0.5
    json.dumps(found | verdict(found, 1.0, 1e-5, 0.95), allow_nan=False)


def test_one_unit_a_side_is_answered_with_ignorance() -> None:
    found = attacked(np.array([1.0]), np.array([0.0]))
    assert (found["attacks"][0]["auc"]["low"], found["attacks"][0]["auc"]["high"]) == (pytest.approx(0.025), 1.0)
    assert verdict(found, 0.01, 0.0, 0.95)["epsilon_ceiling"] == 0.0
    with pytest.raises(ValueError):
        attacked(np.array([]), np.array([0.0]))


def test_bounds_and_verdict_must_share_a_confidence() -> None:
    with pytest.raises(ValueError, match=r"made at 0\.95"):
        verdict(null(), 1.0, 1e-5, 0.99)


def test_epsilon_shown_uses_both_inequalities() -> None:
    assert epsilon_shown(0.5, 0.1, 0.0) == pytest.approx(math.log(5))
    assert epsilon_shown(0.9, 0.5, 0.0) == pytest.approx(math.log(5))
    assert epsilon_shown(0.5, 0.1, 0.2) == pytest.approx(math.log(3))
    assert epsilon_shown(0.1, 0.5, 0.0) == 0.0


def test_error_of_the_bounds_is_shared_among_attacks() -> None:
    rng = np.random.default_rng(7)
    members, others = rng.normal(2, 1, 500), rng.normal(0, 1, 500)
    alone = attack_result("loss", members, others, [0.01], 0.95)
    shared = attack_result("loss", members, others, [0.01], 0.95, share=2)
    for one, two in zip(alone["bounds"], shared["bounds"], strict=True):
        assert two["tpr_low"] < one["tpr_low"] and two["fpr_high"] > one["fpr_high"]
    assert alone["auc"] == shared["auc"]
