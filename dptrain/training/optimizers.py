"""Optimizers and schedules by name. What they do with a noisy gradient is post-processing and free.

Every optimizer of ``torch.optim`` that takes one gradient a step is registered under its lower-case name; a
user's own class or function ``(parameters, lr, **options)`` is registered the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from dptrain.config import OptimizerConfig
from dptrain.errors import ConfigError
from dptrain.registry import optimizers

for _name in ("SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop"):
    optimizers.register(_name.lower())(getattr(torch.optim, _name))


def build_optimizer(config: OptimizerConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer a config names; a value that torch refuses becomes a ConfigError."""
    try:
        return optimizers.build(config.name, parameters, options={"lr": config.lr, **config.options})
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "optimizer.options", config.options, str(error), f"see torch.optim's {config.name}"
        ) from error


def build_schedule(config: OptimizerConfig, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """The learning rate over the planned steps: linear warm-up, then constant, linear or cosine to zero."""
    return LambdaLR(optimizer, rate_factor(config, steps))


def rate_factor(config: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """What the learning rate of a step, counted from 0, is multiplied by; see ``build_schedule``.

    Raises:
        ConfigError: the warm-up is as long as the plan.
    """
    if config.warmup_steps >= steps:
        raise ConfigError(
            "optimizer.warmup_steps", config.warmup_steps, f"the plan has {steps} steps", "warm up for fewer steps"
        )

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        if config.schedule == "linear":
            return max(0.0, 1.0 - done)
        if config.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return 1.0

    return factor
