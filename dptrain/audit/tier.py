"""The reference tier of an audit: train references while the time lasts, attack with all there are.

Internal tier throughout: references are trained on members, kept under internal/, and never released.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dptrain.audit.attack import attack_result
from dptrain.audit.exposed import exposed_groups
from dptrain.audit.groups import Grouping
from dptrain.audit.reference_attacks import (
    ATTACKS,
    FEWEST_PAIRS,
    References,
    between_models,
    choose_offset,
    scores,
)
from dptrain.audit.reference_store import ReferenceName, ReferenceStore
from dptrain.audit.signals import Signals, check_task, signals, stack
from dptrain.checkpoint.bundle import Bundle
from dptrain.config import TrainConfig
from dptrain.config_audit import AuditSettings, seconds_of
from dptrain.data.source import Rows
from dptrain.errors import ConfigError
from dptrain.models.build import ModelSpec
from dptrain.privacy.plan import Plan
from dptrain.run_folder import CACHE, RunFolder

EXPOSED_BY = "rmia"
"""The attack that ranks groups; fixed before any score is seen."""
LARGEST_STACK = 16
ENOUGH = 64
"""References after which no more are trained: every one is attacked by all others, a time that grows with the square of
their number, and that no budget for training foresees."""


class Speed(Protocol):
    """How quickly references train; see ``training.reference.Speed``."""

    @property
    def stack(self) -> int:
        """Models trained in one go."""
        ...

    @property
    def way(self) -> str:
        """Of a stack."""
        ...

    @property
    def seconds(self) -> float:
        """Of one reference, by that way."""
        ...

    @property
    def way_alone(self) -> str:
        """Of a pair by itself."""
        ...

    @property
    def alone(self) -> float:
        """Of one reference, by that one."""
        ...

    @property
    def why(self) -> str:
        """The way, in words."""
        ...


class Trainer(Protocol):
    """What trains references; a recipe hands it over, since ``training`` and ``audit`` are siblings."""

    digest: str

    @property
    def plan(self) -> Plan:
        """By which references are trained, but for their sampling rate."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """The model that they are."""
        ...

    def train(self, included: Sequence[Tensor], seeds: Sequence[int], way: str) -> list[dict[str, Tensor]]:
        """States of references, one a mask, by a way that ``speed`` gave."""
        ...

    def speed(self, included: Sequence[Tensor], seeds: Sequence[int]) -> Speed:
        """Ten steps of one, by every way there is."""
        ...


MakeTrainer = Callable[[TrainConfig, Rows], Trainer]


@dataclass(frozen=True)
class Pool:
    """Members and non-members of the audited run together, and those of them that are scored."""

    rows: Rows
    """All of both, unit ids of non-members behind those of members."""
    members: int
    """Units 0 to members - 1 trained the audited model."""
    scored: NDArray[np.int64]  # (U,) ascending units

    @property
    def is_member(self) -> NDArray[np.bool_]:
        """(U,) whether the audited model trained on it."""
        return self.scored < self.members

    def scored_members(self) -> Rows:
        """The rows of the scored members, units numbered from 0 in the order of ``scored``."""
        chosen = torch.zeros(self.rows.num_units, dtype=torch.bool)
        chosen[torch.from_numpy(self.scored[self.is_member])] = True
        return self.rows.take(torch.nonzero(chosen[self.rows.unit_id]).flatten())


@dataclass
class Tier:
    """References in hand, and what each says of the scored units."""

    store: ReferenceStore
    pool: Pool
    bundle: Bundle
    batch_size: int
    names: list[ReferenceName] = field(default_factory=list)
    found: list[Signals] = field(default_factory=list)
    diverged: int = 0
    """How many have a weight that is not finite: they tell nothing apart."""

    def add(self, name: ReferenceName, state: dict[str, Tensor] | None = None) -> None:
        """Scores the units under one reference; its state is read where it is not given.

        Raises:
            ConfigError: its file is damaged, or holds the weights of another model.
        """
        model = copy.deepcopy(self.bundle.model)
        state = self.store.load(name) if state is None else state
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            path, problem = self.store.folder / name.file, "holds the weights of another model"
            raise ConfigError("run", path, problem, "remove it; it is trained again") from error
        self.diverged += not all(bool(torch.isfinite(value).all()) for value in state.values())
        like = Bundle(self.bundle.path, model.eval(), self.bundle.spec, self.bundle.statement)
        self.names.append(name)
        self.found.append(_signals(like, self.pool, self.batch_size))

    def references(self) -> References:
        """All of them."""
        numbers = {key: i for i, key in enumerate(dict.fromkeys((n.seed, n.pair) for n in self.names))}
        pair = np.array([numbers[(name.seed, name.pair)] for name in self.names])
        included = np.stack([self.store.included(name).numpy()[self.pool.scored] for name in self.names])
        return References(stack(self.found), included, pair)


def make_pool(members: Rows, non_members: Rows, most: int, seed: int) -> Pool:
    """The pool of references: all rows of both sides, of which at most ``most`` units a side are scored.

    Raises:
        ConfigError: there are fewer than two units on one side.
    """
    if members.num_units < 2 or non_members.num_units < 2:
        problem = f"needs members and non-members, and there are {members.num_units} and {non_members.num_units} units"
        raise ConfigError("audit.budget", "", problem, "audit a run with a public split, or leave audit.budget=null")
    rows = Rows(
        torch.cat([members.inputs, non_members.inputs]),
        torch.cat([members.targets, non_members.targets]),
        torch.cat([members.unit_id, non_members.unit_id + members.num_units]),
    )
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 3])))
    inside = generator.permutation(members.num_units)[:most]
    outside = members.num_units + generator.permutation(non_members.num_units)[:most]
    return Pool(rows, members.num_units, np.sort(np.concatenate([inside, outside])))


def reference_tier(
    folder: RunFolder,
    bundle: Bundle,
    pool: Pool,
    trainer: Trainer,
    settings: AuditSettings,
    run_seed: int,
    batch_size: int,
    beside: int = 2,
    groupings: Sequence[Grouping] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains references as long as the budget lasts and attacks the audited model and every reference.

    Args:
        folder: of the audited run; references are kept under its internal room.
        bundle: the audited model.
        pool: of ``make_pool``.
        trainer: of references of this run on this pool.
        settings: ``budget`` must be set.
        run_seed: seed of pairs.
        batch_size: rows at once in scoring.
        beside: attacks of the seconds tier, with which these share the error of the claim's bounds.
        groupings: ways to sort ``pool.scored_members()``.
        tell: called with a line now and then.

    Returns:
        "attacks" as those of ``run_attacks``, and "references": counts, seeds, cost, between-model bars, groups.

    Raises:
        ConfigError: the budget is too small for one pair and none is there; references of another run; a regression.
    """
    check_task(bundle.spec.task)
    start, processor = time.monotonic(), time.process_time()
    store = _store(folder, trainer, pool)
    tier = Tier(store, pool, bundle, batch_size)
    for name in store.names():
        tier.add(name)
    before = len(tier.names)
    why, seconds_each = _train(tier, trainer, settings, run_seed, start, tell)
    references = tier.references()
    offset = choose_offset(references)
    made = scores(_signals(bundle, pool, batch_size), references, offset)
    inside, share = pool.is_member, beside + len(ATTACKS)
    attacks = [
        attack_result(name, made[name][inside], made[name][~inside], settings.fpr, settings.confidence, share)
        for name in ATTACKS
    ]
    groups = exposed_groups(
        made[EXPOSED_BY][inside], groupings, made[EXPOSED_BY][~inside], settings.fpr[0], settings.confidence
    )
    return {
        "attacks": attacks,
        "references": {
            "count": len(tier.names),
            "new": len(tier.names) - before,
            "diverged": tier.diverged,
            "pool": {"units": pool.rows.num_units, "members": pool.members, "trained_on": pool.rows.num_units // 2},
            "scored": {"members": int(inside.sum()), "non_members": int((~inside).sum())},
            "seeds": [{"seed": n.seed, "pair": n.pair, "side": "ab"[n.side]} for n in tier.names],
            "rmia_offset": offset,
            "between_models": between_models(references, offset, settings.fpr, settings.confidence),
            "exposed": {"attack": EXPOSED_BY, **groups},
            "way": why,
            "seconds_a_reference": seconds_each,
            "seconds": round(time.monotonic() - start, 2),
            "cpu_seconds": round(time.process_time() - processor, 2),
        },
    }


def _store(folder: RunFolder, trainer: Trainer, pool: Pool) -> ReferenceStore:
    facts = {"run_id": folder.run_id, "recipe": trainer.digest, "members": pool.members}
    return ReferenceStore(folder.internal / "references", facts, pool.rows.num_units)


def _train(
    tier: Tier, trainer: Trainer, settings: AuditSettings, seed: int, start: float, tell: Callable[[str], None]
) -> tuple[str, float | None]:
    """Trains pairs until time is up or the interval narrow enough; says how, and what a reference took."""
    budget = seconds_of(settings.budget)
    assert budget is not None
    if tier.names and _narrow(tier, settings):
        return "none trained: the interval was narrow enough", None
    if len(tier.names) >= ENOUGH:
        return f"none trained: {ENOUGH} references are enough", None
    names = tier.store.missing(seed, LARGEST_STACK // 2)
    speed = trainer.speed([tier.store.included(name) for name in names], [name.training_seed for name in names])
    tell(f"references: about {speed.seconds:.3g} s each, {speed.why}")
    needed = time.monotonic() - start + 2 * speed.alone
    if not tier.names and needed > budget:
        raise ConfigError(
            "audit.budget",
            settings.budget,
            f"is too short for one pair of references, which takes about {needed:.0f} s",
            f"set audit.budget={int(1.2 * needed) + 1}s or more",
        )
    while True:
        left = budget - (time.monotonic() - start)
        count = _fitting(left, speed) if tier.names else max(2, _fitting(left, speed))
        if count == 0:
            return speed.why, round(speed.seconds, 3)
        chosen = tier.store.missing(seed, count // 2)[:count]
        masks = [tier.store.included(name) for name in chosen]
        began = time.monotonic()
        way = speed.way if count > 2 else speed.way_alone
        states = trainer.train(masks, [name.training_seed for name in chosen], way)
        for name, state in zip(chosen, states, strict=True):
            tier.store.save(name, state)
        for name, state in zip(chosen, states, strict=True):
            tier.add(name, state)
        tell(f"references: {len(tier.names)} ready, the last {count} in {time.monotonic() - began:.1f} s")
        if _narrow(tier, settings):
            return f"{speed.why}; stopped early, the interval is narrow enough", round(speed.seconds, 3)
        if len(tier.names) >= ENOUGH:
            return f"{speed.why}; stopped early, {ENOUGH} references are enough", round(speed.seconds, 3)


def _fitting(left: float, speed: Speed) -> int:
    """How many references to train next, an even number: what is left of the time, at most one stack."""
    if speed.stack == 1:
        return 2 if left > 2 * speed.alone else 0
    count = min(speed.stack, 2 * int(left / speed.seconds / 2))
    return count if count > 2 else (2 if left > 2 * speed.alone else 0)


def _narrow(tier: Tier, settings: AuditSettings) -> bool:
    references = tier.references()
    if len(np.unique(references.pair)) < FEWEST_PAIRS:
        return False
    rate, offset = settings.fpr[:1], choose_offset(references)
    bars = between_models(references, offset, rate, settings.confidence, [EXPOSED_BY])
    return bool(bars) and bars[EXPOSED_BY][0]["high"] - bars[EXPOSED_BY][0]["low"] <= settings.narrow


def _signals(bundle: Bundle, pool: Pool, batch_size: int) -> Signals:
    chosen = torch.zeros(pool.rows.num_units, dtype=torch.bool)
    chosen[torch.from_numpy(pool.scored)] = True
    index = torch.nonzero(chosen[pool.rows.unit_id]).flatten()
    outputs = bundle.outputs(pool.rows.inputs[index], batch_size, CACHE).numpy()
    units = pool.rows.unit_id[index].numpy()
    return signals(outputs, pool.rows.targets[index].numpy(), units, bundle.spec.task)
