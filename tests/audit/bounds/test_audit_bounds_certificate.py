"""The certificate: families at their true epsilon, bounds held against them, the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, kstest, norm

from dptrain.audit.bounds import certificate
from dptrain.audit.bounds.bound import Bound
from dptrain.audit.bounds.certificate import BOUNDS, Certified, broken, simulate, table
from dptrain.audit.bounds.curve import gaussian_mu
from dptrain.audit.bounds.families import BLOCK, FAMILIES, build_family
from dptrain.cli import run
from dptrain.config_certify import BOUNDS as NAMED_BOUNDS
from dptrain.config_certify import FAMILIES as NAMED_FAMILIES
from dptrain.errors import ConfigError


def test_settings_name_what_there_is() -> None:
    assert set(NAMED_BOUNDS) == set(BOUNDS)
    assert set(NAMED_FAMILIES) == set(FAMILIES)
    with pytest.raises(ConfigError, match="families"):
        build_family("cauchy", 1.0, 1e-5, 10)


def test_a_small_certificate_of_every_bound() -> None:
    """40 simulations of 300 canaries: a bound that misses in exactly 5 % is above 9 of 40 with probability 1e-4."""
    rows = [
        row
        for name in ("unrelated", "gaussian", "laplace", "correlated", "bursts")
        for row in simulate(build_family(name, 3.0, 1e-5, 300), list(BOUNDS), 300, 40, 1e-5, 0.95, 3)
    ]
    assert len(rows) == 5 * len(BOUNDS)
    for row in rows:
        if row["assumption_holds"]:
            assert row["missed"] <= binom.isf(1e-4, 40, 0.05), row
        assert row["low"] <= row["miscoverage"] <= row["high"]
    found = {(row["family"], row["bound"]): row for row in rows}
    assert found["laplace", "gaussian"]["miscoverage"] == 1.0  # and it says so
    assert not found["laplace", "gaussian"]["assumption_holds"]
    assert found["gaussian", "optimal"]["tightness"] > found["gaussian", "one_run"]["tightness"] > 0.1
    assert found["unrelated", "one_run"]["tightness"] is None
    assert "does not hold" in table(rows)


def test_a_family_has_its_own_stream() -> None:
    family = build_family("gaussian", 2.0, 1e-5, 50)
    alone = simulate(family, ["one_run"], 50, 10, 1e-5, 0.95, 1)
    among = simulate(family, ["one_run", "gaussian"], 50, 10, 1e-5, 0.95, 1)
    assert alone[0] == among[0]


def test_scores_that_share_noise_are_worth_the_epsilon_given() -> None:
    """Who sees a block can take the common noise away: the generalised least squares shift is mu. KS at 1e-4."""
    mu = gaussian_mu(4.0, 1e-5)
    family = build_family("correlated", 4.0, 1e-5, BLOCK)
    rng = np.random.default_rng(0)
    covariance = 0.7 * np.eye(BLOCK) + 0.3
    inverse = np.linalg.inv(covariance)
    readings = []
    for _ in range(3000):
        scores, coins = family.draw(rng, BLOCK)
        step = family.draw.args[0]  # type: ignore[attr-defined]  # the shift of one canary
        residual = scores / mu - step * coins
        residual[0] += step * coins[0]  # all other coins known, as privacy grants
        readings.append((inverse[0] @ residual / np.sqrt(inverse[0, 0]), coins[0]))
    values, first = np.array([r[0] for r in readings]), np.array([r[1] for r in readings])
    assert kstest(values[~first], norm(0, 1).cdf).pvalue > 1e-4
    assert kstest(values[first], norm(mu, 1).cdf).pvalue > 1e-4


def test_the_command_prints_and_keeps_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["simulations=20", "canaries=200", "families=[unrelated,laplace]", "bounds=[one_run,gaussian]"]
    kept = tmp_path / "certificate.json"
    assert run(["certify", *small, f"into={kept}"]) == 0
    assert "| laplace" in capsys.readouterr().out
    stored = json.loads(kept.read_text())
    assert stored["canaries"] == 200 and len(stored["rows"]) == 4
    assert run(["certify", *small, "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == stored["rows"]


def test_a_bound_that_claims_too_much_ends_with_exit_code_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def liar(scores, included, delta: float, confidence: float, family) -> Bound:
        return dataclasses.replace(BOUNDS["gaussian"].compute(scores, included, delta, confidence, family), epsilon=5.0)

    monkeypatch.setitem(certificate.BOUNDS, "one_run", Certified(liar, lambda _: True))
    assert run(["certify", "simulations=10", "canaries=100", "families=[gaussian]", "bounds=[one_run]"]) == 4
    shown = capsys.readouterr()
    assert "BROKEN" in shown.out
    assert "one_run on gaussian (100.0%)" in shown.err and len(shown.err.strip().splitlines()) == 1


@pytest.mark.parametrize(("missed", "above", "ends"), [(119, False, False), (120, True, False), (160, True, True)])
def test_a_row_above_the_bar_by_chance_does_not_end_with_exit_code_4(missed: int, above: bool, ends: bool) -> None:
    """Of 2,000 misses at exactly 5 %, 120 (6 %) are above the bar, which 1 row in 40 is; 160 are no chance."""

    class Found:
        def __init__(self, misses: int) -> None:
            self.left = misses

        def __call__(self, scores, included, delta: float, confidence: float, family) -> Bound:
            self.left -= 1
            return Bound("one_run", family.epsilon + (1.0 if self.left >= 0 else -1.0), delta, confidence, "none")

    family = build_family("gaussian", 2.0, 1e-5, 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(certificate.BOUNDS, "one_run", Certified(Found(missed), lambda _: True))
        patched.setitem(certificate.BOUNDS, "gaussian", Certified(Found(2000), lambda _: False))
        rows = simulate(family, ["one_run", "gaussian"], 2, 2000, 1e-5, 0.95, 0)
    assert rows[0]["missed"] == missed and rows[0]["above_bar"] is above
    assert not rows[1]["above_bar"]  # it does not claim to hold here
    others = [row | {"family": f"other {i}", "above_bar": False, "chance": 1.0} for i, row in enumerate(rows[:1] * 17)]
    assert broken(rows + others) == ([rows[0]] if ends else [])
    assert ("BROKEN" in table(rows + others)) is ends
    assert ("above the bar" in table(rows + others)) is (above and not ends)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("simulations=1", "simulations"),
        ("canaries=0", "canaries"),
        ("epsilon=0", "epsilon"),
        ("epsilon=.nan", "epsilon"),
        ("delta=0.5", "delta"),
        ("confidence=1", "confidence"),
        ("bounds=[one_rum]", "did you mean 'one_run'"),
        ("bounds=[]", "bounds"),
        ("families=[laplace,laplace]", "families"),
        ("format=xml", "format"),
        ("into=/no/such/folder/x.json", "into"),
        ("seed=-1", "seed"),
        ("simulation=3", "simulation"),
    ],
)
def test_bad_settings_are_refused_in_one_line(setting: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["certify", setting]) == 2
    shown = capsys.readouterr().err.strip()
    assert named in shown and len(shown.splitlines()) == 1
