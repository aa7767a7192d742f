"""A whole run on made-up people, killed in the middle and taken up again: what it leaves behind, beside what it did.

Everything of ``dptrain train`` but the command line: account, reservation, folder, records, resume states, bundle and
statement, in a folder of its own that is gone afterwards. Rows are made up; no account of the user's is opened.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.checkpoint.bundle import load_bundle
from dptrain.config import ExecutionConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig, TrainConfig
from dptrain.config_budget import LedgerConfig
from dptrain.config_checkpoint import CheckpointConfig
from dptrain.config_data import DataConfig
from dptrain.config_tracking import TrackingConfig
from dptrain.config_tuning import EvaluationConfig
from dptrain.conformance.observe import Told, tell_noise
from dptrain.conformance.post_processing import Apart
from dptrain.conformance.stand import Stand
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import sources
from dptrain.run_folder import read_json
from dptrain.tracking.metrics_log import read_metrics
from dptrain.training import stages
from dptrain.training.loop import Trainer
from dptrain.training.resume import Begun

STEPS, KILLED = 7, 4
"""Planned steps, and the one in which the process dies, its noise drawn."""
PEOPLE, MOST_ROWS, BATCH = 60, 2, 15
NAME = "made_up_for_conform"
SECONDS = 120


@sources.register(NAME)
def people(config: DataConfig, seed: int, turned: bool = False) -> Source:
    """Sixty made-up people with one to three rows each, and twenty rows declared public.

    ``turned``: public rows have the labels that the rule of the private ones would not give them.
    """

    def load() -> Splits:
        generator = torch.Generator().manual_seed(5)
        unit = torch.repeat_interleave(torch.arange(PEOPLE), torch.arange(PEOPLE) % 3 + 1)
        x = torch.randn(len(unit), 4, generator=generator)
        public = torch.randn(20, 4, generator=generator)
        return Splits(
            train=Rows(x, (x[:, 0] > 0).long(), unit), public=Rows(public, ((public[:, 0] > 0) ^ turned).long())
        )

    info = SourceInfo(name=NAME, task="binary", input_shape=(4,), num_classes=2, public_size=PEOPLE, unit="user")
    return Source(info, load)


def settings(stand: Stand, folder: Path) -> TrainConfig:
    """Of the run: the noise, clipping, engine and adjacency asked about; all else is small, and in the folder."""
    asked = stand.config.privacy
    most = 1 if stand.config.clipping.engine == "opacus_ghost" else MOST_ROWS
    privacy = replace(
        asked,
        **{"epsilon": None, "noise_multiplier": 3.0, "steps": STEPS, "epochs": None, "delta": 1e-5},
        **{"unit": "user", "max_rows_per_unit": most, "expected_batch_size": BATCH, "clipping_norm": 0.7},
        adjacency="zero_out",
    )
    return TrainConfig(
        data=DataConfig(name=NAME),
        model=ModelConfig(name="linear"),
        privacy=privacy,
        optimizer=OptimizerConfig(name="adam", lr=0.05, schedule="cosine", ema=0.8),
        clipping=stand.config.clipping,
        execution=ExecutionConfig(physical_batch_size=12, device="cpu"),
        evaluation=EvaluationConfig(every=3),
        task=TaskConfig(metrics=["accuracy"]),
        tracking=TrackingConfig(name="none"),
        run=RunConfig(dir=str(folder / "run"), purpose="final"),
        ledger=LedgerConfig(uri=f"sqlite:///{folder / 'ledger.db'}", epsilon_limit=20.0, lease_steps=2),
        checkpoint=CheckpointConfig(every=1e-9),
        selfcheck=replace(stand.config.selfcheck, enabled=False),
    )


@dataclass
class Witness:
    """What an attempt did, kept by somebody who stands beside it.

    Attributes:
        first: steps that counted as executed when it began.
        noise: (D,) vectors that were drawn, in order; each may have left the process.
        intended: steps that were declared on disk, in order.
        wrong: what was found on the way, in words.
        states: step -> what the releases up to it make of the model (``Apart.state``).
    """

    first: int = 0
    noise: list[Tensor] = field(default_factory=list)
    intended: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    states: dict[int, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Traces:
    """What two attempts left, and what was seen of them.

    Attributes:
        before, after: of the process that died, and of the one that went on.
        kept: names of the tensors of the state that it went on from.
        taken_up: steps that are in that state; looks behind it died with the process.
        charged: steps that the account charges in the end.
        statement: of the bundle.
        records: of metrics.jsonl.
        files: all that the run's folder holds, relative to it.
        weights: of the bundle, by name.
        wanted: what the releases make of them.
    """

    before: Witness
    after: Witness
    kept: list[str]
    taken_up: int
    charged: int
    statement: dict[str, Any]
    records: list[dict[str, Any]]
    files: set[str]
    weights: list[Tensor]
    wanted: list[Tensor]


@contextmanager
def own_room() -> Iterator[Path]:
    """A folder for all that a run writes, keys and account too; nothing is printed inside."""
    held = {name: os.environ.get(name) for name in ("DPTRAIN_HOME", "DPTRAIN_SIGNING_KEY")}
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        os.environ["DPTRAIN_HOME"] = f"{folder}/home"
        os.environ.pop("DPTRAIN_SIGNING_KEY", None)
        try:
            yield Path(folder)
        finally:
            for name, value in held.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def killed_and_resumed(
    stand: Stand, change: Callable[[TrainConfig], TrainConfig] = lambda config: config
) -> Traces | str:
    """Runs both; or says what went wrong on the way.

    Args:
        stand: engine, clipping, noise.
        change: makes other settings of ``settings``.
    """
    with own_room() as folder:
        config = change(settings(stand, folder))
        stages.prepare(config)  # what both attempts ask of the accountant is computed once
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=_first_attempt, args=(config, folder))
        child.start()
        child.join(SECONDS)
        if child.is_alive():
            child.kill()
        file = folder / "before.pt"
        if not file.is_file():
            told = folder / "error.txt"
            return f"the first attempt fell over: {told.read_text()}" if told.is_file() else "it never drew its noise"
        before = Witness(**torch.load(file, weights_only=True))
        begun = stages.begin(str(folder / "run"))
        try:
            return _attempt(begun.config, Witness(), lambda number: None, begun, before)
        finally:
            begun.lock.release()


def _first_attempt(config: TrainConfig, folder: Path) -> None:
    """In a process of its own, which ends like one whose plug is pulled."""
    seen = Witness()

    def die(number: int) -> None:
        if number == KILLED:
            torch.save(vars(seen), folder / "part.pt")
            (folder / "part.pt").rename(folder / "before.pt")
            os._exit(0)

    try:
        torch.set_num_threads(1)
        _attempt(config, seen, die)
    except BaseException as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}"[:160])
    os._exit(1)


def _attempt(
    config: TrainConfig,
    seen: Witness,
    at_noise: Callable[[int], None],
    begun: Begun | None = None,
    before: Witness | None = None,
) -> Traces:
    """The story of ``recipes/train.py``, watched."""
    setup = stages.prepare(config, check_folder=begun is None)
    ledger = stages.open_account(setup, begun)
    loaded = stages.read_rows(setup, ledger, begun)
    rows, public = loaded.splits.train, loaded.splits.public
    if int(torch.bincount(rows.unit_id).max()) > config.privacy.max_rows_per_unit:
        seen.wrong.append("a person trains with more rows than the cap allows")
    with stages.reserve(setup, loaded, ledger, begun) as budget:
        folder = stages.open_folder(setup, loaded, begun)
        trainer, recorder, tracker = stages.assemble(setup, loaded, folder, budget)
        with stages.resumable(setup, loaded, trainer, recorder, ledger, budget, begun) as keeper:
            seen.first = 0 if keeper is None else keeper.executed
            apart = Apart(config.optimizer, trainer.parameters, STEPS)
            if begun is not None and before is not None:
                _take_up(apart, trainer, seen, before.states.get(int(begun.facts["steps"])))
            seen.states[seen.first] = apart.state()
            recorder.listeners.append(lambda record: _judge(record, public, apart, seen))
            watched = _watched(trainer, rows, seen, apart, at_noise)
            outcome = stages.train(setup, watched, recorder, tracker, folder, keeper)
            if begun is not None:
                begun.set_bundle_aside()
            statement = stages.release(setup, watched, outcome, folder, budget)
            stages.conclude(setup, outcome, recorder, tracker, folder, statement)
            if keeper is not None and outcome.status == "finished":
                keeper.forget()
    assert ledger is not None and budget.entry is not None
    return Traces(
        before=before or Witness(),
        after=seen,
        kept=[] if begun is None else sorted(begun.state.tensors),
        taken_up=0 if begun is None else int(begun.facts["steps"]),
        charged=ledger.state.entries[budget.entry].charged_steps,
        statement=read_json(folder.checkpoint / "statement.json"),
        records=read_metrics(folder.metrics),
        files={str(file.relative_to(folder.path)) for file in folder.path.rglob("*") if file.is_file()},
        weights=list(load_bundle(folder.checkpoint).model.state_dict().values()),
        wanted=apart.mean,
    )


def _take_up(apart: Apart, trainer: Trainer, seen: Witness, state: dict[str, Any] | None) -> None:
    """The attempt goes on from what the releases up to some step of the dead process made of the model."""
    if state is None:
        seen.wrong.append("the state that it goes on from is of a step that was never taken")
        return
    apart.go_on(state, seen.first)
    if (found := apart.differs(trainer)) is not None:
        seen.wrong.append(f"taken up again: {found}")


def _watched(trainer: Trainer, rows: Rows, seen: Witness, apart: Apart, at_noise: Callable[[int], None]) -> Trainer:
    """The trainer, with everything that it draws, declares and releases told and compared."""
    now: dict[str, Tensor] = {}
    plan, intend, unit = trainer.plan, trainer.intend, trainer.grid or 1.0
    assert plan.mechanism is not None and trainer.noise is not None
    clip = plan.mechanism.clipping_norm

    def on_draw(step: int, units: Tensor) -> None:
        now["exact"] = logistic_sum(trainer.module, rows, units, clip)

    def on_intent(step: int) -> None:
        intend(step)
        seen.intended.append(step)

    def on_noise(step: int, vector: Tensor) -> None:
        now["noise"] = vector * unit
        seen.noise.append(vector)
        if len(seen.intended) < len(seen.noise):
            seen.wrong.append(f"noise of step {step + 1} is drawn before it is declared")
        at_noise(len(seen.noise))

    def before(*_: object) -> None:
        gradients = [p.grad.detach().clone() for p in trainer.parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients]).double() * plan.expected_batch_size
        off = float((flat - now["noise"] - now["exact"]).norm()) / clip
        if not off <= 0.02:
            seen.wrong.append(f"step {apart.done + 1}: released is {off:.2g} C from (sum + noise) / divisor")
        apart.take(gradients)
        seen.states[apart.done] = apart.state()

    tell_noise(trainer.noise, on_noise)
    trainer.optimizer.register_step_pre_hook(before)
    return replace(trainer, draw=Told(trainer.draw, on_draw), intend=on_intent)


def logistic_sum(module: nn.Module, rows: Rows, draw: Tensor, clip: float) -> Tensor:
    """(D,) float64 clipped sum of the draw's people, of logistic regression, by its formula."""
    weight, bias = (p.detach().double() for p in module.parameters())
    x = rows.inputs.double()
    slope = torch.sigmoid(x @ weight[0] + bias) - rows.targets.double()
    of_rows = torch.cat([slope[:, None] * x, slope[:, None]], 1)
    counts = torch.bincount(rows.unit_id).double()
    of_units = torch.zeros(len(counts), of_rows.shape[1], dtype=torch.float64)
    of_units.index_add_(0, rows.unit_id, of_rows / counts[rows.unit_id, None])
    return (of_units * (clip / of_units.norm(dim=1, keepdim=True).clamp(min=clip)))[torch.unique(draw)].sum(0)


def look(metric: str, parameters: Sequence[Tensor], public: Rows) -> tuple[float, float]:
    """A metric of logistic regression on public rows, by its formula; what it may be off by as float32 rounds.

    Args:
        metric: ``log_loss``, or ``accuracy``, of which rows at the border may have another answer in float32.
        parameters: weight and bias.
        public: rows.
    """
    weight, bias = parameters
    scores = public.inputs.double() @ weight[0].double() + bias.double()
    if metric == "log_loss":
        return float(F.binary_cross_entropy_with_logits(scores, public.targets.double())), 0.0
    right, undecided = (scores > 0).long() == public.targets, scores.abs() < 1e-5
    return float(right.double().mean()), float(undecided.double().mean())


def misjudged(record: Mapping[str, Any], name: str, expected: tuple[float, float]) -> str | None:
    """What is wrong with a record's metric, beside its ``look``."""
    told, (own, near) = record.get(name), expected
    if isinstance(told, float) and abs(told - own) <= 1e-4 + near:
        return None
    return f"step {record.get('step')}: {name} is {told} where public rows and releases give {own:.4f}"


def same(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Whether a bundle's weights are these, to rounding."""
    pairs = zip(wanted, found, strict=True)
    return all(torch.allclose(own.double(), other.double(), rtol=1e-4, atol=1e-6) for own, other in pairs)


def _judge(record: dict[str, Any], public: Rows, apart: Apart, seen: Witness) -> None:
    """A record's metrics are those of the average of released parameters, on rows declared public."""
    for name, metric in (("public_loss", "log_loss"), ("test_accuracy", "accuracy")):
        if wrong := misjudged(record, name, look(metric, apart.mean, public)):
            seen.wrong.append(wrong)
