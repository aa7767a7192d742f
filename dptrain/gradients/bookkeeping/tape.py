"""Sees every use that a model makes of a trainable parameter while its rows go through it.

The model runs under ``vmap``, so that each row is a batch of one and rows cannot meet. A tape intercepts every torch
function called meanwhile. A function that has a rule (``rules``) and reads a tracked parameter runs through that rule,
which works on all rows at once and leaves each unit's gradient as a contribution during the backward pass. Any other
function that reads a tracked parameter gets a copy of the parameter a row, whose gradients are the rows' own: exact
for every function that vmap knows, at the memory of one gradient a row. No use can be missed, because a parameter is
never seen by autograd itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dptrain.gradients.bookkeeping.choice import Chooser
from dptrain.gradients.bookkeeping.contribution import Contribution
from dptrain.gradients.bookkeeping.derived import Derived, reads_no_row
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.bookkeeping.lifted import Whole, lifted
from dptrain.gradients.bookkeeping.refusals import checkpointing, under_checkpointing
from dptrain.gradients.bookkeeping.seen import RowGradients, Seen, UnitGradients, added_up, combine

Rule = Callable[["Tape", Any, tuple[Any, ...], dict[str, Any]], Any]
"""(tape, function, args, kwargs) -> result, or NotImplemented where the rule does not cover this call."""

_HARMLESS = {"shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_leaf", "names", "itemsize"}
_HARMLESS |= {"is_nested", "is_sparse", "is_quantized", "is_meta", "is_cpu", "nbytes"}
_HARMLESS_METHODS = {"size", "dim", "numel", "is_floating_point", "is_complex", "__len__", "stride", "is_contiguous"}
_HARMLESS_METHODS |= {"get_device", "element_size", "nelement", "ndimension", "__hash__", "__repr__"}


class Watch(Protocol):
    """Looks at every value that goes into a torch function and comes out of it (``recomputed``)."""

    def check(self, values: Any) -> None: ...

    def mark(self, values: Any) -> None: ...


class Tape(TorchFunctionMode):
    """The record of one physical batch.

    Args:
        tracked: trainable parameters by name.
        groups: the batch's units.
        chooser: picks the way in which each contribution is computed.
        rules: torch function -> rule.
        derives: whether values computed from weights alone are followed (``derived``), or copied a row.

    Attributes:
        contributions: per parameter name, what all its uses give together.
        take: what is done with a contribution when it is there; kept in ``contributions`` unless replaced.
        watch: looks on while a checkpointed module is passed through; None elsewhere.
        without_rule: names of functions that read a parameter and have no rule, with the parameter's name.
    """

    def __init__(
        self,
        tracked: Mapping[str, nn.Parameter],
        groups: Groups,
        chooser: Chooser,
        rules: Mapping[Any, Rule],
        anchor: Tensor | None = None,
        derives: bool = True,
    ) -> None:
        super().__init__()
        self._tracked = tracked
        self._numbers = itertools.count()
        self.derived = self.derived_values()
        self.has_derived = False
        self._derives = derives
        self.groups = groups
        self.num_rows = groups.num_slots
        self.chooser = chooser
        self.contributions: dict[str, Contribution] = {}
        self.take: Callable[[str, Contribution], None] = self.contributions.__setitem__
        self.watch: Watch | None = None
        self._taken: set[str] = set()
        self._seen: dict[str, list[Seen]] = {}
        self.uses = dict.fromkeys(tracked, 0)
        self.without_rule: dict[str, str] = {}
        self.grams: dict[tuple[Any, ...], tuple[Tensor, dict[int, Tensor]]] = {}
        self.timing = not chooser.settled
        self._rules = rules
        self._names = {id(p): name for name, p in tracked.items()}
        self._turned: dict[int, tuple[Tensor, nn.Parameter]] = {}
        self.anchor = anchor  # inside vmap: a scalar of each row, of which every row's uses are functions

    def name_of(self, value: Any) -> str | None:
        """The name of a tracked parameter; None for anything else."""
        return self._names.get(id(value)) if isinstance(value, nn.Parameter) else None

    def turned(self, value: Any) -> nn.Parameter | None:
        """The tracked matrix of which ``value`` is the transpose, taken in this pass."""
        held = self._turned.get(id(value))
        return held[1] if held is not None else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        watch = self.watch
        if watch is None:
            return self._call(func, args, kwargs)
        watch.check(args)
        watch.check(kwargs)
        self.watch = None  # what a rule computes in between is no business of the module's
        try:
            result = self._call(func, args, kwargs)
        finally:
            self.watch = watch
        watch.mark(result)
        return result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = self._rules.get(func)
        if rule is not None and not self._of_weights_alone(args, kwargs):
            result = rule(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        if not self.reads_parameter(args) and not self.reads_parameter(kwargs.values()):
            return func(*args, **kwargs)
        return self._without_rule(func, args, kwargs)

    def _of_weights_alone(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a layer's function is called on a parameter in the place of rows, and reads nothing of a row."""
        return self._derives and bool(args) and self.name_of(args[0]) is not None and reads_no_row(args, kwargs)

    def reads_parameter(self, values: Any) -> bool:
        """Whether a tracked parameter, or the transpose of one, is among the values or in lists among them."""
        for value in values:
            if isinstance(value, nn.Parameter):
                if id(value) in self._names:
                    return True
            elif isinstance(value, list | tuple):
                if self.reads_parameter(value):
                    return True
            elif self._turned and id(value) in self._turned:
                return True
        return False

    def _without_rule(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = _name_of_function(func)
        if name in _HARMLESS or name in _HARMLESS_METHODS:
            return func(*args, **kwargs)
        parameter = args[0] if args else None
        if isinstance(parameter, nn.Parameter) and _turns(name, parameter, args[1:], kwargs):
            view = parameter.detach().t()
            self._turned[id(view)] = (view, parameter)
            return view
        if self._derives and reads_no_row(args, kwargs):
            self.has_derived = True
            return self.derived.call(func, self._mapped(args, self._history), self._mapped(kwargs, self._history))
        return self.copy_a_row(func, *args, **kwargs)

    def _mapped(self, value: Any, leaf: Callable[[Any], Any]) -> Any:
        """``value`` with every entry of its lists and dictionaries replaced by what ``leaf`` makes of it."""
        if isinstance(value, dict):
            return {key: self._mapped(entry, leaf) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._mapped(entry, leaf) for entry in value)
        turned = self.turned(value)
        return leaf(value) if turned is None else leaf(turned).t()

    def _history(self, value: Any) -> Any:
        """A tracked parameter where a value is computed from weights alone: the start of that value's history."""
        name = self.open(value)
        return value if name is None else self.derived.value_of(name, value)

    def derived_values(self) -> Derived:
        """Of the whole pass, or of one passage through a checkpointed module."""
        return Derived(self._stands_in, self._numbers)

    def let_go(self, derived: Derived) -> None:
        """Forgets its values, which nobody reads any more: their memory may be another's soon."""
        for parameter in derived.stand_ins.values():
            del self._names[id(parameter)]

    def _stands_in(self, name: str, parameter: nn.Parameter) -> None:
        """From here on a value computed from weights is a parameter to every rule."""
        self._names[id(parameter)] = name
        self.uses[name] = 2  # never resolved on its own

    def watched(self) -> dict[str, Tensor]:
        """Every tensor that autograd must not see itself: parameters, and what stands for them."""
        return {**self._tracked, **self.derived.stand_ins, **self.derived.leaves}

    def copy_a_row(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls ``func`` with a copy a row of every tracked parameter among its arguments."""
        function = _name_of_function(func)

        def copied(value: Any) -> Any:
            return self._a_copy_a_row(value, function)

        return func(*self._mapped(args, copied), **self._mapped(kwargs, copied))

    def _a_copy_a_row(self, value: Any, function: str) -> Any:
        name = self.open(value)
        if name is None:
            return value
        self.without_rule.setdefault(function, name)
        parameter = value.detach()

        def record(gradient: Tensor) -> None:
            self.enter(name, RowGradients(gradient))

        return self.lift(lambda anchor: _CopyARow.apply(parameter, anchor, record))

    def lift(self, whole: Whole, *tensors: Tensor) -> Tensor:
        """Runs ``whole`` once on all rows, from inside a row's pass; ``tensors`` are values of one row.

        A tracked parameter that stands in the place of a row's value is copied a row: autograd does not see it.
        """
        values = [self._a_copy_a_row(tensor, "an input that is learned") for tensor in tensors]
        return lifted(self.anchor, whole, *values)

    def open(self, value: Any) -> str | None:
        """Notes a use of a tracked parameter and gives its name; None for anything else."""
        name = self.name_of(value)
        if name is not None:
            if under_checkpointing():
                raise checkpointing(name)
            self.uses[name] = self.uses.get(name, 0) + 1
        return name

    def enter(self, name: str, seen: Seen) -> None:
        """Takes what one use of a parameter saw in the backward pass; resolved at once where it is the only use."""
        if self.uses.get(name) == 1:
            self._resolve(name, [seen])
        else:
            self._seen.setdefault(name, []).append(seen)

    def _resolve(self, name: str, seen: list[Seen]) -> None:
        if name in self._taken:
            raise RuntimeError(f"a use of {name} was noted twice")
        self._taken.add(name)
        self.chooser.user = name
        self.take(name, combine(self, seen))

    def gram_of(self, a: Tensor, blocks: int) -> dict[int, Tensor]:
        """Where Gram matrices of ``a`` are kept for the next use that reads the same input (queries, keys, values)."""
        if self.timing:
            return {}
        key = (a.data_ptr(), a.shape, a.stride(), blocks)
        if key not in self.grams:
            self.grams = {key: (a, {})}  # only the latest; holding ``a`` keeps its address from being used again
        return self.grams[key][1]

    def finish(self) -> dict[str, Contribution]:
        """After the backward pass: the contribution of every parameter that the loss reaches."""
        self.pull_back()
        for name, seen in self._seen.items():
            self._resolve(name, seen)
        self._seen, self.grams, self._taken = {}, {}, set()
        return self.contributions

    def pull_back(self) -> None:
        """Brings what values computed from weights have seen back to the weights."""
        found: dict[str, list[Seen]] = {}
        for value in self.derived.stand_ins:
            for name, gradient in self._pulled_back(value):
                found.setdefault(name, []).append(UnitGradients(gradient))
        for name, seen in found.items():
            if self.uses.get(name) == 1:
                self._resolve(name, seen)
            else:
                self._seen.setdefault(name, []).extend(seen)

    def _pulled_back(self, value: str) -> Iterator[tuple[str, Tensor]]:
        """What the uses of one value computed from weights give to each of these."""
        seen = self._seen.pop(value, [])
        self.chooser.user = value
        return self.derived.pulled_back(value, added_up(self, seen)) if seen else iter(())


class _CopyARow(torch.autograd.Function):
    """A parameter, repeated for every row without taking memory; its gradient is one a row."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, anchor: Tensor, record: Callable[[Tensor], None]) -> Tensor:
        ctx.record = record
        return parameter.expand(len(anchor), *parameter.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        ctx.record(grads[0])
        return None, None, None


def _name_of_function(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":  # a property: the name is that of what it belongs to
        return getattr(getattr(func, "__self__", None), "__name__", name)
    return name


def _turns(name: str, parameter: nn.Parameter, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function of this name, called on a matrix, gives its transpose."""
    if parameter.dim() != 2 or kwargs:
        return False
    if name == "transpose":
        return {dim % 2 for dim in rest} == {0, 1}
    return name in ("T", "t", "mT") and not rest


def is_parameter(value: Any) -> bool:
    """Whether a value is a parameter as the module holds it, trainable or not, and so the same for all rows."""
    return isinstance(value, nn.Parameter)


def cast_inputs(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in autocast's dtype where autocast is on, as torch's own linear maps and convolutions take them."""
    kind = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors)
