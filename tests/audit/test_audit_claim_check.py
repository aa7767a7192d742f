"""The claim check: honest scores are left alone, scores of too little noise are rejected, and the words stay modest."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dptrain.audit.bounds.claim import p_value
from dptrain.audit.bounds.curve import dp_curve
from dptrain.audit.claim_check import NONE, SHARES, check_claim, claimed_curve, deciding_test, judged
from dptrain.privacy import accounting

SIGMA, STEPS, RATE = 4.2, 100, 0.1


def statement(steps_done: int = STEPS, epsilon: float | None = None) -> dict[str, Any]:
    step = accounting.poisson_sampled(RATE, accounting.gaussian(SIGMA))
    planned, event = accounting.self_composed(STEPS, step), accounting.self_composed(steps_done, step)
    value = accounting.epsilon(event, 1e-5) if epsilon is None else epsilon
    return {
        "mechanism": {"event": event, "planned_event": planned},
        "sampling": {"steps_done": steps_done, "steps_planned": STEPS},
        "adjacency": {"relation": "zero_out"},
        "guarantee": {"epsilon": value, "delta": 1e-5},
        "audit": None,
    }


def final_scores(m: int, sigma: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What a final model shows at best of canaries on directions of their own: the sum over steps."""
    coins = rng.random(m) < 0.5
    drawn = rng.binomial(STEPS, RATE, m) * coins
    return drawn + sigma * np.sqrt(STEPS) * rng.standard_normal(m), coins


def test_without_canaries_it_says_so() -> None:
    found = check_claim(None, lambda rows: None, {}, "binary", 0.001, 0.95)
    assert found["sentence"] == NONE and found["rejected"] is None
    assert "was not tested by canaries" in NONE


def test_too_little_noise_is_rejected_and_honest_noise_is_not() -> None:
    """Honest: false alarms are below 1 in 1,000 a run by the guarantee, 5 in 1,000 for all five."""
    rng = np.random.default_rng(7)
    said = statement()
    runs = [judged(*final_scores(2000, SIGMA, rng), said, 0.001, 0.95) for _ in range(5)]
    for honest in runs:
        assert honest["rejected"] is False
        assert honest["sentence"].startswith("Not rejected: no violation larger than the claimed epsilon")
    leaky = judged(*final_scores(4000, SIGMA / 4, rng), said, 0.001, 0.95)
    assert leaky["rejected"] is True and leaky["sentence"].startswith("Rejected:")
    for found in (*runs, leaky):
        assert "verified" not in found["sentence"].lower()
    json.dumps([*runs, leaky], allow_nan=False)


def test_the_level_decides() -> None:
    rng = np.random.default_rng(3)
    scores, coins = final_scores(4000, SIGMA / 4, rng)
    p = judged(scores, coins, statement(), 0.001, 0.95)["test"]["p_value"]
    assert judged(scores, coins, statement(), min(0.5, 1.01 * p), 0.95)["rejected"]
    assert not judged(scores, coins, statement(), 0.99 * p, 0.95)["rejected"]


def test_bounds_come_with_their_assumptions() -> None:
    found = judged(*final_scores(300, SIGMA, np.random.default_rng(1)), statement(), 0.001, 0.95)
    named = {bound["name"]: bound["assumption"] for bound in found["bounds"]}
    assert set(named) == {"one_run", "f_dp", "clopper_pearson", "gaussian"}
    assert "independent draws" in named["clopper_pearson"] and "exactly Gaussian" in named["gaussian"]
    assert "Gaussian" in named["f_dp"] and "however they depend" in named["one_run"]
    assert found["epsilon_low"] == next(b["epsilon"] for b in found["bounds"] if b["name"] == "one_run")
    assert found["test"]["details"]["tried"] == sorted(2 * round(150 * share) for share in SHARES)


def test_the_error_is_shared_among_the_shares() -> None:
    """The p-value is the least over the parts, and the parts are one error's."""
    assert sum(SHARES.values()) == pytest.approx(1.0)
    rng = np.random.default_rng(4)
    curve = claimed_curve(statement())
    for noise in (SIGMA / 4, SIGMA, 8 * SIGMA):
        scores, coins = final_scores(500, noise, rng)
        each = [p_value(scores, coins, curve, (share,)).p_value / part for share, part in SHARES.items()]
        assert deciding_test(scores, coins, curve).p_value == pytest.approx(min(1.0, *each))


def test_few_canaries_contradict_a_large_epsilon() -> None:
    """A tenth of 400 guesses, all of them right, could not: each is right with a chance of e^4 / (1 + e^4) anyway."""
    coins = np.arange(400) % 2 == 0
    scores = np.where(coins, 1.0, -1.0) + np.linspace(0.0, 0.01, 400)
    curve = dp_curve(4.0, 1e-5)
    assert p_value(scores, coins, curve, (0.1,)).p_value > 0.1
    assert deciding_test(scores, coins, curve).p_value < 0.1


def test_a_run_that_stopped_is_held_against_its_plan() -> None:
    whole, stopped = claimed_curve(statement()), claimed_curve(statement(steps_done=10))
    assert whole.pairs == stopped.pairs
    assert "accountant" in whole.name


def test_an_event_without_a_curve_is_held_against_epsilon_and_delta() -> None:
    said = statement()
    said["mechanism"]["event"] = {"type": "unheard of"}
    assert claimed_curve(said).pairs == ((said["guarantee"]["epsilon"], 1e-5),)


def test_a_diverged_model_is_no_error() -> None:
    scores = np.array([np.nan, np.inf, -np.inf, 0.0] * 25)
    found = judged(scores, np.arange(100) % 2 == 0, statement(), 0.001, 0.95)
    assert found["rejected"] is False


@pytest.mark.parametrize("value", [0.0, 0.6, float("nan")])
def test_a_level_out_of_range_is_refused(value: float) -> None:
    from dptrain.config_audit import AuditSettings
    from dptrain.errors import ConfigError

    with pytest.raises(ConfigError, match=r"audit\.level"):
        AuditSettings(level=value)
