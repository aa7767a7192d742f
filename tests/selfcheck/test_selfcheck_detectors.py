"""The detectors on simulated blocks: exact where nothing is wrong, quick where something is."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import EFFECT, RATE, SIZE, simulated
from scipy.stats import binom, kstest

from dptrain.selfcheck.checker import Checker, corrected, number_of_looks
from dptrain.selfcheck.detectors import CULPRITS, SHARES, noise_ratio, p_values
from dptrain.selfcheck.inclusions import LARGEST, _by_moments, _law, repeats_p, total_p
from dptrain.selfcheck.tally import Tally


def tallied(runs: int, steps: int, fault: str = "none", seed: int = 0, rate: float = RATE) -> Tally:
    tally = Tally(EFFECT, runs)
    for block, drawn in simulated(runs, steps, fault, seed, rate):
        tally.add(block, drawn)
    return tally


@pytest.mark.parametrize("steps", [1, 2, 16])
@pytest.mark.parametrize("rate", [0.05, 0.6])
def test_p_values_of_a_clean_run_are_uniform(steps: int, rate: float) -> None:
    """Kolmogorov-Smirnov on 2,000 runs; the four continuous tests; false alarm rate 24 x 1e-6."""
    found = p_values(tallied(2000, steps, seed=steps, rate=rate), rate)
    for name in ("noise", "scale", "offset", "contrast"):
        assert kstest(found[name], "uniform").pvalue > 1e-6, name


@pytest.mark.parametrize("steps", [2, 16])
def test_discrete_and_combined_p_values_are_not_below_their_level(steps: int) -> None:
    """Of 4,000 runs, those with p <= a are at most Binomial(4000, a); false alarm rate 18 x 1e-6."""
    found = p_values(tallied(4000, steps, seed=steps), RATE)
    for name in ("reuse", "total", "repeats"):
        for level in (0.3, 0.05, 0.01):
            assert (found[name] <= level).sum() <= binom.isf(1e-6, 4000, level), (name, level)


def test_the_law_of_repeats_is_that_of_drawing() -> None:
    """The table against 200,000 draws of its law: Kolmogorov's distance, false alarm rate 1e-6."""
    dummies, steps, rate = 16, 30, 0.2
    first, cumulative = _law(dummies, steps, rate)
    assert cumulative is not None
    n = np.random.default_rng(1).binomial(steps, rate, (200_000, dummies))
    pairs = (n * (n - 1) // 2).sum(1)
    places = np.arange(first, first + len(cumulative))
    seen = np.searchsorted(np.sort(pairs), places, side="right") / len(pairs)
    assert np.abs(seen - cumulative).max() < (np.log(2e6) / (2 * len(pairs))) ** 0.5


def test_repeats_counted_by_hand() -> None:
    """Two dummies, two steps, q = 1/2: both drawn twice with chance 1/16, one of them with chance 6/16."""
    both = repeats_p(np.array([[2, 2], [2, 1], [1, 0]]), 2, 0.5)
    assert np.allclose(both, [2 / 16, min(1.0, 2 * 7 / 16), 1.0])
    assert np.allclose(total_p(np.array([4, 0]), 2, 2, 0.5), 2 / 16)
    assert np.allclose(repeats_p(np.array([[5, 5], [5, 4]]), 5, 1.0), [1.0, 0.0])


def test_beyond_the_table_moments_take_over_smoothly() -> None:
    """Where both are to be had, they agree to a tenth of the p-value down to 1e-5."""
    steps, rate = 300, 0.05
    first, cumulative = _law(SIZE, steps, rate)
    assert cumulative is not None
    for level in (0.4, 1e-2, 1e-4, 1e-5):
        for place in (np.searchsorted(cumulative, level / 2) - 1, np.searchsorted(cumulative, 1 - level / 2)):
            pairs = np.array([first + place])
            exact = 2 * min(cumulative[place], 1 - cumulative[place - 1])
            assert _by_moments(pairs, SIZE, steps, rate)[0] == pytest.approx(exact, rel=0.12)
    assert _law(SIZE, 200_000, rate)[1] is None, f"a table of more than {LARGEST} entries"


def test_a_clean_run_is_left_alone() -> None:
    """The real detectors on 2,000 runs of 64 steps at alpha = 1e-2: alarms at most Binomial(2000, 1e-2) at 1e-6."""
    tally, looks = Tally(EFFECT, 2000), number_of_looks(64)
    accused = np.zeros(2000, dtype=bool)
    for step, (block, drawn) in enumerate(simulated(2000, 64, seed=9), 1):
        tally.add(block, drawn)
        if step & (step - 1) == 0:
            for test, p in p_values(tally, RATE).items():
                accused |= corrected(p, test, looks) < 1e-2
    assert accused.sum() <= binom.isf(1e-6, 2000, 1e-2)


@pytest.mark.parametrize(
    ("fault", "culprit", "within"),
    [
        ("noise0.9", "noise", 8),
        ("noise0.95", "noise", 32),
        ("noise1.2", "noise", 8),
        ("reuse", "reuse", 2),
        ("no clipping", "clipping", 2),
        ("lost half", "averaging", 32),
        ("shuffle", "sampling", 32),
    ],
)
def test_a_fault_is_named_in_time(fault: str, culprit: str, within: int) -> None:
    """Of 20 simulated runs at least 16 are stopped in time, all of them for the right reason."""
    in_time = 0
    for seed in range(20):
        checker = Checker(EFFECT, RATE, 64, 5e-4)
        for step, (block, drawn) in enumerate(simulated(1, 64, fault, seed), 1):
            accusation = checker.add(block[0], drawn[0])
            if accusation is not None:
                assert accusation.culprit == culprit
                assert accusation.step == step
                in_time += step <= within
                break
    assert in_time >= 16


def test_a_repeat_of_a_far_step_is_seen() -> None:
    steps = list(simulated(1, 40))
    checker = Checker(EFFECT, RATE, 64, 5e-4)
    for block, drawn in steps[:31]:
        assert checker.add(block[0], drawn[0]) is None
    noise = steps[3][0] - np.where(steps[3][1], EFFECT, 0.0)
    again = steps[31][1]
    accusation = checker.add((noise + np.where(again, EFFECT, 0.0))[0], again[0])
    assert accusation is not None
    assert accusation.culprit == "reuse"


def test_halves_of_a_block_that_are_one_noise_are_seen() -> None:
    checker = Checker(EFFECT, RATE, 64, 5e-4)
    accusation = None
    for block, drawn in simulated(1, 4):
        noise = block - np.where(drawn, EFFECT, 0.0)
        noise[:, SIZE // 2 :] = noise[:, : SIZE // 2]
        accusation = accusation or checker.add((noise + np.where(drawn, EFFECT, 0.0))[0], drawn[0])
    assert accusation is not None
    assert accusation.culprit == "reuse"


def test_what_is_not_a_number_is_an_accusation() -> None:
    checker = Checker(EFFECT, RATE, 4, 5e-4)
    block, drawn = next(iter(simulated(1, 1)))
    block[0, 7] = np.nan
    assert checker.add(block[0], drawn[0]) is not None


def test_the_interval_covers_the_planned_noise() -> None:
    """95 % intervals of 400 runs: covers at least Binomial's 1e-6 quantile."""
    tally = tallied(400, 8, seed=5)
    covered = sum(low <= 1.0 <= high for _, low, high in (noise_ratio(tally, run) for run in range(400)))
    assert covered >= binom.ppf(1e-6, 400, 0.95)


def test_shares_and_looks_add_up() -> None:
    assert sum(SHARES.values()) == pytest.approx(1.0)
    assert {*SHARES, "repeat"} == set(CULPRITS)
    for steps in (1, 2, 5, 8, 100):
        checker = Checker(EFFECT, RATE, steps, 5e-4)
        for block, drawn in simulated(1, steps, seed=steps):
            checker.add(block[0], drawn[0])
        checker.look()
        checker.look()
        assert checker.looks == number_of_looks(steps)
    assert checker.line().startswith("noise ")


def test_another_process_goes_on_where_one_stopped() -> None:
    """Sums, looks and exact repeats go over; noise is compared with the steps just before within a process only."""
    whole, first, second = (Checker(EFFECT, RATE, 64, 5e-4) for _ in range(3))
    steps = list(simulated(1, 33, seed=3))
    for block, drawn in steps[:32]:
        whole.add(block[0], drawn[0])
    for block, drawn in steps[:11]:
        first.add(block[0], drawn[0])
    second.take_up(first.kept())
    for block, drawn in steps[11:32]:
        second.add(block[0], drawn[0])
    assert second.looks == whole.looks == 6
    assert second.record()["noise_ratio"] == whole.record()["noise_ratio"]
    for test in set(CULPRITS) - {"reuse"}:
        assert np.allclose(p_values(second.tally, RATE)[test], p_values(whole.tally, RATE)[test]), test
    again = steps[4][0] - np.where(steps[4][1], EFFECT, 0.0)
    accusation = None
    for block in (again[0], *(block[0] for block, _ in simulated(1, 31, seed=4))):
        accusation = second.add(block, np.zeros(SIZE, dtype=bool))
    assert accusation is not None
    assert accusation.culprit in ("reuse", "sampling")
    assert p_values(second.tally, RATE)["repeat"][0] == 0.0
