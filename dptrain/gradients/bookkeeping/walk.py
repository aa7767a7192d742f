"""The backward pass over one graph: once, or twice where modules are checkpointed.

With checkpointed modules, the first walk takes every unit's norm and lets each contribution go at once; the second,
with the clip factors known, adds each contribution to the sum at once (the two passes of ghost clipping: Li et al.
2022, "Large Language Models Can Be Strong DP Learners"). So neither activations nor what the sum is made of are held
for more than one module at a time. The second walk takes the norms again, and no sum comes of it unless every unit
stays within its bound there, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.contribution import Contribution
from dptrain.gradients.bookkeeping.refusals import unseen_use
from dptrain.gradients.bookkeeping.runs import RunningSum
from dptrain.gradients.bookkeeping.tape import Tape

BEYOND = 1e-4
"""Share of C by which a contribution of the second walk may exceed it: a tenth of the slack that noise is made for."""

APART = 0.1
"""Share of a unit's norm (or of C, where that is more) by which the second walk's may be below it: far above what sums
in another order make of it, where a device adds in no fixed one."""


@dataclass
class Graph:
    """What a forward pass has left.

    Attributes:
        tape: which its backward pass fills.
        live: the sum of the live rows' losses; None where no parameter reaches it.
        anchor: (R,), of which every use of a parameter is a function.
    """

    tape: Tape
    live: Tensor | None
    anchor: Tensor

    def walk(self, keep: bool = False) -> dict[str, Contribution]:
        """The backward pass, which fills the tape; no parameter itself may lie on its way. ``keep``: not the last."""
        live = self.live
        if not keep:
            self.live = None  # and with it what was held for it
        if live is not None:
            watched = self.tape.watched()
            ends = [self.anchor, *watched.values()]
            direct = torch.autograd.grad(live, ends, allow_unused=True, retain_graph=keep)[1:]
            for name, gradient in zip(watched, direct, strict=True):
                if gradient is not None:
                    raise unseen_use(name)
        with torch.no_grad():
            return self.tape.finish()

    def walk_for_norms(self) -> dict[str, Contribution]:
        """The first of two walks: contributions that are norms and nothing else."""
        found: dict[str, Contribution] = {}

        def take(name: str, contribution: Contribution) -> None:
            found[name] = Normed(contribution.squared_norm, type(contribution).__name__)

        self.tape.take = take
        self.walk(keep=True)
        return found

    def walk_for_sum(self, second: SecondWalk, clipping_norm: float) -> None:
        """The second of two walks: adds to the sum."""
        self.tape.take = second.take
        self.walk()
        second.check(clipping_norm)


def form_of(contribution: Contribution) -> str:
    """By which of its forms a contribution is held, or was."""
    return contribution.form if isinstance(contribution, Normed) else type(contribution).__name__


@dataclass
class Normed:
    """A contribution of which the first walk keeps the norms alone."""

    squared_norm: Tensor  # (U,) float64
    form: str

    def silence(self, dead: Tensor) -> None:
        """The second walk silences what it makes."""

    def weighted_sum(self, factor: Tensor) -> Tensor:
        raise NotImplementedError("only norms are kept")

    def per_unit(self) -> Tensor:
        raise NotImplementedError("only norms are kept")

    @property
    def nbytes(self) -> int:
        return 0


@dataclass
class SecondWalk:
    """Adds every contribution to the sum as soon as it is there.

    Args:
        norms: (U,) float64 of the first walk, infinite for units that are to add nothing.
        factor: (U,) their clip factors.
        total: takes the sum.
        names: the parameters that the first walk has found.
        grid: size of a grid step, where the sum is in grid steps.
    """

    norms: Tensor
    factor: Tensor
    total: RunningSum
    names: frozenset[str]
    grid: float | None = None
    squared: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.squared = torch.zeros_like(self.norms)
        self._dead = torch.isinf(self.norms)
        self._any_dead = bool(self._dead.any())

    def take(self, name: str, contribution: Contribution) -> None:
        """See ``Tape.take``."""
        if name not in self.names:
            raise self._refusal(f"reached {name} in its second backward pass alone")
        self.squared += contribution.squared_norm
        if self._any_dead:
            contribution.silence(self._dead)
        self.total.add(name, contribution, self.factor)

    def check(self, clipping_norm: float) -> None:
        """Refuses the sum where a unit has added more than its norm of the first walk allowed, or where its norm is
        another altogether.

        That never happens to a model that does the same each time it is called: the check is for those that do not.
        """
        alive = self.factor > 0.0
        norms, again = torch.where(alive, self.norms, 0.0), torch.where(alive, self.squared.sqrt(), 0.0)
        largest = clipping_norm * (1.0 + BEYOND) / (self.grid or 1.0)  # factors bring a sum to grid steps
        bounded = again * self.factor <= largest  # NaN compares as False
        same = norms - again <= APART * norms.clamp(min=clipping_norm)
        if not bool((bounded & same).all()):
            raise self._refusal("had other gradients in its second backward pass")

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError(
            "execution.checkpoint",
            "the model",
            f"{what}, so that they cannot be clipped",
            "have it do the same each time it is called, or leave checkpointing out",
        )
