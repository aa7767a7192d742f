"""Puts the parts of a private run together so that they belong to one plan."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from dptrain.config import TrainConfig
from dptrain.data.batches import PhysicalBatch, UnitIndex, physical_batches
from dptrain.data.length_buckets import buckets_for, unit_lengths
from dptrain.data.sampler import PoissonSampler
from dptrain.data.source import Rows
from dptrain.errors import ConfigError
from dptrain.gradients.clip import largest_exact_draw
from dptrain.gradients.protocol import ClippingRule, Engine, EngineSettings, RowLoss, trainable
from dptrain.keystream import Keystream
from dptrain.noise.ahead import NoiseAhead
from dptrain.noise.device import DeviceNoise
from dptrain.noise.fast import FastNoise
from dptrain.noise.protocol import Noise
from dptrain.noise.secure import SecureNoise
from dptrain.privacy.grid import grid_step
from dptrain.privacy.plan import NOISE_RESERVE, Plan
from dptrain.registry import engines
from dptrain.selfcheck.checker import Checker
from dptrain.selfcheck.dummies import Dummies, dummy_loss
from dptrain.training.average import Average
from dptrain.training.baseline import PlainSum
from dptrain.training.loop import Trainer
from dptrain.training.memory import MIB, held_limit, keep_freed_memory
from dptrain.training.optimizers import build_optimizer, build_schedule
from dptrain.training.selfcheck import SelfCheck
from dptrain.training.selfcheck_recompute import Recomputation

WORTH_COMPILING = 300_000_000
"""Normals of a run from which on loading compiled transforms (half a second; four where they were never used before)
is made up for."""

WORTH_A_THREAD = 1_000_000
"""Normals of a step from which on another core that is idle meanwhile draws them."""

CHECKPOINTING = ("auto", "bookkeeping")
"""Engines that know ``execution.checkpoint``."""

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float64": None}
ROUNDING = {"float32": 0.02, "bfloat16": 0.5, "float64": 0.02}
"""What a recomputed unit may be off, as a share of the larger of its norm and C: far above ordinary rounding, so that
no honest run is stopped, and below a wrong norm. That no contribution exceeds C (1 + s) is asked without it."""


def pick_device(name: str) -> torch.device:
    """The device a config names; ``auto`` is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError("execution.device", name, "is not on this machine", "set execution.device=auto")
    return device


def checkpoint_patterns(config: TrainConfig) -> tuple[str, ...]:
    """Patterns of the modules to checkpoint.

    Raises:
        ConfigError: there are some, and the engine does not know them.
    """
    patterns, name = tuple(config.execution.checkpoint), config.clipping.engine
    if patterns and name not in CHECKPOINTING:
        raise ConfigError(
            "execution.checkpoint",
            ",".join(patterns),
            f"is not known to clipping.engine={name}",
            "set clipping.engine=bookkeeping, or leave it out",
        )
    return patterns


def build_engine(
    config: TrainConfig, module: nn.Module, row_loss: RowLoss, rule: ClippingRule, compiled: bool = False
) -> Engine:
    """The engine a config names, for one module and one way of clipping; ``compiled``: see ``EngineSettings``."""
    device = next(module.parameters()).device
    limit = config.execution.memory_limit
    settings = EngineSettings(
        autocast=DTYPES[config.execution.dtype],
        memory_limit=held_limit(device),
        pass_limit=None if limit is None else limit * MIB,
        compiled=compiled,
        checkpoint=checkpoint_patterns(config),
    )
    return engines.build(config.clipping.engine, module, row_loss, rule, settings)


def build_noise(
    plan: Plan,
    keystream: Keystream,
    num_parameters: int,
    grid: float | None,
    device: torch.device,
    on_device: bool = False,
) -> Noise:
    """The plan's noise, in grid steps where there is a grid, made on the device where ``on_device`` asks for it.

    Guarantee: its deviation is the mechanism's own, and its distance from an ideal Gaussian over the whole run
    is inside the plan's reserve of delta.
    """
    assert plan.mechanism is not None
    assert plan.epsilon is not None
    std = plan.mechanism.noise_std
    on_cpu = device.type == "cpu" or grid is not None
    quick = on_cpu and worth_compiling(num_parameters * plan.steps)
    idle = num_parameters >= WORTH_A_THREAD and _cores() > torch.get_num_threads()
    if grid is None:
        return FastNoise(keystream, std, device, compiled=quick)  # so quick that holding a step's noise does not pay
    here = DeviceNoise(keystream, std / grid, device) if on_device else None
    noise = here or SecureNoise(keystream, std / grid, compiled=quick)
    distance = plan.mechanism.expected_runs * noise.distance((num_parameters + 1) * plan.steps)
    if distance * (1.0 + math.exp(min(plan.epsilon, 700.0))) > plan.delta * NOISE_RESERVE:
        raise ConfigError(
            "privacy.delta",
            plan.delta,
            f"is too small for the noise sampler's distance {distance:.2g} from a Gaussian over this run",
            "raise privacy.delta",
        )
    return NoiseAhead(noise) if idle and here is None else noise


def worth_compiling(normals: int) -> bool:
    """Whether a run draws so many, numba is installed (not imported yet), and words begin with their low half."""
    return normals >= WORTH_COMPILING and importlib.util.find_spec("numba") is not None and sys.byteorder == "little"


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_sums_stay_exact(rule: ClippingRule, num_units: int) -> None:
    """Refuses a data set so large that a draw of all of it could leave the whole numbers that float64 holds."""
    if rule.grid is not None and num_units > largest_exact_draw(rule):
        raise ConfigError(
            "privacy.sensitivity_slack",
            "",
            f"makes a grid so fine that sums over {num_units} units would not be exact",
            "raise privacy.sensitivity_slack",
        )


def build_selfcheck(
    config: TrainConfig,
    plan: Plan,
    module: nn.Module,
    row_loss: RowLoss,
    rule: ClippingRule,
    num_units: int,
    keystream: Keystream,
) -> SelfCheck:
    """The self-check of a private run, for one module and one way of clipping."""
    assert plan.mechanism is not None
    settings, mechanism = config.selfcheck, plan.mechanism
    plain = replace(config, execution=replace(config.execution, checkpoint=[]))  # dummies have no such modules
    parameter = next(iter(trainable(module).values()))
    norm, rate = mechanism.clipping_norm, plan.sampling_rate
    dummies = Dummies(settings.sentinels, norm, parameter.dtype, parameter.device, rate)
    effect = dummies.contribution.numpy() / mechanism.noise_std
    recomputation = Recomputation(
        module=module,
        row_loss=row_loss,
        rule=rule,
        sensitivity=mechanism.sensitivity,
        tolerance=ROUNDING[config.execution.dtype],
        units=settings.recompute_units,
        steps=plan.steps,
        keystream=keystream,
        autocast=DTYPES[config.execution.dtype],
    )
    return SelfCheck(
        dummies=dummies,
        engine=build_engine(plain, dummies.module, dummy_loss, rule),
        checker=Checker(effect, rate, plan.steps, settings.alpha),
        num_units=num_units,
        to_noise=plan.expected_batch_size / mechanism.noise_std,
        recomputation=recomputation if settings.recompute_units else None,
    )


def lengths_of(config: TrainConfig, module: nn.Module, rows: Rows, index: UnitIndex) -> Tensor | None:
    """(num_units,) lengths to which each unit's rows of tokens may be cut; None where rows are no tokens, the model
    does not say that its rows may be of any length (``any_length``, ``pad``), or buckets are turned off.

    Guarantee: changes no clipped sum but by rounding: such a model gives a row the same whatever padding follows it.
    """
    pad = getattr(module, "pad", None)
    if not getattr(module, "any_length", False) or not isinstance(pad, int) or rows.inputs.dim() != 2:
        return None
    buckets = buckets_for(rows.inputs.shape[1], config.execution.length_buckets)
    if rows.inputs.is_floating_point() or len(buckets) == 1 or not len(rows):
        return None
    return unit_lengths(rows.inputs, index, pad, buckets)


def build_trainer(
    config: TrainConfig,
    plan: Plan,
    module: nn.Module,
    rows: Rows,
    row_loss: RowLoss,
    keystream: Keystream,
    intend: Callable[[int], None] = lambda step: None,
) -> Trainer:
    """A trainer whose sampler, clipping, noise and divisor come out of ``plan`` alone.

    Args:
        module: on its device.
        rows: private training rows, in memory.
        keystream: source of draws and noise.
        intend: see ``Trainer``.
    """
    parameters = trainable(module)
    device = next(iter(parameters.values())).device
    if device.type == "cpu":
        keep_freed_memory()
    count = sum(p.numel() for p in parameters.values())
    index = UnitIndex(rows.unit_id)
    grid = None
    noise: Noise | None = None
    check: SelfCheck | None = None
    if plan.mechanism is None:
        engine: Engine = PlainSum(module, row_loss, DTYPES[config.execution.dtype])
    else:
        if plan.noise == "secure":
            # Of the trained parameters alone: on sentinels no unit has anything to round (docs/selfcheck.md).
            grid = grid_step(plan.mechanism.clipping_norm, plan.mechanism.sensitivity_slack, count)
        rule = ClippingRule(plan.mechanism.clipping_norm, grid)
        _check_sums_stay_exact(rule, index.num_units)
        engine = build_engine(config, module, row_loss, rule, worth_compiling(count * plan.steps))
        if config.selfcheck.enabled:
            check = build_selfcheck(config, plan, module, row_loss, rule, index.num_units, keystream)
            count += check.block.numel()
        noise = build_noise(plan, keystream, count, grid, device, config.execution.noise_on_device)
    dummies = 0 if check is None else check.block.numel()
    sampler = PoissonSampler(index.num_units + dummies, plan.sampling_rate, keystream)

    lengths = lengths_of(config, module, rows, index)

    def batches(draw: Tensor) -> Iterator[PhysicalBatch]:
        return physical_batches(draw, rows, index, config.execution.physical_batch_size, device, lengths)

    optimizer = build_optimizer(config.optimizer, list(parameters.values()))
    return Trainer(
        module=module,
        plan=plan,
        draw=sampler.draw,
        batches=batches,
        engine=engine,
        noise=noise,
        grid=grid,
        compiled=plan.is_private and worth_compiling(count * plan.steps),
        selfcheck=check,
        average=Average(list(parameters.values()), config.optimizer.ema) if config.optimizer.ema else None,
        intend=intend,
        optimizer=optimizer,
        schedule=build_schedule(config.optimizer, optimizer, plan.steps),
    )
