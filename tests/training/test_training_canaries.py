"""Canaries in training runs: what they leave as it is, what they are sealed in, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from people import register_people

from dptrain.checkpoint.canary_record import NAME, read_canaries
from dptrain.checkpoint.sealing_key import key_ring
from dptrain.cli import recipe, run
from dptrain.compose import compose
from dptrain.config_data import DataConfig
from dptrain.data.canaries import Canaries, crafted_rows, natural_units, toss_canaries
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.errors import ConfigError
from dptrain.registry import sources
from dptrain.run_folder import read_json
from dptrain.training import loop, stages
from dptrain.training.budget import Budget
from dptrain.training.loop import Trainer

register_people("canary_people", 80, 40)


@sources.register("canary_values")
def values(config: DataConfig, seed: int) -> Source:
    def load() -> Splits:
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        return Splits(train=Rows(x[:30], x[:30, 0]), public=Rows(x[30:], x[30:, 0]))

    return Source(SourceInfo(name="v", task="regression", input_shape=(3,), num_classes=1, public_size=30), load)


RUN = [
    "data=own",
    "data.name=canary_people",
    "data.all_public=true",
    "model=linear",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=3",
    "privacy.epochs=null",
    "privacy.steps=5",
    "privacy.expected_batch_size=20",
    "tracking=none",
    "selfcheck.enabled=false",
    "run.dir=r",
]
CANARIES = "audit.canaries=30"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def setup_of(*more: str) -> Any:
    return stages.prepare(compose("train", [*RUN, *more]))


def sealed(folder: str = "r") -> Canaries:
    internal = Path(folder, "internal")
    return read_canaries(internal, key_ring(None), str(read_json(Path(folder, "result.json"))["run_id"]))


@pytest.mark.parametrize("kind", ["crafted", "natural"])
def test_canaries_change_neither_plan_nor_digest(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "new_salt", lambda: bytes(32))
    plain, planted = setup_of(), setup_of(CANARIES, f"audit.canary_kind={kind}")
    assert plain.plan == planted.plan  # q, divisor, event, public size, steps, epsilon
    rows, with_them = stages.read_rows(plain), stages.read_rows(planted)
    assert rows.manifest == with_them.manifest
    assert rows.canaries is None and with_them.canaries is not None
    there = int(with_them.canaries.included.sum())
    train = with_them.splits.train
    if kind == "crafted":
        assert len(train) == 80 + there
        assert torch.equal(train.inputs[:80], rows.splits.train.inputs)
    else:
        out = 30 - there
        assert len(train) == 80 - out == len(train.unit_id.unique())
        for row, unit in zip(train.inputs, train.unit_id, strict=True):  # slots keep their units
            assert torch.equal(row, rows.splits.train.inputs[unit])


def test_included_canaries_are_drawn_and_clipped_like_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at rate 1, with one more unit in the draw for each, and none of a norm above the clipping norm."""
    setup = setup_of(CANARIES, "privacy.expected_batch_size=80", "privacy.steps=1")
    loaded = stages.read_rows(setup)
    assert loaded.canaries is not None
    trainer, _, _ = stages.assemble(setup, loaded, setup.folder.create(), Budget())
    draw = trainer.draw(0)
    assert len(draw) == 80 + int(loaded.canaries.included.sum())
    total = torch.zeros(setup.num_parameters, dtype=torch.float64)
    for unit in range(80, len(draw)):
        (batch,) = trainer.batches(torch.tensor([unit]))
        trainer.engine.add_clipped_sum(batch, total.zero_())
        grid = trainer.grid or 1.0
        assert 0 < float(total.norm()) * grid <= setup.plan.mechanism.sensitivity


def test_coins_come_from_the_operating_system_and_not_from_the_seed() -> None:
    loaded = [stages.read_rows(setup_of("audit.canaries=80", "seed=1", f"run.dir=r{i}")) for i in range(2)]
    first, second = (one.canaries for one in loaded)
    assert first is not None and second is not None
    assert first.key != second.key
    assert not np.array_equal(first.included, second.included)  # chance 2^-80


def test_coins_are_fair() -> None:
    """20,000 coins: outside 5 standard deviations once in two million times."""
    assert abs(int(toss_canaries("crafted", 20_000).included.sum()) - 10_000) < 5 * np.sqrt(5000)


def test_statement_and_bundle_tell_how_many_and_nothing_else() -> None:
    recipe("train").run(compose("train", [*RUN, CANARIES]))
    statement = read_json(Path("r/statement.json"))
    assert statement["audit"] == {"canaries": {"count": 30, "kind": "crafted"}}
    record = Path("r/internal", NAME)
    assert record.stat().st_mode & 0o777 == 0o600
    canaries = sealed()
    assert len(canaries) == 30 and canaries.kind == "crafted"
    secret = canaries.key.hex().encode()
    coins = np.packbits(canaries.included).tobytes().hex().encode()
    for file in Path("r").rglob("*"):
        if file.is_file():
            assert secret not in file.read_bytes() and coins not in file.read_bytes(), file
    assert not list(Path("r/checkpoint").rglob(NAME))


def test_a_record_that_was_touched_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    recipe("train").run(compose("train", [*RUN, CANARIES]))
    record = Path("r/internal", NAME)
    whole = record.read_bytes()
    for changed in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-5], b""):
        record.write_bytes(changed)
        capsys.readouterr()
        assert run(["audit", "run=r"]) == 2
        said = capsys.readouterr().err.strip()
        assert said.count("\n") == 0 and "canaries.sealed" in said
    record.unlink()
    assert run(["audit", "run=r"]) == 2  # the statement says that there were some


def test_another_runs_record_does_not_open() -> None:
    for folder in ("r", "s"):
        recipe("train").run(compose("train", [*RUN, CANARIES, f"run.dir={folder}"]))
    Path("r/internal", NAME).write_bytes(Path("s/internal", NAME).read_bytes())
    with pytest.raises(ConfigError, match="sealed as something else"):
        sealed()


def test_a_resumed_run_keeps_its_canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    honest = Trainer._release

    def dies(self: Trainer, number: int, *rest: Any) -> None:
        honest(self, number, *rest)
        if number == 2:
            raise Killed

    command = ["train", *RUN, CANARIES, "checkpoint.every=1e-9"]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_release", dies)
        patch.setattr(Budget, "settle", lambda *_: None)
        with pytest.raises(Killed):
            run(command)
    before = Path("r/internal", NAME).read_bytes()
    seen: list[Canaries | None] = []
    read = stages.read_rows

    def noted(*given: Any) -> stages.Loaded:
        loaded = read(*given)
        seen.append(loaded.canaries)
        return loaded

    monkeypatch.setattr(stages, "read_rows", noted)
    assert run(["train", "resume=r"]) == 0
    assert Path("r/internal", NAME).read_bytes() == before
    kept = sealed()
    assert seen[0] is not None and seen[0].key == kept.key
    assert np.array_equal(seen[0].included, kept.included)


def test_without_privacy_canaries_are_a_baseline() -> None:
    recipe("train").run(
        compose("train", [*RUN[:5], "privacy=off", "privacy.epochs=null", "privacy.steps=5", *RUN[8:], CANARIES])
    )
    statement = read_json(Path("r/statement.json"))
    assert not statement["private"] and statement["audit"]["canaries"]["count"] == 30
    found = recipe("audit").run(compose("audit", ["run=r"]))["claim_check"]
    assert found["rejected"] is None and found["test"] is None and "No epsilon is claimed" in found["sentence"]


def test_the_plan_counts_them() -> None:
    from dptrain.training.estimate import estimate_cost, plan_text

    setup = setup_of("audit.canaries=40")
    cost = estimate_cost(setup)
    assert cost["canaries"]["expected_rows"] == pytest.approx(0.25 * 20)
    assert "40 made-up units" in plan_text(setup, cost)
    assert estimate_cost(setup_of())["canaries"] is None


def test_natural_canaries_come_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    recipe("train").run(compose("train", [*RUN, CANARIES, "audit.canary_kind=natural"]))
    assert "leaves about half of the canaries' records out" in capsys.readouterr().err
    found = recipe("audit").run(compose("audit", ["run=r"]))
    out = 30 - int(sealed().included.sum())
    assert found["members"] == 80 - out
    assert found["claim_check"]["canaries"]["kind"] == "natural"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["audit.canaries=-1"], "audit.canaries"),
        (["audit.canaries=81"], "more than the 80 units"),
        (["audit.canaries=5", "audit.canary_kind=wild"], "crafted, natural"),
        (["audit.canaries=5", "data.name=canary_values"], "needs classes"),
    ],
)
def test_canaries_that_cannot_be_are_refused_in_one_line(
    settings: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *RUN, *settings]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and "\n" not in said
    assert not Path("r").exists()


def test_rows_follow_from_the_key_alone() -> None:
    first = Canaries("crafted", bytes(32), np.zeros(6, dtype=bool))
    again = Canaries("crafted", bytes(32), np.ones(6, dtype=bool))
    other = Canaries("crafted", b"\1" * 32, np.zeros(6, dtype=bool))
    rows = [crafted_rows(one, (2, 4, 4), 3) for one in (first, again, other)]
    assert torch.equal(rows[0].inputs, rows[1].inputs) and torch.equal(rows[0].targets, rows[1].targets)
    assert not torch.equal(rows[0].inputs, rows[2].inputs)
    assert set(rows[0].inputs.unique().tolist()) == {-1.0, 1.0}
    units = natural_units(Canaries("natural", bytes(32), np.zeros(6, dtype=bool)), 50)
    assert len(units.unique()) == 6 and int(units.max()) < 50


def test_no_key_is_shown_or_copied() -> None:
    canaries = toss_canaries("crafted", 10)
    assert canaries.key.hex() not in repr(canaries) and str(canaries.key) not in repr(canaries)
