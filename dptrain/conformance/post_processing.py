"""What becomes of released gradients, computed apart: optimizer, learning rate and moving average from them alone.

The guarantee of everything behind a release is that it is a function of releases (post-processing). So a second
optimizer, on copies of the first parameters, is given the released gradients and nothing else; whatever it does not
agree with, step for step, came to the run by another road.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.config import OptimizerConfig
from dptrain.registry import optimizers
from dptrain.training.loop import Trainer

OF_TORCH = ("SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop")
CLOSE = 2e-6
"""What values may differ by, over the largest of their tensor: a few roundings of float32."""


def rate_at(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of a step (from 0) of a plan of ``steps``, as docs and config say it."""
    warm = config.warmup_steps
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    share = (step - warm) / max(1, steps - warm)
    factor = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 + 0.5 * math.cos(math.pi * share)}
    return config.lr * max(0.0, factor[config.schedule])


class Apart:
    """The same post-processing beside a run.

    Args:
        config: of the optimizer.
        parameters: of the run's model, before its first step here.
        steps: planned.
    """

    def __init__(self, config: OptimizerConfig, parameters: Sequence[nn.Parameter], steps: int) -> None:
        self._config, self._steps = config, steps
        self.done = self.averaged = 0
        self.parameters = [nn.Parameter(p.detach().clone()) for p in parameters]
        own = {name.lower(): getattr(torch.optim, name) for name in OF_TORCH}
        build: Any = own.get(config.name) or optimizers.resolve(config.name)
        self.optimizer: torch.optim.Optimizer = build(self.parameters, lr=config.lr, **config.options)
        self.mean = [p.detach().clone().double() for p in self.parameters]

    def state(self) -> dict[str, Any]:
        """Copies of everything that a run would have to keep to go on."""
        return {
            "parameters": [p.detach().clone() for p in self.parameters],
            "mean": [mean.clone() for mean in self.mean],
            "averaged": self.averaged,
            "optimizer": deepcopy(self.optimizer.state_dict()),
        }

    @torch.no_grad()
    def go_on(self, state: dict[str, Any], done: int) -> None:
        """Takes such a state up; ``done`` steps count as executed, and so has the learning rate got on."""
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.copy_(value)
        self.mean, self.averaged, self.done = [m.clone() for m in state["mean"]], state["averaged"], done
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))

    def take(self, gradients: Sequence[Tensor]) -> None:
        """One step, from one release."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self._config, self.done, self._steps)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        self.optimizer.step()
        self.done, self.averaged = self.done + 1, self.averaged + 1
        decay = min(self._config.ema, (1 + self.averaged) / (10 + self.averaged))
        for mean, parameter in zip(self.mean, self.parameters, strict=True):
            mean += (1.0 - decay) * (parameter.detach().double() - mean)

    def differs(self, trainer: Trainer) -> str | None:
        """What of the run is other than here, after its step; None where nothing is."""
        for place, (own, theirs) in enumerate(zip(self.parameters, trainer.parameters, strict=True)):
            if far := _far(own, theirs):
                return f"parameter {place} is {far:.1e} of itself from what the releases make of it"
            if found := self._state(place, own, trainer.optimizer.state.get(theirs, {})):
                return found
        if trainer.average is not None:
            with trainer.average.shown():
                shown = [p.detach().clone() for p in trainer.parameters]
            for place, (own, theirs) in enumerate(zip(self.mean, shown, strict=True)):
                if far := _far(own, theirs):
                    return f"the average of parameter {place} is {far:.1e} of itself from that of the released ones"
            for place, (own, theirs) in enumerate(zip(self.parameters, trainer.parameters, strict=True)):
                if _far(own, theirs):
                    return f"parameter {place} is another one behind a look at the average"
        return None

    def _state(self, place: int, own: nn.Parameter, theirs: dict[str, Any]) -> str | None:
        mine = self.optimizer.state.get(own, {})
        if set(mine) != set(theirs):
            return f"the optimizer keeps {sorted(theirs)} of parameter {place}, and {sorted(mine)} are its own"
        for name, value in mine.items():
            other = theirs[name]
            far = _far(value, other) if isinstance(value, Tensor) and isinstance(other, Tensor) else 0.0
            if far or (not isinstance(value, Tensor) and value != other):
                return f"the optimizer's {name} of parameter {place} is {far:.1e} of itself from that of the releases"
        return None


def _far(own: Tensor, theirs: Tensor) -> float:
    """0 where two tensors agree to rounding; else how far apart they are, over the largest value."""
    own, theirs = own.detach().double(), theirs.detach().double()
    if own.shape != theirs.shape:
        return math.inf
    largest = max(float(own.abs().max()), 1e-30) if own.numel() else 1.0
    far = float((own - theirs).abs().max()) / largest if own.numel() else 0.0
    return 0.0 if far <= CLOSE else (far if math.isfinite(far) else math.inf)
