"""Weights that are computed from parameters alone: standardised, scaled, cut out, cast.

Such a value W' = f(W) is the same for all rows, and so is a parameter to whatever reads it: rules apply, and leave each
unit's gradient P' of W'. The unit's gradient of W itself is J' P', J the Jacobian of f: one more backward pass through
f alone, for all units at once. Norms are taken of what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dptrain.gradients.bookkeeping.lifted import direct, is_of_rows

CHUNK = 1 << 22
"""Bytes of units' gradients that go back through f at once: what f keeps in between is some ten times as much."""


class Derived:
    """Values of one pass that are functions of tracked parameters alone.

    Args:
        made: told of every stand-in, by name, when it is made.
        numbers: makes the names; shared by all of one pass.

    Attributes:
        stand_ins: what the model is given for each value: a parameter of its own, by name.
    """

    def __init__(self, made: Callable[[str, nn.Parameter], None], numbers: Iterator[int]) -> None:
        self._made = made
        self._numbers = numbers
        self.stand_ins: dict[str, nn.Parameter] = {}
        self.leaves: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}  # by a stand-in's name: the value, with its history back to the leaves

    def value_of(self, name: str, parameter: nn.Parameter) -> Tensor:
        """What a tracked parameter or a stand-in is where f is computed: the start of a history, or a link in it."""
        if name in self._values:
            return self._values[name]
        if name not in self.leaves:
            self.leaves[name] = nn.Parameter(parameter.detach())
        return self.leaves[name]

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs ``func`` on values with history; every tensor that it makes is replaced by a stand-in.

        Raises:
            RuntimeError: it writes into one of them, which the stand-in would not see.
        """
        read = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.requires_grad]
        versions = [value._version for value in read]
        result = func(*args, **kwargs)
        if [value._version for value in read] != versions:
            raise RuntimeError("a value computed from weights is written to in place")
        return pytree.tree_map(self._stand_in, result)

    def _stand_in(self, value: Any) -> Any:
        if isinstance(value, Tensor) and is_of_rows(value):
            raise RuntimeError("a function of weights alone draws random numbers a row")
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        name = f"value {next(self._numbers)} computed from weights"
        self._values[name] = value
        self.stand_ins[name] = nn.Parameter(value.detach())
        self._made(name, self.stand_ins[name])
        return self.stand_ins[name]

    def pulled_back(self, name: str, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(parameter's name, (U, *its shape)) from gradients (U, *shape) of one value."""
        value = self._values[name]
        gradient = gradient.to(value.dtype)
        size = max(1, CHUNK * len(gradient) // max(gradient.nbytes, 1))
        parts = [self._pull(value, part) for part in gradient.split(size)]
        for place, leaf in enumerate(self.leaves):
            found = [part[place] for part in parts]
            if found[0] is not None:
                yield leaf, torch.cat(found) if len(found) > 1 else found[0]

    def _pull(self, value: Tensor, gradient: Tensor) -> tuple[Any, ...]:
        return torch.autograd.grad(
            value, list(self.leaves.values()), gradient, retain_graph=True, allow_unused=True, is_grads_batched=True
        )


def reads_no_row(args: Any, kwargs: Any) -> bool:
    """Whether none of the tensors among the arguments is a row's own."""
    return direct() and not any(isinstance(v, Tensor) and is_of_rows(v) for v in pytree.tree_leaves((args, kwargs)))
