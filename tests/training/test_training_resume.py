"""Runs that go on: bit-identical at a step boundary, never a step more than planned, drift refused before spending."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dptrain.checkpoint import resume_state
from dptrain.checkpoint.bundle import load_bundle
from dptrain.checkpoint.resume_state import read_newest
from dptrain.checkpoint.sealing_key import key_ring
from dptrain.cli import recipe, run
from dptrain.compose import compose
from dptrain.config_data import DataConfig
from dptrain.data.sampler import PoissonSampler
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.keystream import Keystream
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.plan import Plan
from dptrain.privacy.verify import verified
from dptrain.registry import sources
from dptrain.run_folder import read_json
from dptrain.training import drift, loop, release, resume, stages
from dptrain.training.budget import Budget
from dptrain.training.loop import Trainer

STEPS = 9
KEY = bytes(range(32))
SHIFT = 0
"""Added to the made-up inputs: another value makes other rows."""


@sources.register("resumed_people")
def people(config: DataConfig, seed: int) -> Source:
    def load() -> Splits:
        x = torch.randn(120, 4, generator=torch.Generator().manual_seed(1)) + SHIFT
        y = (x[:, 0] > SHIFT).long()
        return Splits(train=Rows(x[:80], y[:80]), public=Rows(x[80:], y[80:]))

    return Source(SourceInfo(name="people", task="binary", input_shape=(4,), num_classes=2, public_size=80), load)


COMMON = [
    "data=own",
    "data.name=resumed_people",
    "model=linear",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=3",
    "privacy.epochs=null",
    f"privacy.steps={STEPS}",
    "privacy.expected_batch_size=20",
    "optimizer=adam",
    "optimizer.schedule=cosine",
    "tracking=none",
    "run.dir=r",
    "ledger.lease_steps=2",
    "checkpoint.every=1e-9",
]
COUNTED = ["train", *COMMON, "run.purpose=final", "ledger.epsilon_limit=20"]
FREE = ["train", *COMMON, "data.all_public=true"]
KINDS = pytest.mark.parametrize("command", [COUNTED, FREE], ids=["ledger", "journal"])


class Killed(BaseException):
    """The process dies here: nothing after it runs, as far as a test can have that."""


_PRICED: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own; and prices for show, the same for every run here, are computed once."""
    monkeypatch.chdir(tmp_path)
    for name in ("epsilon_at", "odometer"):
        honest = getattr(Plan, name)

        def once(*arguments: Any, honest: Any = honest) -> Any:
            key = f"{honest.__name__} {arguments!r}"
            if key not in _PRICED:
                _PRICED[key] = honest(*arguments)
            return list(_PRICED[key])

        monkeypatch.setattr(Plan, name, once)


def go(command: list[str]) -> int:
    return run(command)


def die_at(monkeypatch: pytest.MonkeyPatch, step: int, after_noise: bool = False) -> None:
    """The process dies in that step (from 1), before or after its noise; its ledger entry stays open."""
    honest = Trainer._release

    def release_step(self: Trainer, number: int, total: Any) -> None:
        if number + 1 == step and not after_noise:
            raise Killed
        honest(self, number, total)
        if number + 1 == step:
            raise Killed

    monkeypatch.setattr(loop.Trainer, "_release", release_step)
    monkeypatch.setattr(Budget, "settle", lambda *_: None)


def killed(monkeypatch: pytest.MonkeyPatch, command: list[str], step: int, after_noise: bool = False) -> None:
    with monkeypatch.context() as patch:
        die_at(patch, step, after_noise)
        with pytest.raises(Killed):
            go(command)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM arrives while that step is computed."""
    honest = Trainer._clipped_sum

    def clipped_sum(self: Trainer, number: int, total: Any) -> Any:
        if number + 1 == step:
            os.kill(os.getpid(), 15)
        return honest(self, number, total)

    monkeypatch.setattr(loop.Trainer, "_clipped_sum", clipped_sum)


def stopped(monkeypatch: pytest.MonkeyPatch, command: list[str], step: int) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert go(command) == 0


def witness(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(keystream, step) of every noise vector that is drawn from here on."""
    seen: list[tuple[int, int]] = []
    honest = Trainer._release

    def release_step(self: Trainer, number: int, total: Any) -> None:
        seen.append((id(self.noise), number))
        honest(self, number, total)

    monkeypatch.setattr(loop.Trainer, "_release", release_step)
    return seen


def entries() -> list[Any]:
    ledger = open_ledger(None)
    found = list(ledger.state.entries.values())
    ledger.close()
    return found


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


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


# --- refusals, each before anything is spent


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], list[str]]] = {
    "privacy.noise_multiplier=9": lambda patch: ["privacy.noise_multiplier=9"],
    "optimizer.lr": lambda patch: ["optimizer.lr=77"],
    "execution.dtype": lambda patch: ["execution.dtype=float64"],
    "code.sources": lambda patch: patch.setattr(drift, "_sources", lambda: "other") or [],
    "data": lambda patch: patch.setitem(globals(), "SHIFT", 1) or [],
    "ledger": lambda patch: patch.setenv("DPTRAIN_HOME", str(_other_home())) or [],
}


def _other_home() -> Path:
    """Another user's room, with the same keys and another ledger."""
    import shutil

    home = Path(os.environ["DPTRAIN_HOME"])
    other = home.with_name(home.name + "-other")
    other.mkdir()
    for name in ("signing.key", "sealing.key"):
        shutil.copy(home / name, other / name)
    return other


def test_drift_is_refused_with_both_values(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch, COUNTED, 4)
    before, seen = (entries()[0].attempt, entries()[0].committed_steps), witness(monkeypatch)
    for what, change in CHANGES.items():
        with monkeypatch.context() as patch:
            extra = change(patch)
            assert go(["train", "resume=r", *extra]) in (2, 3), what
        said = last_error(capsys)
        assert said.startswith(f"dptrain: error: {what}") and " was " in said
        assert seen == [] and (entries()[0].attempt, entries()[0].committed_steps) == before, what
    assert go(["train", "resume=r"]) == 0


def test_an_edited_config_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch, COUNTED, 4)
    text = Path("r", "config.yaml").read_text()
    Path("r", "config.yaml").write_text(text.replace("clipping_norm: 1.0", "clipping_norm: 2.0"))
    assert go(["train", "resume=r"]) == 2
    assert "privacy.clipping_norm=2.0: was 1.0" in last_error(capsys)
    for broken in ("[1, 2", "- a\n- b\n", "\x00", "privacy: 3\n"):
        Path("r", "config.yaml").write_text(broken)
        assert go(["train", "resume=r"]) == 2
        assert last_error(capsys).startswith("dptrain: error: ")
    Path("r", "config.yaml").unlink()
    assert go(["train", "resume=r"]) == 0


REFUSED = {
    "--multirun": "does not go with resume",
    "seed": "does not go with resume",
    "checkpoint.every=0": "uncounted",
    "checkpoint.key=env:NOT_SET_ANYWHERE": "is not set",
    "execution.device=tpu": "is not one of",
    "a=[1": "command line",
    "data=adult": "data=adult: was ",
    "run.purpose=trial": "run.purpose=trial: was final",
}


def test_what_does_not_go_with_resume(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch, COUNTED, 4)
    for extra, said in REFUSED.items():
        assert go(["train", "resume=r", extra]) == 2
        assert said in last_error(capsys)


def test_folders_that_hold_nothing_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(["train", "resume=nowhere"]) == 2
    assert "no such folder" in last_error(capsys)
    killed(monkeypatch, [*COUNTED, "checkpoint.every=0"], 4)
    assert go(["train", "resume=r"]) == 2
    assert "keeps no resume state" in last_error(capsys)


def test_a_count_behind_the_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, FREE, 6)
    Path("r", "resume", "journal").write_text("steps 2\n")
    assert go(["train", "resume=r"]) == 2
    assert "steps=2: is what ledger or journal count" in last_error(capsys)
    Path("r", "resume", "journal").unlink()
    assert go(["train", "resume=r"]) == 2
    assert "step journal" in last_error(capsys)


def test_a_run_that_is_running_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, COUNTED, 4)
    begun = resume.begin("r")
    assert go(["train", "resume=r"]) == 2
    assert f"is run by another process (pid {os.getpid()} " in last_error(capsys)
    begun.lock.release()
    assert go(["train", "resume=r"]) == 0


def test_a_full_disk_costs_no_state_and_no_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """States cannot be written: told once, and the run goes on. The journal cannot: no noise leaves."""
    honest = resume_state.write_sealed

    def full(path: Path, *rest: Any) -> None:
        if list(path.parent.parent.glob("0*")):
            raise OSError(28, "No space left on device")
        honest(path, *rest)

    monkeypatch.setattr(resume_state, "write_sealed", full)
    seen = witness(monkeypatch)

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    honest_append = resume.StepJournal._append
    monkeypatch.setattr(
        resume.StepJournal,
        "_append",
        lambda self, line: no_room() if line == "steps 5\n" or line == "steps 6\n" else honest_append(self, line),
    )
    assert go(FREE) == 2
    err = capsys.readouterr().err
    assert err.count("no resume state could be written (No space left on device)") == 1
    assert "No space left" in err.splitlines()[-1]
    assert [number for _, number in seen] == [0, 1, 2, 3]


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


def test_runs_with_private_looks_keep_no_state(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, [*COUNTED, "evaluation.metrics=dp"], 4)
    assert not Path("r", "resume").exists()
    assert go(["train", "resume=r"]) == 2
    assert "evaluation.metrics=dp" in last_error(capsys)
