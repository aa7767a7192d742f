"""The exponential moving average of the trained parameters, which is judged and released in their place.

After step t (from 1) the mean moves to ``d mean + (1 - d) parameters`` with ``d = min(decay, (1 + t) / (10 + t))``, so
that the first steps, far from the end, are soon forgotten. It begins at the initial parameters.

Guarantee: it is computed from released parameters alone, so it costs nothing (post-processing; Dwork & Roth 2014,
proposition 2.1). Source: Polyak & Juditsky 1992; with DP-SGD De et al. 2022, section 4, which the warm-up follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_STEPS = "average.steps"


class Average:
    """The running mean of parameters.

    Args:
        parameters: those that training moves; others, and buffers, are what they are.
        decay: in (0, 1).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay, self._steps = list(parameters), decay, 0
        self._mean = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the parameters of now in; once a step, after the optimizer."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for mean, parameter in zip(self._mean, self._parameters, strict=True):
            mean.lerp_(parameter, 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The module has the mean as its parameters inside; behind it, its own again, bit for bit."""
        own = [parameter.detach().clone() for parameter in self._parameters]
        self.settle()
        try:
            yield
        finally:
            self._fill(own)

    def settle(self) -> None:
        """Gives the module the mean for good: what is released."""
        self._fill(self._mean)

    def kept(self) -> dict[str, Tensor]:
        """What a resume state holds of it: copies on the CPU."""
        means = {f"average.{place}": mean.to("cpu", copy=True) for place, mean in enumerate(self._mean)}
        return means | {_STEPS: torch.tensor(self._steps)}

    @torch.no_grad()
    def take_up(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what ``kept`` gave in an earlier process."""
        self._steps = int(tensors[_STEPS])
        for place, mean in enumerate(self._mean):
            mean.copy_(tensors[f"average.{place}"])

    @torch.no_grad()
    def _fill(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
