"""One passage of all rows through a checkpointed module, which keeps what went in and computes the rest again.

The first time, nothing is kept but the module's inputs and how often it uses each parameter. In the backward pass it is
passed through again, under the same tape, and its own backward pass follows at once and leaves the tape's records
(Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). Both times it must do the same, on nothing but its
arguments, its parameters and its buffers; everything else that can be seen is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.derived import Derived
from dptrain.gradients.bookkeeping.lifted import is_of_rows
from dptrain.gradients.bookkeeping.refusals import unseen_use
from dptrain.gradients.bookkeeping.tape import Tape

_OWNER = "_dptrain_passage"


def not_the_same(name: str, what: str) -> ConfigError:
    """A module that cannot be passed through twice with the same result."""
    return ConfigError(
        "execution.checkpoint",
        name,
        f"{what}, so that a second forward pass through it may give something else",
        "take another module, or set execution.memory_limit=0 in its place",
    )


class Own:
    """Knows the rows' values of one passage, those given as arguments and those computed of them.

    A value that came in some other way (an attribute that another module has set, a closure) would be read again in the
    backward pass as it is then, and no gradient would go back to where it came from.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def mark(self, values: Any) -> None:
        """Takes the tensors among the values for its own."""
        if isinstance(values, Tensor):
            setattr(values, _OWNER, self)
        elif isinstance(values, dict):
            self.mark(list(values.values()))
        elif isinstance(values, list | tuple):
            for value in values:
                self.mark(value)

    def check(self, values: Any) -> None:
        """Refuses a row's value that is not its own."""
        if isinstance(values, Tensor):
            if is_of_rows(values) and getattr(values, _OWNER, None) is not self:
                raise not_the_same(self._name, "reads a value of a row that is not among its arguments")
        elif isinstance(values, dict):
            self.check(list(values.values()))
        elif isinstance(values, list | tuple):
            for value in values:
                self.check(value)


@dataclass
class Passage:
    """One call of a checkpointed module.

    Attributes:
        name: of the module.
        forward: its own forward pass.
        tape: of the pass through the whole model.
        leaves: its arguments as a flat list; None in the places of rows' values.
        places: of these.
        spec: how the list was flattened.
        outputs: what it returned, flattened; None in the places of rows' values.
        numbers: for each of these places, which of the passage's results it is.
        uses: how often it used each parameter.
    """

    name: str
    module: nn.Module
    forward: Callable[..., Any]
    tape: Tape
    leaves: list[Any]
    places: list[int]
    spec: pytree.TreeSpec
    outputs: list[Any] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    out_spec: pytree.TreeSpec | None = None
    uses: dict[str, int] = field(default_factory=dict)
    _results: tuple[Tensor, ...] = ()
    _shapes: list[tuple[torch.Size, torch.dtype]] = field(default_factory=list)
    _buffers: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    _constants: list[tuple[Tensor, int]] = field(default_factory=list)
    _cast: Callable[[], torch.autocast] | None = None

    def first(self, anchor: Tensor, *rows: Tensor) -> Sequence[Tensor]:
        """Passes through for the results alone.

        Args:
            anchor: (R,), of which everything that is trained is a function.
            rows: (R, ...) the rows' values among the arguments.

        Returns:
            (R, ...) each, with a history that passes through again.
        """
        kind = anchor.device.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        cached = torch.is_autocast_cache_enabled()
        self._cast = partial(torch.autocast, kind, dtype=dtype, enabled=enabled, cache_enabled=cached)
        self._buffers = {name: (b, b._version) for name, b in self.module.named_buffers()}
        self._constants = [(v, v._version) for v in self.leaves if isinstance(v, Tensor)]
        versions, state = [row._version for row in rows], _random_state(anchor.device)
        found, derived = self._through(torch.zeros_like(anchor), [row.detach() for row in rows])
        self.tape.let_go(derived)
        for name, count in self.uses.items():
            self.tape.uses[name] = self.tape.uses.get(name, 0) + count
        self._check_unchanged()
        if dict(self.module.named_buffers()).keys() != self._buffers.keys() or any(
            b is not self._buffers[name][0] for name, b in self.module.named_buffers()
        ):
            raise not_the_same(self.name, "writes into its buffers")
        if [row._version for row in rows] != versions:
            raise not_the_same(self.name, "writes into its arguments")
        if not all(torch.equal(a, b) for a, b in zip(state, _random_state(anchor.device), strict=True)):
            raise not_the_same(self.name, "draws random numbers")
        self._results = _own_memory(found, [*rows, *(value for value, _ in self._constants)])
        self._shapes = [(one.shape, one.dtype) for one in found]
        if not found:
            return ()
        results = _Again.apply(self, anchor if self.uses else anchor.detach(), *rows)
        self._results = ()
        return results

    def _check_unchanged(self) -> None:
        if any(b._version != version for b, version in self._buffers.values()):
            raise not_the_same(self.name, "writes into its buffers")
        if any(value._version != version for value, version in self._constants):
            raise not_the_same(self.name, "is given a value of all rows that is written into")

    def results(self) -> tuple[Tensor, ...]:
        """Those of ``first``."""
        return self._results

    def again(
        self, anchor: Tensor, rows: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Any]:
        """Passes through once more, and back.

        Args:
            anchor: (R,), a leaf of a history that begins here.
            rows: as in ``first``.
            grads: of the loss, with respect to its results; None where there is none.
            needed: which rows' values want a gradient.

        Returns:
            the gradient with respect to each of ``rows``, or None.
        """
        tape = self.tape
        self._check_unchanged()
        assert self._cast is not None, "passed through again before the first time"
        expected, outputs = self.uses, len(self._shapes)
        with torch.enable_grad():
            leaves = [row.detach().requires_grad_(need) for row, need in zip(rows, needed, strict=True)]
            with tape, self._cast(), _buffers_of(self.module, {name: b for name, (b, _) in self._buffers.items()}):
                found, derived = self._through(anchor, leaves)
        self._check_unchanged()
        if self.uses != expected or len(found) != outputs or [(o.shape, o.dtype) for o in found] != self._shapes:
            raise not_the_same(self.name, "does something else when called again")
        pairs = [(o, g) for o, g in zip(found, grads, strict=True) if g is not None and o.requires_grad]
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        watched = {**tape.watched(), **derived.stand_ins, **derived.leaves}
        back: list[Tensor | None] = [None] * len(wanted)
        if pairs:
            ends, starts = zip(*pairs, strict=True)
            _, *more = torch.autograd.grad(ends, [anchor, *wanted, *watched.values()], starts, allow_unused=True)
            back = [*more[: len(wanted)]]
            for name, gradient in zip(watched, more[len(wanted) :], strict=True):
                if gradient is not None:
                    raise unseen_use(name)
        outer, tape.derived = tape.derived, derived
        try:
            tape.pull_back()
        finally:
            tape.derived = outer
            tape.let_go(derived)
        tape.grams = {}
        in_turn = iter(back)
        return [next(in_turn) if need else None for need in needed]

    def _through(self, anchor: Tensor, rows: Sequence[Tensor]) -> tuple[list[Tensor], Derived]:
        """All rows through the module; sets ``uses`` and ``outputs``."""
        tape, own, derived = self.tape, Own(self.name), self.tape.derived_values()
        outer = (tape.anchor, tape.watch, tape.derived, tape.uses)

        def of_row(anchor: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
            own.mark(values)
            leaves = list(self.leaves)
            for place, value in zip(self.places, values, strict=True):
                leaves[place] = value
            args, kwargs = pytree.tree_unflatten(leaves, self.spec)
            tape.anchor, tape.watch, tape.derived, tape.uses = anchor, own, derived, {}
            try:
                result = self.forward(*args, **kwargs)
                self.uses = {name: n for name, n in tape.uses.items() if name not in derived.stand_ins}
            finally:
                tape.anchor, tape.watch, tape.derived, tape.uses = outer
            return anchor, *self._taken_apart(result, own, derived)

        return list(vmap(of_row, randomness="different")(anchor, *rows)[1:]), derived

    def _taken_apart(self, result: Any, own: Own, derived: Derived) -> list[Tensor]:
        """The rows' values in what the module returned, each once; what all rows share is kept as it is."""
        self.outputs, self.out_spec = pytree.tree_flatten(result)
        self.numbers, found, known = {}, list[Tensor](), dict[int, int]()
        for place, value in enumerate(self.outputs):
            if not isinstance(value, Tensor):
                continue
            if any(value is one for one in derived.stand_ins.values()):
                raise not_the_same(self.name, "returns a value computed from weights alone")
            if not is_of_rows(value):
                continue
            own.check(value)
            if id(value) not in known:
                known[id(value)] = len(found)
                found.append(value)
            self.numbers[place], self.outputs[place] = known[id(value)], None
        return found


class _Again(torch.autograd.Function):
    """What the first passage has computed; its backward pass is that of a second one."""

    @staticmethod
    def forward(ctx: Any, passage: Passage, anchor: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*rows)
        ctx.passage, ctx.size, ctx.device = passage, len(anchor), anchor.device
        ctx.set_materialize_grads(False)
        results = passage.results()
        ctx.mark_non_differentiable(*(one for one in results if not one.is_floating_point()))
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        anchor = torch.zeros(ctx.size, device=ctx.device, requires_grad=True)
        return None, None, *ctx.passage.again(anchor, ctx.saved_tensors, grads, ctx.needs_input_grad[2:])


def _own_memory(found: Sequence[Tensor], given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results as no views, where each has its memory to itself: layers that come after may write into it. Of others
    torch lets nobody write into a view, and sees where something is written that the backward pass needs."""
    places = [one.untyped_storage().data_ptr() for one in (*found, *given)]
    return tuple(
        torch.ops.aten._unsafe_view(one, one.shape) if one._is_view() and places.count(place) == 1 else one
        for one, place in zip(found, places, strict=False)
    )


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextlib.contextmanager
def _buffers_of(module: nn.Module, buffers: dict[str, Tensor]) -> Iterator[None]:
    """The module with these buffers in the place of its own."""
    places = [(module.get_submodule(name.rpartition(".")[0])._buffers, name.rpartition(".")[2]) for name in buffers]
    before = [held[leaf] for held, leaf in places]
    try:
        for (held, leaf), buffer in zip(places, buffers.values(), strict=True):
            held[leaf] = buffer
        yield
    finally:
        for (held, leaf), buffer in zip(places, before, strict=True):
            held[leaf] = buffer
