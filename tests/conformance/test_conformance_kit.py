"""``dptrain conform``: clean settings pass, a seeded mistake is exit code 4, private rows are never asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dptrain.cli import run
from dptrain.conformance import draws, places
from dptrain.conformance.laws import _dispersion, _freshness, _overlap
from dptrain.gradients.bookkeeping import engine

SMALL = [
    "model.options.hidden=[16]",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=1",
    "privacy.epochs=null",
    "privacy.steps=4",
    "conform.units=12",
    "conform.steps=9",
    "conform.noise_samples=4000",
    "conform.draws=400",
    "conform.selfcheck_steps=4",
    "conform.ranks=false",
]
LOCKED = """
from dptrain.data.source import Source, SourceInfo
from dptrain.registry import sources


@sources.register("locked_for_conform")
def locked(config, seed):
    def load():
        raise AssertionError("a private row was asked for")

    info = SourceInfo(name="locked", task="binary", input_shape=(6,), num_classes=2, public_size=500)
    return Source(info, load)
"""


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["clipping.engine=vmap"], {"rough gradients", "two ranks"}),
        (
            ["clipping.engine=auto", "privacy.noise=fast"],
            {"rough gradients", "grid", "released grid", "noise, lattice", "noise, rounding", "two ranks"},
        ),
        (["clipping.engine=auto", "execution.dtype=bfloat16"], {"grid", "two ranks"}),
        (["clipping.engine=loop", "execution.dtype=bfloat16"], {"two ranks"}),
    ],
)
def test_shipped_engines_conform(
    words: list[str],
    absent: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "SAMPLES", 1 << 16)
    monkeypatch.setattr(draws, "DRAWS", 10)
    name = f"locked_for_{'_'.join(words)}".replace(".", "_").replace("=", "_")  # a name of a registry is taken for good
    Path("mine.py").write_text(LOCKED.replace("locked_for_conform", name))
    own = ["imports=[mine]", "data=own", f"data.name={name}", "model=mlp"]
    assert run(["conform", *own, *SMALL, *words, "format=json"]) == 0
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert {name for name, one in found.items() if one["passed"] is None} == absent
    assert {"norms", "replay, own draws", "noise, deviation", "sampling", "self-check"} <= set(found)
    assert [path.name for path in tmp_path.iterdir() if path.name != "mine.py" and "cache" not in path.name] == []


def test_a_mistake_is_a_rejected_claim_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = engine.clip_factor
    monkeypatch.setattr(engine, "clip_factor", lambda *given: 1.1 * original(*given))
    assert run(["conform", *SMALL]) == 4
    said = capsys.readouterr()
    assert said.err.startswith("dptrain: error: conform=dptrain: failed: ") and said.err.count("\n") == 1
    assert "FAIL  contributions" in said.out and "pass  noise, deviation" in said.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["privacy=off"], "privacy=off"),
        (["conform.units=3"], "conform.units=3"),
        (["conform.subject=tf"], "conform.subject=tf"),
    ],
)
def test_settings_are_refused_in_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["conform", *words]) == 2
    assert says in capsys.readouterr().err


def test_opacus_is_found_to_merge_draws(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("opacus")
    assert run(["conform", *SMALL, "conform.subject=opacus", "format=json"]) == 4
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["replay"]["passed"] and found["noise, deviation"]["passed"]
    assert found["draws apart"]["passed"] is False and "2 draws under one noise vector" in found["draws apart"]["says"]


def test_scores_are_standard_normal_under_their_hypothesis() -> None:
    """Mean and variance of 2,000 scores each: five deviations either way, false alarms below 1e-5."""
    generator = np.random.default_rng(0)
    scores: dict[str, list[float]] = {"sizes": [], "overlap": []}
    for _ in range(2000):
        included = (generator.random((60, 23)) < 0.25).astype(float)
        scores["sizes"].append(_dispersion(included.sum(1), 23, 0.25))
        scores["overlap"].append(_overlap(included, 0.25, 1))
    for values in scores.values():
        assert abs(np.mean(values)) < 5 / 2000**0.5
        assert 0.7 < np.var(values) < 1.3


def test_noise_that_comes_back_is_found_wherever_it_does() -> None:
    torch.manual_seed(0)
    noise: Tensor = torch.randn(6, 700, dtype=torch.float64)
    assert _freshness(noise.numpy()).passed
    again = noise.clone()
    again[5, 300:] = noise[1, 100:500]
    assert _freshness(again.numpy()).passed is False
