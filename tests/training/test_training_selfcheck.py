"""The self-check in real runs: invisible to the model, deaf to the records, and it stops what is not as planned."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dptrain.cli import run
from dptrain.config_selfcheck import SelfCheckConfig
from dptrain.errors import ClaimRejected, ConfigError
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.protocol import ClippingRule
from dptrain.privacy.statement_schema import faults
from dptrain.run_folder import read_json
from dptrain.training import assemble, loop, selfcheck_recompute
from dptrain.training.loop import Trainer
from dptrain.training.selfcheck import DISAGREED

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ENGINES = ["bookkeeping", "vmap", "opacus_hooks", "opacus_ghost", "loop"]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runs: Any = _load("selfcheck_runs")


def make(enabled: bool = True, engine: str = "vmap", **more: Any) -> Trainer:
    """A tiny run of 8 steps, unless told otherwise."""
    return runs.tiny(enabled=enabled, engine=engine, **{"steps": 8, "physical": 16, **more})


class Told:
    """A test's noise: every coordinate's value follows from step and place alone, times a size."""

    name = "told"

    def __init__(self, size: float = 0.0) -> None:
        self.size = size

    def draw(self, step: int, count: int) -> Tensor:
        return torch.cat(list(self.pieces(step, count)))

    def pieces(self, step: int, count: int) -> Iterator[Tensor]:
        values = torch.arange(count, dtype=torch.float64).add(step * 1.7).mul(12.9898).sin().mul(self.size).round()
        return iter(values.split(100))

    def distance(self, total_draws: int) -> float:
        return 0.0


def accused(trainer: Trainer) -> tuple[str, int]:
    """Culprit and step at which a run is stopped."""
    taken: list[int] = []
    with pytest.raises(ClaimRejected) as stopped:
        trainer.run(lambda done, *_: taken.append(done))
    assert stopped.value.exit_code == 4
    assert trainer.selfcheck is not None and trainer.selfcheck.accusation is not None
    assert f"step {len(taken) + 1}:" in str(stopped.value), "the optimizer did not get the step in hand"
    return trainer.selfcheck.accusation.culprit, len(taken) + 1


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    engine=st.sampled_from(["vmap", "opacus_hooks"]),
    physical=st.sampled_from([3, 64]),
    batch=st.sampled_from([1.0, 10.0, 200.0]),
    key=st.binary(min_size=32, max_size=32),
)
def test_weights_are_the_same_bit_for_bit_with_and_without(
    engine: str, physical: int, batch: float, key: bytes
) -> None:
    """Under test sources of draws and noise. (The keystream's noise fills coordinates pairwise, so that there a longer
    vector gives each coordinate other noise of the same law.)"""
    weights = []
    for enabled in (True, False):
        trainer = make(enabled, engine, steps=4, physical=physical, batch=batch, recompute=2, key=key)
        trainer = replace(trainer, noise=Told(500_000.0))
        if trainer.selfcheck is not None:
            trainer.selfcheck.checker.alpha = 0.0  # the test's noise is no noise
        trainer.run(lambda *_: None)
        weights.append(torch.cat([p.detach().flatten() for p in trainer.parameters]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dummies_add_what_is_known_and_only_there(engine: str, dtype: str) -> None:
    """Without noise, the released block is C (or C/2) over the divisor for each drawn dummy, 0 for the others."""
    trainer = replace(make(engine=engine, batch=100, steps=3, dtype=dtype), noise=Told(0.0))
    check = trainer.selfcheck
    assert check is not None
    check.checker.alpha = 0.0
    clipping_norm = trainer.plan.mechanism.clipping_norm  # type: ignore[union-attr]
    seen: list[Tensor] = []

    def note(*_: object) -> None:
        block = check.block.grad
        assert block is not None
        expected = torch.where(check._drawn, check.dummies.contribution, 0.0) / 100
        assert torch.allclose(block.flatten().double(), expected, rtol=1e-4, atol=clipping_norm * 1e-6)
        assert not bool(check.block.any()), "no optimizer moves a sentinel"
        seen.append(block)

    trainer.run(note)
    assert len(seen) == 3
    assert check.block not in {*trainer.module.parameters()}
    assert set(check.dummies.contribution.tolist()) == {clipping_norm, clipping_norm / 2}


def test_records_are_drawn_as_without() -> None:
    key = bytes(range(32))
    watched, plain = make(True, key=key), make(False, key=key)
    assert watched.selfcheck is not None
    for step in range(6):
        assert torch.equal(watched.selfcheck.begin(step + 1, watched.draw(step)), plain.draw(step))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_clean_run_passes_and_says_so(engine: str) -> None:
    """Also with units of several rows. False alarm rate 1e-4 a run."""
    several = 1 if engine == "opacus_ghost" else 3
    trainer = make(engine=engine, steps=20, recompute=4, units=600, batch=20, rows_per_unit=several)
    assert trainer.run(lambda *_: None).status == "finished"
    assert trainer.selfcheck is not None
    record = trainer.selfcheck.record()
    assert (record["state"], record["steps"], record["looks"], record["recomputed_steps"]) == ("passed", 20, 6, 2)
    assert trainer.selfcheck.checker.line().endswith("clipping ok, sampling ok")


def test_low_noise_stops_a_run() -> None:
    culprit, step = accused(runs.low_noise(make(steps=64), 0.8))
    assert culprit == "noise"
    assert step <= 8


def test_reused_noise_stops_a_run() -> None:
    assert accused(runs.reused_seed(make(steps=64))) == ("reuse", 2)


def test_a_lost_world_size_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "DrawSum", runs.Halved)
    assert accused(make(steps=128))[0] == "averaging"


def test_a_sum_that_is_not_cleared_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DrawSum, "clear", lambda self: None)
    assert accused(make(steps=128))[0] in ("averaging", "noise", "reuse")  # its noise stays in it, too


def test_a_draw_that_comes_again_stops_a_run() -> None:
    trainer = make(steps=64)
    once = trainer.draw(0)
    culprit, step = accused(replace(trainer, draw=lambda _: once))
    assert culprit == "sampling"
    assert step <= 4


def without_clipping(factor: float, recompute: int) -> Trainer:
    with runs.wrong_norm(factor):
        return make(steps=64, noise="fast", recompute=recompute)


def test_no_clipping_stops_a_run() -> None:
    culprit, step = accused(without_clipping(1e9, recompute=0))
    assert culprit == "clipping"
    assert step <= 2


def test_a_norm_a_tenth_too_large_is_seen_on_the_first_recomputed_step() -> None:
    trainer = without_clipping(1.1, recompute=4)
    assert trainer.selfcheck is not None and trainer.selfcheck.recomputation is not None
    trainer.selfcheck.recomputation.rule = ClippingRule(trainer.plan.mechanism.clipping_norm, None)  # type: ignore[union-attr]
    assert accused(trainer) == ("clipping", 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_clipping_a_physical_batch_as_one_is_seen_on_the_first_recomputed_step(engine: str) -> None:
    trainer = make(engine=engine, recompute=4, batch=40)
    assert accused(runs.clipped_per_batch(trainer)) == ("clipping", 1)


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "opacus_hooks", "loop"])
def test_under_bfloat16_rough_units_are_let_be_and_merged_ones_are_seen(engine: str) -> None:
    """Rows of thousands, whose activations round to plus and minus one: another gradient than float64's, within C."""
    for seed in range(4):
        honest = make(seed=seed, engine=engine, dtype="bfloat16", scale=2000.0, recompute=4, steps=1, batch=40)
        assert honest.selfcheck is not None
        honest.selfcheck.checker.alpha = 0.0  # recomputation alone
        assert honest.run(lambda *_: None).status == "finished"
    merged = runs.clipped_per_batch(make(engine=engine, dtype="bfloat16", scale=1.0, recompute=4, batch=40))
    assert accused(merged) == ("clipping", 1)


def test_a_row_that_float64_cannot_take_changes_nothing_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement's count of recomputed steps is public: no record may move it, and a failure says one thing only."""
    plain, touched = make(recompute=4, batch=40), make(recompute=4, batch=40)
    exact = selfcheck_recompute.unit_gradients

    def refuses(module: Any, row_loss: Any, batch: Any, units: Tensor, *more: Any) -> Iterator[Tensor]:
        if bool(batch.inputs.any()):
            raise RuntimeError("a private row")
        yield from exact(module, row_loss, batch, units, *more)

    assert plain.run(lambda *_: None).status == "finished"
    monkeypatch.setattr(selfcheck_recompute, "unit_gradients", refuses)
    assert touched.run(lambda *_: None).status == "finished"
    counts = [t.selfcheck.record()["recomputed_steps"] for t in (plain, touched) if t.selfcheck is not None]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("fault", ["longer", "merged"])
def test_a_failed_recomputation_tells_one_thing_whatever_failed(fault: str) -> None:
    """Which check failed follows from private units: the message is the same for all."""
    trainer = without_clipping(1.1, recompute=4) if fault == "longer" else make(recompute=4, batch=40)
    assert trainer.selfcheck is not None and trainer.selfcheck.recomputation is not None
    if fault == "longer":
        trainer.selfcheck.recomputation.rule = ClippingRule(trainer.plan.mechanism.clipping_norm, None)  # type: ignore[union-attr]
    else:
        trainer = runs.clipped_per_batch(trainer)
    assert accused(trainer)[0] == "clipping"
    assert trainer.selfcheck is not None and trainer.selfcheck.accusation is not None
    assert trainer.selfcheck.accusation.says == DISAGREED


OVERRIDES = [
    "data=digits",
    "model=linear",
    "privacy.epochs=2",
    "privacy.expected_batch_size=64",
    "tracking=none",
    "run.purpose=final",
    "ledger.uri=sqlite:///ledger.db",
    "ledger.account=ward",
    "ledger.epsilon_limit=20",
]


def test_a_fault_ends_a_run_with_code_4_and_nothing_to_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    build = assemble.build_noise
    monkeypatch.setattr(assemble, "build_noise", lambda *given: _half(build(*given)))
    assert run(["train", *OVERRIDES, "run.dir=one"]) == 4
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("dptrain: error: selfcheck=noise: step 1: ")
    result = read_json(tmp_path / "one" / "result.json")
    assert (result["status"], result["selfcheck"], result["steps"]) == ("failed", "noise", 1)
    assert not (tmp_path / "one" / "checkpoint").exists()
    assert run(["train", "resume=one"]) == 2
    assert "was stopped by its self-check (noise)" in capsys.readouterr().err


def _half(noise: Any) -> Any:
    within = noise.pieces
    noise.pieces = lambda step, count: (piece * 0.5 for piece in within(step, count))
    return noise


def test_the_statement_says_what_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", *OVERRIDES, "run.dir=on"]) == 0
    assert run(["train", *OVERRIDES, "run.dir=off", "selfcheck=off"]) == 0
    assert run(["train", *OVERRIDES[:2], "tracking=none", "run.dir=plain", "privacy=off", "privacy.epochs=1"]) == 0
    blocks = [read_json(tmp_path / name / "statement.json") for name in ("on", "off", "plain")]
    assert blocks[0]["selfcheck"]["state"] == "passed"
    assert blocks[0]["selfcheck"]["steps"] == blocks[0]["sampling"]["steps_done"]
    assert blocks[1]["selfcheck"] == {"state": "off"}
    assert blocks[2]["selfcheck"] is None
    for block in blocks:
        assert faults(block) == []
    assert faults({key: value for key, value in blocks[0].items() if key != "selfcheck"}) == []  # one of before
    assert run(["verify", "path=on"]) == run(["verify", "path=off"]) == 0


def test_settings_have_ranges() -> None:
    for wrong in ({"sentinels": 17}, {"sentinels": 8}, {"alpha": 0.0}, {"alpha": 0.5}, {"recompute_units": -1}):
        with pytest.raises(ConfigError, match="selfcheck"):
            SelfCheckConfig(**wrong)  # type: ignore[arg-type]
