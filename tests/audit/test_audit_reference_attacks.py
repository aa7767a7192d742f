"""Attacks with references on scores whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from dptrain.audit.bavaria import bavaria_n, bavaria_t, fit_prior
from dptrain.audit.exposed import exposed_groups
from dptrain.audit.groups import Grouping
from dptrain.audit.lira import lira_offline, lira_online, moments
from dptrain.audit.reference_attacks import (
    ATTACKS,
    FEWEST_PAIRS,
    References,
    between_models,
    choose_offset,
    mean_interval,
    scores,
)
from dptrain.audit.rmia import rmia, rmia_published
from dptrain.audit.roc import roc_curve
from dptrain.audit.signals import Signals, signals
from dptrain.errors import ConfigError


def made_up(gap: float, pairs: int = 6, units: int = 2000, seed: int = 0) -> References:
    """Log odds with a centre of each unit, ``gap`` higher where it trained."""
    rng = np.random.default_rng(seed)
    included = np.zeros((2 * pairs, units), bool)
    for pair in range(pairs):
        included[2 * pair, rng.permutation(units)[: units // 2]] = True
        included[2 * pair + 1] = ~included[2 * pair]
    phi = 2 * rng.normal(size=units) + gap * included + rng.normal(size=included.shape)
    return References(Signals(phi, -np.logaddexp(0, -phi)), included, np.repeat(np.arange(pairs), 2))


def test_online_lira_is_the_likelihood_ratio() -> None:
    references = made_up(1.0, pairs=200, units=50)
    phi = np.linspace(-2, 2, 50)
    found = lira_online(phi, references.signals.phi, references.included)
    inside = np.where(references.included, references.signals.phi, np.nan)
    outside = np.where(references.included, np.nan, references.signals.phi)
    parts = [(np.nanmean(s, axis=0), np.nanstd(s, axis=0, ddof=1)) for s in (inside, outside)]
    logs = [-0.5 * ((phi - m) / s) ** 2 - np.log(s) for m, s in parts]
    assert np.allclose(found, logs[0] - logs[1])


def test_offline_lira_rises_with_the_log_odds_alone() -> None:
    references = made_up(1.0)
    low, high = (lira_offline(np.full(2000, x), references.signals.phi, references.included) for x in (-1.0, 1.0))
    assert (high > low).all()


def test_few_references_share_one_deviation() -> None:
    references = made_up(0.0, pairs=8, units=4000)
    _, std = moments(references.signals.phi, references.included)
    assert np.ptp(std) == 0
    assert std[0] == pytest.approx(1.0, abs=0.03)  # 28,000 degrees of freedom: 0.03 is 7 standard errors


def test_rmia_ranks_as_published_without_its_ties() -> None:
    references = made_up(1.0)
    ratio = rmia(references.signals.log_p[0], references.signals.log_p[2:], references.included[2:], 0.3)
    counted = rmia_published(ratio, ratio[:100])
    order = np.argsort(ratio)
    assert (np.diff(counted[order]) >= 0).all()
    assert len(np.unique(counted)) < len(np.unique(ratio))


def test_rmia_ratio_by_hand() -> None:
    p = np.array([[0.5], [0.9]])
    found = rmia(np.log([0.8]), np.log(p), np.array([[False], [True]]), 0.4)
    assert found[0] == pytest.approx(np.log(0.8 / (0.7 * 0.5 + 0.3)))


def test_bavaria_prior_finds_the_law_of_the_variance() -> None:
    rng = np.random.default_rng(1)
    shape, scale, count = 6.0, 5.0, 8
    variance = scale / rng.gamma(shape, size=20_000)
    drawn = 3 + 2 * rng.normal(size=20_000) + rng.normal(size=(count, 20_000)) * np.sqrt(variance)
    mean = drawn.mean(axis=0)
    prior = fit_prior(np.square(drawn - mean).sum(axis=0), np.full(20_000, float(count)), drawn)
    assert prior.shape == pytest.approx(shape, rel=0.2)
    assert prior.scale / (prior.shape - 1) == pytest.approx(1.0, rel=0.05)


def test_bavaria_is_as_sure_of_outliers_as_of_others() -> None:
    """A unit that lies elsewhere, with the same spread, scores as one in the middle; with one reference a side, the
    normal form is LiRA's up to its one variance."""
    references = made_up(1.0, pairs=4, units=300)
    moved = references.signals.phi.copy()
    moved[:, 0] += 50.0
    for attack in (bavaria_t, bavaria_n):
        plain = attack(references.signals.phi[0], references.signals.phi[2:], references.included[2:])
        again = attack(moved[0], moved[2:], references.included[2:])
        assert np.allclose(plain, again)
    one = slice(2, 4)
    phi, refs, inside = references.signals.phi[0], references.signals.phi[one], references.included[one]
    slope = np.polyfit(lira_online(phi, refs, inside), bavaria_n(phi, refs, inside), 1)[0]
    assert np.allclose(bavaria_n(phi, refs, inside), slope * lira_online(phi, refs, inside))


def test_bavaria_beats_lira_where_variances_differ() -> None:
    rng = np.random.default_rng(2)
    units, pairs = 20_000, 8
    deviation = np.sqrt(3.0 / rng.gamma(2.5, size=units))
    included = np.repeat(rng.random((pairs, units)) < 0.5, 2, axis=0)
    included[1::2] = ~included[1::2]
    phi = deviation * rng.normal(size=included.shape) + 1.5 * included
    truth = rng.random(units) < 0.5
    target = deviation * rng.normal(size=units) + 1.5 * truth
    areas = [
        roc_curve(s[truth], s[~truth]).auc
        for s in (f(target, phi, included) for f in (bavaria_t, bavaria_n, lira_online))
    ]
    assert min(areas[:2]) > areas[2]


@pytest.mark.parametrize("gap", [0.0, 2.0])
def test_every_attack_finds_members_only_where_there_is_something_to_find(gap: float) -> None:
    references = made_up(gap)
    target = Signals(references.signals.phi[0], references.signals.log_p[0])
    for name, made in scores(target, references.without(0), 0.5).items():
        auc = roc_curve(made[references.included[0]], made[~references.included[0]]).auc
        if gap:
            assert auc > 0.7, name
        else:  # standard error 0.013 of 1,000 against 1,000: 5 of them, false alarms below 1 in a million
            assert abs(auc - 0.5) < 0.065, name


def test_bars_count_pairs_and_refuse_rates_without_support() -> None:
    references = made_up(2.0)
    assert 0 <= choose_offset(references) <= 1
    bars = between_models(references, 0.5, [0.01, 1e-4], 0.95)
    assert set(bars) == set(ATTACKS)
    for rates in bars.values():
        assert [entry["fpr"] for entry in rates] == [0.01]
        assert rates[0]["targets"] == 12
        assert rates[0]["low"] <= rates[0]["tpr"] <= rates[0]["high"]
    assert between_models(made_up(2.0, pairs=1), 0.5, [0.01], 0.95) == {}


def test_interval_between_models_covers() -> None:
    """200 simulated audits at 90 %: the mean TPR at 10 % is missed in at most 10 % plus 4 standard errors (0.185)."""
    found = [between_models(made_up(1.0, 4, 200, s), 0.5, [0.1], 0.9, ["lira_offline"]) for s in range(200)]
    entries = [bars["lira_offline"][0] for bars in found]
    truth = np.mean([entry["tpr"] for entry in entries])
    assert np.mean([not entry["low"] <= truth <= entry["high"] for entry in entries]) < 0.185


@pytest.mark.parametrize("spread", [0.4, 0.6, 0.8, 1.0, 1.2, 1.6])
def test_interval_between_models_covers_where_training_stops_once_it_is_narrow(spread: float) -> None:
    """4,000 audits at 95 % that stop at the first width of at most 1, from 4 pairs on (48 at most): missed in at most
    5 % plus 4 standard errors (0.0638). Student's interval at the whole error misses in 7 % to 9 % from 0.6 on."""
    values = np.random.default_rng(11).normal(0.0, spread, (48, 4000))
    missed, going = 0, np.ones(4000, dtype=bool)
    for pairs in range(FEWEST_PAIRS, 49):
        low, high = mean_interval(values[:pairs], 0.95)
        ends = going & ((high - low <= 1.0) | (pairs == 48))
        missed += int((ends & ((low > 0.0) | (high < 0.0))).sum())
        going &= ~ends
    assert missed / 4000 < 0.0638


def test_exposed_groups_hide_small_ones_and_rank_by_what_is_sure() -> None:
    members = np.concatenate([np.full(100, 2.0), np.full(100, -2.0), np.full(5, 2.0)])
    groups = np.repeat([0, 1, 2], [100, 100, 5])
    by_class = Grouping("class", groups, ("a", "b", "c"))
    found = exposed_groups(members, [by_class], np.linspace(-1, 1, 1000), 0.01, 0.95)
    assert [entry["group"] for entry in found["groups"]] == ["a", "b"]
    assert [entry["found"] for entry in found["groups"]] == [1.0, 0.0]
    assert (found["suppressed"], found["together"]) == (1, 2)
    assert "refused" in exposed_groups(members, [by_class], np.zeros(50), 0.001, 0.95)


def test_all_intervals_of_groups_hold_together() -> None:
    """300 simulated audits of 40 groups at 90 %: some interval misses in at most 10 % plus 4 standard errors (0.17);
    each at 90 % by itself, some of 40 would miss nearly always."""
    rng = np.random.default_rng(4)
    groupings = [Grouping("a", np.repeat(np.arange(20), 30), ()), Grouping("b", np.tile(np.arange(20), 30), ())]
    missed = 0
    for _ in range(300):
        found = exposed_groups(rng.random(600), groupings, np.linspace(0, 1, 101), 0.25, 0.9)
        assert found["together"] == 40
        # the threshold is the 26th largest of the non-members, 0.75: a quarter of every group lies above
        missed += any(not entry["low"] <= 0.25 <= entry["high"] for entry in found["groups"])
    assert missed / 300 < 0.17


def test_signals_are_log_odds_of_a_unit() -> None:
    logits = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [np.nan, 0.0, 0.0]])
    found = signals(logits, np.array([0, 1, 2]), np.array([0, 0, 1]), "multiclass")
    p = np.exp(logits[0])[0] / np.exp(logits[0]).sum(), np.exp(3) / (2 + np.exp(3))
    assert found.phi[0] == pytest.approx(np.mean([np.log(x / (1 - x)) for x in p]))
    assert found.log_p[0] == pytest.approx(np.mean(np.log(p)))
    assert found.phi[1] == 0
    with pytest.raises(ConfigError, match="regression"):
        signals(logits, np.zeros(3), np.arange(3), "regression")
