"""Runs that go on: bit-identical at a step boundary, never a step more than planned, a count that only grows."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from resumed_run import (
    COUNTED,
    FREE,
    KEY,
    KINDS,
    STEPS,
    Killed,
    entries,
    go,
    killed,
    last_error,
    room,
    stopped,
    witness,
)

from dptrain.checkpoint import resume_state
from dptrain.checkpoint.bundle import load_bundle
from dptrain.checkpoint.resume_state import read_newest
from dptrain.checkpoint.sealing_key import key_ring
from dptrain.cli import recipe, run
from dptrain.compose import compose
from dptrain.data.sampler import PoissonSampler
from dptrain.keystream import Keystream
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.verify import verified
from dptrain.run_folder import read_json
from dptrain.training import loop, release, stages
from dptrain.training.budget import Budget
from dptrain.training.loop import Trainer


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room(tmp_path, monkeypatch)


# --- the same as if nothing had happened, where draws and noise are the test's own


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "sgd with an average"])
def test_resumed_at_a_step_boundary_it_is_bit_identical(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws and noise from a test key, which only a test has: an OS key would give others, as it must."""
    honest = stages.prepare

    def with_test_key(*arguments: Any, **more: Any) -> Any:
        from dataclasses import replace

        return replace(honest(*arguments, **more), keystream=Keystream(test_key=KEY))

    monkeypatch.setattr(stages, "prepare", with_test_key)
    optimizer, _, average = optimizer.partition(" with ")
    extra = [f"optimizer={optimizer}", *(["optimizer.options={momentum: 0.9}"] if optimizer == "sgd" else [])]
    extra += ["optimizer.ema=0.9"] if average else []
    ended: list[Trainer] = []
    keep = stages.train

    def remember(setup: Any, trainer: Trainer, *rest: Any) -> Any:
        ended.append(trainer)
        return keep(setup, trainer, *rest)

    monkeypatch.setattr(stages, "train", remember)
    assert go([*COUNTED, *extra, "run.dir=whole", "ledger.lease_steps=1"]) == 0
    stopped(monkeypatch, [*COUNTED, *extra, "ledger.lease_steps=1"], 4)
    assert go(["train", "resume=r"]) == 0
    whole, _, again = ended
    for one, other in zip(whole.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other)
    tensors: list[dict[str, torch.Tensor]] = [{}, {}]
    plain = [
        resume_state.encoded(t.optimizer.state_dict(), "o", kept)
        for t, kept in zip((whole, again), tensors, strict=True)
    ]
    assert plain[0] == plain[1]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert whole.schedule.get_last_lr() == again.schedule.get_last_lr()
    if average:
        assert whole.average is not None and again.average is not None
        kept, held = whole.average.kept(), again.average.kept()
        assert all(torch.equal(kept[name], held[name]) for name in kept) and int(kept["average.steps"]) == STEPS
        released, described = load_bundle("r"), read_json(Path("r", "checkpoint", "model.json"))
        for weight, mean in zip(released.model.parameters(), list(kept.values())[:-1], strict=True):
            assert torch.equal(weight, mean)
        assert described["ema"] == 0.9 == released.spec.ema
        stopped_bundle = load_bundle(Path("r", "checkpoint-stopped-4"))
        assert not torch.equal(next(stopped_bundle.model.parameters()), next(released.model.parameters()))
    else:
        assert "ema" not in read_json(Path("r", "checkpoint", "model.json"))


def test_draws_and_noise_of_a_resumed_run_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []
    opened = Keystream.open

    def note(self: Keystream, purpose: Any, step: int) -> Any:
        keys.append(bytes(self._cipher.key) + bytes([purpose]) + step.to_bytes(6, "big"))  # type: ignore[attr-defined]
        return opened(self, purpose, step)

    monkeypatch.setattr(Keystream, "open", note)
    killed(monkeypatch, COUNTED, 4)
    first = {key[:32] for key in keys}
    assert go(["train", "resume=r"]) == 0
    assert len(set(keys)) == len(keys)
    assert not first & {key[:32] for key in keys[len([k for k in keys if k[:32] in first]) :]}
    kept = b"".join(file.read_bytes() for file in Path("r").rglob("*") if file.is_file())
    assert not any(key[:32] in kept or key[:32].hex().encode() in kept for key in keys)


def test_another_physical_batch_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a test key the draws and the noise are those of the whole run: the clipped sums alone could differ, by float
    rounding of the model's own passes, before they are quantised. So do the weights then, by no more."""
    honest = stages.prepare

    def with_test_key(*arguments: Any, **more: Any) -> Any:
        from dataclasses import replace

        return replace(honest(*arguments, **more), keystream=Keystream(test_key=KEY))

    monkeypatch.setattr(stages, "prepare", with_test_key)
    draws: list[tuple[int, bytes]] = []
    drawn = PoissonSampler.draw

    def note(self: PoissonSampler, step: int) -> torch.Tensor:
        found = drawn(self, step)
        draws.append((step, found.numpy().tobytes()))
        return found

    monkeypatch.setattr(PoissonSampler, "draw", note)
    assert go([*COUNTED, "run.dir=whole", "ledger.lease_steps=1"]) == 0
    planned = dict(draws)
    draws.clear()
    stopped(monkeypatch, [*COUNTED, "ledger.lease_steps=1"], 4)
    assert go(["train", "resume=r", "execution.physical_batch_size=3", "execution.device=cpu"]) == 0
    assert dict(draws) == planned and len(draws) == STEPS
    one, other = (load_bundle(Path(name)).model for name in ("whole", "r"))
    for weight, again in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, again, rtol=0, atol=1e-4)
    same = ("mechanism", "sampling", "guarantee", "noise")
    found = [read_json(Path(name, "statement.json")) for name in ("whole", "r")]
    assert all(found[0].get(name) == found[1].get(name) for name in same)
    parts = read_json(Path("r", "internal", "parts.json"))
    assert [part["from_step"] for part in parts] == [0, 4]
    assert [part["physical_batch_size"] for part in parts] == [256, 3] and parts[1]["device"] == "cpu"


# --- counting


@KINDS
@pytest.mark.parametrize("after_noise", [False, True])
def test_a_killed_run_takes_what_was_not_counted_and_no_step_more(
    command: list[str], after_noise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 4 with leases of two: steps 1 to 4 count, whether or not the fourth was released."""
    seen = witness(monkeypatch)
    killed(monkeypatch, command, 4, after_noise)
    assert go(["train", "resume=r"]) == 0
    assert [number for _, number in seen] == [*range(4 if after_noise else 3), *range(4, STEPS)]
    result, statement = read_json(Path("r", "result.json")), read_json(Path("r", "statement.json"))
    assert (result["status"], result["steps"]) == ("finished", STEPS)
    assert statement["sampling"]["steps_done"] == STEPS
    assert statement["guarantee"]["epsilon"] == read_json(Path("r", "plan.json"))["epsilon"]
    assert not Path("r", "resume").exists()
    if command is COUNTED:
        (entry,) = entries()
        assert (entry.status, entry.steps_done, entry.attempt) == ("settled", STEPS, 2)


def test_the_schedule_goes_on_at_the_counted_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[int, float] = {}
    honest = Trainer._release

    def note(self: Trainer, number: int, total: Any) -> None:
        rates.setdefault(number, self.optimizer.param_groups[0]["lr"])
        honest(self, number, total)

    monkeypatch.setattr(loop.Trainer, "_release", note)
    assert go([*COUNTED, "run.dir=whole"]) == 0
    planned, rates = rates.copy(), rates
    rates.clear()
    killed(monkeypatch, COUNTED, 4)
    monkeypatch.setattr(loop.Trainer, "_release", note)
    assert go(["train", "resume=r"]) == 0
    assert rates == {number: rate for number, rate in planned.items() if number in rates} and len(rates) >= 5


@KINDS
def test_stopped_by_sigterm_it_claims_what_it_took_and_goes_on_to_its_plan(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = witness(monkeypatch)
    stopped(monkeypatch, command, 3)
    early = read_json(Path("r", "statement.json"))
    assert (early["sampling"]["steps_done"], early["guarantee"]["claim"]) == (3, "stopped_early")
    assert read_newest(Path("r", "resume"), key_ring(None))[0].facts["steps"] == 3
    assert go(["train", "resume=r", "execution.physical_batch_size=7"]) == 0
    assert [number for _, number in seen] == list(range(STEPS))
    assert read_json(Path("r", "statement.json"))["sampling"]["steps_done"] == STEPS
    assert read_json(Path("r", "checkpoint-stopped-3", "statement.json")) == early
    if command is COUNTED:
        (entry,) = entries()
        assert (entry.status, entry.steps_done) == ("settled", STEPS)
        for bundle in ("checkpoint", "checkpoint-stopped-3"):
            verified(Path("r", bundle))
        assert run(["budget", "verify"]) == 0
    assert "resume" not in {path.name for path in Path("r").iterdir()}


def test_a_chain_of_kills_and_stops_never_exceeds_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = witness(monkeypatch)
    killed(monkeypatch, COUNTED, 2)
    killed(monkeypatch, ["train", "resume=r"], 3, after_noise=True)
    stopped(monkeypatch, ["train", "resume=r"], 6)
    killed(monkeypatch, ["train", "resume=r"], 7, after_noise=True)
    assert go(["train", "resume=r"]) == 0
    numbers = [number for _, number in seen]
    assert numbers == sorted(set(numbers)) and numbers[-1] <= STEPS - 1
    (entry,) = entries()
    assert entry.steps_done == STEPS >= len(numbers)


@pytest.mark.parametrize("place", ["settle", "save_bundle", "conclude"])
def test_killed_behind_the_last_step_it_only_releases(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner: Any = {"settle": Budget, "save_bundle": release, "conclude": stages}[place]

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, die)
        with pytest.raises(Killed):
            go(COUNTED)
    seen = witness(monkeypatch)
    assert go(["train", "resume=r"]) == 0
    assert seen == []
    result = read_json(Path("r", "result.json"))
    assert (result["steps"], result["status"]) == (STEPS, "finished") and "test_accuracy" in result["metrics"]
    verified(Path("r", "checkpoint"))
    assert go(["train", "resume=r"]) == 2


def test_what_a_stop_gave_back_and_others_spent_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(monkeypatch, COUNTED, 3)
    ledger = open_ledger(None)
    ledger.set_limit("people", ledger.totals("people", pld=False).epsilon * 1.001, "all is spent")
    ledger.close()
    seen = witness(monkeypatch)
    assert go(["train", "resume=r"]) == 3
    assert "would stand at epsilon" in last_error(capsys)
    assert seen == [] and entries()[0].status == "settled"


def test_a_frozen_account_and_an_abandoned_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, COUNTED, 4)
    run_id = entries()[0].run_id
    assert run(["budget", "close", f"run={run_id}", "reason=thought dead"]) == 0
    assert run(["budget", "freeze", "dataset=people", "reason=a complaint"]) == 0
    assert go(["train", "resume=r"]) == 3
    assert "is frozen" in last_error(capsys)
    assert run(["budget", "unfreeze", "dataset=people", "reason=settled"]) == 0
    assert go(["train", "resume=r"]) == 0
    assert entries()[0].steps_done == STEPS
    assert run(["budget", "verify"]) == 0


def test_an_older_state_costs_steps_and_not_privacy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removes the newest state: the weights fall back, the count does not."""
    import shutil

    killed(monkeypatch, COUNTED, 6)
    states = sorted(entry for entry in Path("r", "resume").iterdir() if entry.is_dir())
    shutil.rmtree(states[-1])
    seen = witness(monkeypatch)
    assert go(["train", "resume=r"]) == 0
    assert [number for _, number in seen] == list(range(6, STEPS))


def test_python_face_goes_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    killed(monkeypatch, COUNTED, 4)
    result = recipe("train").run(compose("train", ["resume=r"]))
    assert (result["status"], result["steps"]) == ("finished", STEPS)


def test_the_best_weights_seen_before_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    killed(monkeypatch, [*COUNTED, "release.choose=best", "evaluation.every=1"], 5)
    records = [json.loads(line) for line in Path("r", "metrics.jsonl").read_text().splitlines()]
    kept = read_newest(Path("r", "resume"), key_ring(None))[0]
    assert any(name.startswith("best.") for name in kept.tensors)
    assert go(["train", "resume=r"]) == 0
    records += [json.loads(line) for line in Path("r", "metrics.jsonl").read_text().splitlines()][len(records) :]
    best = max(record["test_accuracy"] for record in records if "test_accuracy" in record)
    assert read_json(Path("r", "result.json"))["metrics"]["test_accuracy"] == best


def test_steps_go_on_while_a_state_is_being_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs: every step is taken while the state of the first is still on its way; none piles up behind."""
    taken, seen_by_the_disk = threading.Event(), []
    honest = resume_state.write_state

    def hangs(*arguments: Any) -> Path:
        if len(seen_by_the_disk) == 1:  # the one at the start was waited for: nothing was released before it
            assert taken.wait(300), "the steps waited for the disk"
        seen_by_the_disk.append(arguments[1].facts["steps"])
        return honest(*arguments)

    monkeypatch.setattr(resume_state, "write_state", hangs)
    release = loop.Trainer._release

    def last(self: Trainer, number: int, total: Any) -> None:
        release(self, number, total)
        if number + 1 == STEPS:
            taken.set()

    monkeypatch.setattr(loop.Trainer, "_release", last)
    assert go(FREE) == 0
    assert seen_by_the_disk[:2] == [0, 1] and len(seen_by_the_disk) <= 4
