"""Canaries in a training run: what can be refused before a row is read, how they join the rows, what is said of them.

Guarantee: canaries change neither the digest of the rows, nor the sampling rate, divisor, public size or number of
steps of the plan. A crafted canary is one unit more, made of no record: it is drawn with the plan's rate and clipped
like every unit, and what the other units add does not depend on it, so that what bounds a release's word on one unit
bounds it with canaries beside that unit, too. A natural canary that is left out is a unit whose contribution is
replaced by nothing: data that the plan's promise already speaks about.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from dptrain.checkpoint.canary_record import read_canaries, write_canaries
from dptrain.checkpoint.sealing_key import key_ring, load_key
from dptrain.config import TrainConfig
from dptrain.config_canaries import CanaryConfig
from dptrain.data.canaries import Canaries, crafted_of, toss_canaries, with_included, without_left_out
from dptrain.data.source import Rows, SourceInfo
from dptrain.errors import ConfigError
from dptrain.models.reading import takes_ids
from dptrain.privacy.plan import Plan
from dptrain.run_folder import RunFolder


def check_canaries(config: TrainConfig, info: SourceInfo, plan: Plan, module: nn.Module) -> None:
    """Refuses canaries that this run cannot have; reads no row.

    Raises:
        ConfigError: more than there are units, a search, or rows that nothing can be crafted for.
    """
    wanted = config.audit
    if not wanted.canaries:
        return
    if wanted.canaries > plan.public_size:
        problem = f"is more than the {plan.public_size:,} units that train by what is declared"
        raise ConfigError("audit.canaries", wanted.canaries, problem, "lower it: a tenth of them is plenty")
    if config.tuning.strategy in ("random", "grid"):
        remedy = "leave it 0, and plant canaries in a run of its own"
        raise ConfigError("audit.canaries", wanted.canaries, "goes with one run, and this is a search", remedy)
    if wanted.canary_kind == "natural":
        return
    if info.task == "regression":
        problem = "needs classes: a made-up row of a regression has no wrong target"
        raise ConfigError("audit.canaries", wanted.canaries, problem, "set audit.canary_kind=natural")
    if info.task == "token_classification":
        problem = "cannot be crafted for texts with a label a token"
        raise ConfigError("audit.canaries", wanted.canaries, problem, "set audit.canary_kind=natural")
    if takes_ids(module) and info.vocabulary is None:
        problem = f"cannot be crafted for text: data '{info.name}' does not say its vocabulary"
        raise ConfigError("audit.canaries", wanted.canaries, problem, "set audit.canary_kind=natural")


def the_canaries(settings: CanaryConfig) -> Canaries | None:
    """Canaries for a new run, their coins freshly tossed; None where none are wanted."""
    return toss_canaries(settings.canary_kind, settings.canaries) if settings.canaries else None


def the_same_canaries(config: TrainConfig, folder: RunFolder) -> Canaries | None:
    """Canaries of a run that goes on: those that it was begun with.

    Raises:
        ConfigError: the sealed record does not open, or is not what the settings say.
    """
    if not config.audit.canaries:
        return None
    found = read_canaries(folder.internal, key_ring(config.checkpoint.key), folder.run_id)
    if (found.kind, len(found)) != (config.audit.canary_kind, config.audit.canaries):
        raise ConfigError("audit.canaries", config.audit.canaries, "is not what the run was begun with", "put it back")
    return found


def crafted_for(canaries: Canaries, info: SourceInfo, rows: Rows) -> Rows:
    """Crafted canaries in the type of the rows as the source gives them.

    Raises:
        ConfigError: the rows are whole numbers (codes, or ids of an unknown vocabulary), which a made-up value is not.
    """
    if not rows.inputs.is_floating_point() and info.vocabulary is None:
        problem = f"cannot be crafted: rows of data '{info.name}' are {rows.inputs.dtype}"
        raise ConfigError("audit.canaries", len(canaries), problem, "set audit.canary_kind=natural")
    made = crafted_of(canaries, info)
    return Rows(made.inputs.to(rows.inputs.dtype), made.targets)


def record_canaries(config: TrainConfig, canaries: Canaries | None, folder: RunFolder) -> None:
    """Seals coins and key into the internal room, and tells of natural canaries what they cost."""
    if canaries is None:
        return
    write_canaries(folder.internal, canaries, load_key(config.checkpoint.key, create=True), folder.run_id)
    if canaries.kind == "natural":
        print(f"dptrain: note: audit.canary_kind=natural {NATURAL}", file=sys.stderr)


NATURAL = (
    "leaves about half of the canaries' records out of training; size, rate and divisor stay, and the records left out "
    "are spent for like all others (crafted canaries leave none out)"
)


def public_canaries(settings: CanaryConfig) -> dict[str, Any]:
    """What statement and bundle say of canaries: that there were some, how many, and of which kind."""
    if not settings.canaries:
        return {}
    return {"canaries": {"count": settings.canaries, "kind": settings.canary_kind}}


def expected_rows(settings: CanaryConfig, plan: Plan) -> float:
    """Rows that canaries add to a step, on average: half of the crafted ones, each with the plan's rate. Natural ones
    take as many rows away, which is not counted: what a plan says of its cost is then a little too much."""
    return plan.sampling_rate * settings.canaries / 2 if settings.canary_kind == "crafted" else 0.0


def canary_cost(settings: CanaryConfig, plan: Plan) -> dict[str, Any] | None:
    """What a plan says of its canaries; None where there are none."""
    if not settings.canaries:
        return None
    rows = expected_rows(settings, plan)
    share = rows / (rows + plan.expected_batch_size)
    return {"count": settings.canaries, "kind": settings.canary_kind, "expected_rows": rows, "share_of_rows": share}


def canary_line(cost: dict[str, Any]) -> str:
    """The plan's line on canaries."""
    if cost["kind"] == "natural":
        return f"{cost['count']:,} records, of which about half {'is' if cost['count'] == 1 else 'are'} left out"
    return (
        f"{cost['count']:,} made-up units, about half of them added: {cost['expected_rows']:.3g} rows a step more "
        f"({cost['share_of_rows']:.1%} of them); epsilon stays"
    )


def join(rows: Rows, crafted: Rows | None, canaries: Canaries | None) -> Rows:
    """The rows that train, with canaries added or left out.

    Args:
        rows: as the model takes them.
        crafted: all crafted canaries, mapped the same way; None for natural ones.
        canaries: None leaves the rows as they are.
    """
    if canaries is None:
        return rows
    return without_left_out(rows, canaries) if crafted is None else with_included(rows, crafted, canaries)
