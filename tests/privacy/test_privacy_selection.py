"""The law of the number of trials is the declared one, and its price is never below the true privacy loss."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from dptrain.errors import ConfigError
from dptrain.keystream import Keystream, Purpose
from dptrain.privacy import accounting
from dptrain.privacy.privacy_filter import declare_rules, step_price, value
from dptrain.privacy.selection import (
    Trials,
    _masses,
    draw_trials,
    negative_binomial,
    pick,
    quantile,
    trials_from,
    trials_with_mean,
)

LAWS = [
    trials_with_mean("logarithmic", 6),
    trials_with_mean("geometric", 6),
    trials_with_mean("poisson", 6),
    trials_with_mean("truncated_negative_binomial", 6, 0.5),
]
RUN = accounting.self_composed(1000, accounting.poisson_sampled(0.01, accounting.gaussian(1.2)))


def mass(trials: Trials, count: int) -> np.ndarray:
    """P[K = 0 .. count-1], by the definitions, in float64 and apart from the code under test."""
    if trials.gamma is None or trials.eta is None:
        return np.array([math.exp(k * math.log(trials.mean) - trials.mean - math.lgamma(k + 1)) for k in range(count)])
    eta, gamma = trials.eta, trials.gamma
    if eta == 0:
        tail = [(1 - gamma) ** k / (k * math.log(1 / gamma)) for k in range(1, count)]
    else:
        scale = gamma**-eta - 1
        tail = [
            (1 - gamma) ** k / scale * math.exp(math.lgamma(k + eta) - math.lgamma(eta) - math.lgamma(k + 1))
            for k in range(1, count)
        ]
    return np.array([0.0, *tail])


@pytest.mark.parametrize("trials", LAWS, ids=lambda law: law.describe)
def test_the_number_of_trials_follows_its_law(trials: Trials) -> None:
    """Chi-square over cells of at least 20 expected draws. The key is fixed; with a fresh one, a correct law would fail
    once in 10,000."""
    draws = 4000
    stream = Keystream(test_key=bytes(range(32))).open(Purpose.TRIALS, 0)
    seen = np.bincount([draw_trials(trials, stream) for _ in range(draws)], minlength=200)
    expected = draws * mass(trials, len(seen))
    cells: list[tuple[float, float]] = []
    held = [0.0, 0.0]
    for observed, wanted in zip(seen, expected, strict=True):
        held = [held[0] + observed, held[1] + wanted]
        if held[1] >= 20:
            cells.append((held[0], held[1]))
            held = [0.0, 0.0]
    rest = draws - sum(cell[1] for cell in cells)
    cells[-1] = (cells[-1][0] + held[0], cells[-1][1] + rest)
    statistic = sum((observed - wanted) ** 2 / wanted for observed, wanted in cells)
    assert chi2.sf(statistic, len(cells) - 1) > 1e-4
    assert trials.eta is None or seen[0] == 0


@pytest.mark.parametrize("trials", LAWS, ids=lambda law: law.describe)
def test_masses_and_mean_are_those_of_the_definition(trials: Trials) -> None:
    import mpmath

    ours = [0.0] * 2000
    for k, p in _masses(trials, mpmath):
        if k >= 2000:
            break
        ours[k] = float(p)
    assert ours == pytest.approx(mass(trials, 2000).tolist(), rel=1e-9, abs=1e-300)
    assert sum(ours) == pytest.approx(1, abs=1e-9)
    assert sum(k * p for k, p in enumerate(ours)) == pytest.approx(trials.mean, rel=1e-9)
    half = quantile(trials, 0.5)
    assert sum(ours[: half + 1]) >= 0.5 > sum(ours[:half])


@given(
    mean=st.floats(1.001, 5000),
    shape=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.01, 20)),
)
def test_the_law_is_never_wider_than_it_is_priced(mean: float, shape: float) -> None:
    """The theorem's price falls in gamma and rises in the mean: both must err on its side."""
    from dp_accounting.rdp.rdp_privacy_accountant import _gamma_truncated_negative_binomial

    trials = trials_with_mean("truncated_negative_binomial", mean, shape)
    assert trials.gamma is not None
    assert trials.mean <= mean * (1 + 1e-12)
    assert trials.mean == pytest.approx(mean, rel=1e-9)
    assert trials.priced_mean >= trials.mean
    assert _gamma_truncated_negative_binomial(shape, trials.priced_mean) <= trials.gamma
    assert trials_from(trials.to_json()) == trials


def test_picks_are_uniform() -> None:
    """Chi-square, 10 cells, fixed key; a fresh one would fail once in 10,000."""
    stream = Keystream(test_key=bytes(32)).open(Purpose.TRIALS, 0)
    seen = np.bincount([pick(10, stream) for _ in range(5000)], minlength=10)
    assert chi2.sf(float(((seen - 500) ** 2 / 500).sum()), 9) > 1e-4


def test_picks_leave_out_the_words_that_would_favour_some() -> None:
    class Words:
        def __init__(self) -> None:
            self.left = [2**64 - 1, 2**64 - 2, 5]

        def uint64(self, count: int) -> Any:
            return np.array([self.left.pop(0)], dtype=np.uint64)

    assert (2**64) % 7 == 2
    assert pick(7, cast("Any", Words())) == 5  # the top two words would favour 0 and 1


def test_the_figures_of_the_field() -> None:
    """docs/results/tuning.md; features.md section 5 reads 1.30, 2.83, 3.48, 7.23 and 10.9 (by Renyi DP)."""
    price = {name: trials_with_mean(name, 40) for name in ("logarithmic", "geometric", "poisson")}
    found = {n: accounting.epsilon(accounting.repeat_and_select(RUN, t), 1e-5) for n, t in price.items()}
    assert accounting.epsilon(RUN, 1e-5) == pytest.approx(1.30, abs=0.005)
    assert found["logarithmic"] == pytest.approx(2.83, abs=0.005)
    assert found["geometric"] == pytest.approx(3.48, abs=0.005)
    assert found["poisson"] == pytest.approx(7.23, rel=0.003)
    assert accounting.rdp_epsilon(accounting.composed([RUN] * 40), 1e-5) == pytest.approx(10.9, abs=0.06)
    assert accounting.epsilon(accounting.composed([RUN] * 40), 1e-5) < 10.2


def law_of_best(p: np.ndarray, trials: Trials) -> np.ndarray:
    """Exact law of the best of K draws from p (outcomes in rising order), the first entry for 'nothing selected'.

    P[best <= y] = f(P[one <= y]) with f the generating function of K.
    """
    below = np.concatenate([[0.0], np.cumsum(p)])
    below[-1] = 1.0
    if trials.eta is None or trials.gamma is None:
        f = np.exp(trials.mean * (below - 1))
    elif trials.eta == 0:
        f = np.log1p(-(1 - trials.gamma) * below) / math.log(trials.gamma)
    else:
        scale = trials.gamma**-trials.eta - 1
        f = ((1 - (1 - trials.gamma) * below) ** -trials.eta - 1) / scale
    return np.concatenate([[f[0]], np.diff(f)])


def true_delta(one: np.ndarray, other: np.ndarray, epsilon: float) -> float:
    return float(np.maximum(one - math.exp(epsilon) * other, 0).sum())


@pytest.mark.parametrize("bins", [2, 3, 200])
@pytest.mark.parametrize("sigma", [0.7, 2.0, 6.0])
@pytest.mark.parametrize("trials", LAWS, ids=lambda law: law.describe)
def test_the_true_privacy_loss_is_never_above_the_price(trials: Trials, sigma: float, bins: int) -> None:
    """A Gaussian release cut into bins (two: randomised response), its bins ranked in three ways: every outcome of the
    search is enumerated, for both directions of the two neighbours."""
    event = accounting.repeat_and_select(accounting.gaussian(sigma), trials)
    edges = np.concatenate([[-np.inf], np.linspace(-4 * sigma, 4 * sigma + 1, bins - 1), [np.inf]])
    if bins == 2:
        edges = np.array([-np.inf, 0.5, np.inf])
    p, q = np.diff(norm.cdf(edges / sigma)), np.diff(norm.cdf((edges - 1) / sigma))
    for delta in (1e-2, 1e-5):
        epsilon = accounting.epsilon(event, delta)
        for order in (np.arange(bins), np.arange(bins)[::-1], np.random.RandomState(0).permutation(bins)):
            best_p, best_q = law_of_best(p[order], trials), law_of_best(q[order], trials)
            assert best_p.sum() == pytest.approx(1, abs=1e-12)
            assert true_delta(best_p, best_q, epsilon) <= delta
            assert true_delta(best_q, best_p, epsilon) <= delta


def test_the_charge_is_needed() -> None:
    """The best of 40 leaks more than one run: at the epsilon of one run its true delta is far above that run's."""
    sigma, trials = 2.0, trials_with_mean("geometric", 40)
    edges = np.concatenate([[-np.inf], np.linspace(-10, 11, 400), [np.inf]])
    p, q = np.diff(norm.cdf(edges / sigma)), np.diff(norm.cdf((edges - 1) / sigma))
    alone = accounting.epsilon(accounting.gaussian(sigma), 1e-5)
    worst = max(true_delta(law_of_best(a, trials), law_of_best(b, trials), alone) for a, b in ((p, q), (q, p)))
    assert worst > 5e-5


@settings(max_examples=6)
@given(
    mean=st.floats(1.5, 200),
    more=st.floats(1.1, 5),
    sigma=st.floats(1, 10),
    steps=st.integers(1, 200),
    name=st.sampled_from(["geometric", "logarithmic", "poisson"]),
)
def test_prices_rise_with_what_is_done(mean: float, more: float, sigma: float, steps: int, name: str) -> None:
    def price(mean: float, sigma: float, steps: int) -> float:
        run = accounting.self_composed(steps, accounting.poisson_sampled(0.05, accounting.gaussian(sigma)))
        return accounting.epsilon(accounting.repeat_and_select(run, trials_with_mean(name, mean)), 1e-5)

    run = accounting.self_composed(steps, accounting.poisson_sampled(0.05, accounting.gaussian(sigma)))
    assert price(mean, sigma, steps) >= accounting.epsilon(run, 1e-5)
    assert price(mean * more, sigma, steps) >= price(mean, sigma, steps) * (1 - 1e-9)
    assert price(mean, sigma * more, steps) <= price(mean, sigma, steps) * (1 + 1e-9)
    assert price(mean, sigma, steps + 50) >= price(mean, sigma, steps) * (1 - 1e-9)


def test_an_account_bears_a_selection_at_no_less_than_its_own_price() -> None:
    event = accounting.repeat_and_select(RUN, trials_with_mean("geometric", 40))
    rules = declare_rules(8.0, 1e-5, event)
    assert value(rules, step_price(event, [rule.order for rule in rules])) >= accounting.epsilon(event, 1e-5)


def test_compositions_are_spread_out_and_joined() -> None:
    step = RUN["event"]
    nested = accounting.composed([RUN, accounting.self_composed(2, accounting.composed([RUN, step]))])
    assert nested == accounting.self_composed(3002, step)
    look = accounting.self_composed(10, accounting.gaussian(20.0))
    both = accounting.composed([RUN, look])
    assert both == {"type": "composed", "events": [RUN, look]}
    separate = accounting.epsilon(RUN, 0.5e-5) + accounting.epsilon(look, 0.5e-5)
    assert max(accounting.epsilon(RUN, 1e-5), accounting.epsilon(look, 1e-5)) < accounting.epsilon(both, 1e-5)
    assert accounting.epsilon(both, 1e-5) < min(separate, accounting.rdp_epsilon(both, 1e-5))


GOOD = accounting.repeat_and_select(RUN, trials_with_mean("geometric", 4))
LONG = accounting.gaussian(1.0)
for _ in range(9):
    LONG = accounting.self_composed(1, LONG)


@pytest.mark.parametrize(
    "event",
    [
        GOOD | {"more": 1},
        GOOD | {"trials": {"name": "geometric", "eta": 1.0, "gamma": 0.1}},
        GOOD | {"trials": {"name": "truncated_negative_binomial", "eta": 1.0, "gamma": 0.0}},
        GOOD | {"trials": {"name": "truncated_negative_binomial", "eta": 1.0, "gamma": 1.0}},
        GOOD | {"trials": {"name": "truncated_negative_binomial", "eta": math.nan, "gamma": 0.5}},
        GOOD | {"trials": {"name": "truncated_negative_binomial", "eta": -0.5, "gamma": 0.5}},
        GOOD | {"trials": {"name": "truncated_negative_binomial", "eta": 1.0, "gamma": 1e-9}},
        GOOD | {"trials": {"name": "poisson", "mean": True}},
        GOOD | {"trials": {"name": "poisson", "mean": 0.5}},
        GOOD | {"trials": {"name": "poisson", "mean": math.inf}},
        accounting.repeat_and_select(GOOD, trials_with_mean("poisson", 2)),
        accounting.poisson_sampled(0.5, GOOD),
        {"type": "composed", "events": []},
        {"type": "composed", "events": [RUN, 3]},
        {"type": "composed", "events": [RUN] * 10_001},
        LONG,
    ],
)
def test_events_outside_the_schema_are_refused_in_one_line(event: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        accounting.to_dp_event(event)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "mean", "eta", "field"),
    [
        ("geometrical", 5, None, "tuning.trials_distribution"),
        ("geometric", 1, None, "tuning.mean_trials"),
        ("geometric", 1e9, None, "tuning.mean_trials"),
        ("geometric", math.nan, None, "tuning.mean_trials"),
        ("poisson", 5, 1.0, "tuning.eta"),
        ("truncated_negative_binomial", 5, None, "tuning.eta"),
        ("truncated_negative_binomial", 5, 1e3, "tuning.eta"),
    ],
)
def test_laws_out_of_range_are_refused_by_name(name: str, mean: float, eta: float | None, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trials_with_mean(name, mean, eta)
    assert caught.value.field == field


def test_a_law_is_never_cut_off() -> None:
    """The largest uniform gives a K far beyond the mean, and an answer all the same."""
    from dptrain.privacy.selection import _inverse

    trials = negative_binomial(1.0, 0.25)
    assert _inverse(trials, 2**256 - 1) > 500
    assert _inverse(trials_with_mean("poisson", 3), 0) == 0
