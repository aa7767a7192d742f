"""Gradient checkpointing: which modules are passed through again in the backward pass, by patterns of their names."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.lifted import is_of_rows, lifted_all
from dptrain.gradients.bookkeeping.recomputed import Passage
from dptrain.gradients.bookkeeping.tape import Tape

FIELD = "execution.checkpoint"


def checkpointed_modules(module: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that patterns name, outermost ones only.

    Args:
        patterns: as ``fnmatch`` reads them, where ``*`` goes over dots, too; matched against ``named_modules``.

    Raises:
        ConfigError: a pattern names no module, only lists of modules, or only modules inside of ones that are named.
    """
    names = {name: part for name, part in module.named_modules() if name}
    matched = {p: [name for name in names if fnmatch.fnmatchcase(name, p)] for p in patterns}
    chosen: dict[str, nn.Module] = {}
    for name, part in names.items():  # a module comes before those inside of it
        inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if not inside and _passes_forward(part) and any(name in found for found in matched.values()):
            chosen[name] = part
    for pattern, found in matched.items():
        if not found:
            shown = _suggestion(names)
            raise ConfigError(FIELD, pattern, "matches no module of this model", f"try {shown}" if shown else "drop it")
        if not any(_passes_forward(names[name]) for name in found):
            raise ConfigError(
                FIELD, pattern, "is a list of modules, without a forward pass of its own", f"write {found[0]}.*"
            )
        if not any(name in chosen for name in found):
            outer = next(outer for outer in chosen if any(name.startswith(f"{outer}.") for name in found))
            raise ConfigError(
                FIELD,
                pattern,
                f"lies inside {outer}, which another pattern names, and parts cannot be nested",
                "drop one of the two",
            )
    return chosen


def _passes_forward(part: nn.Module) -> bool:
    return type(part).forward is not nn.Module.forward


def _suggestion(names: Mapping[str, nn.Module]) -> str:
    """Patterns that do name something: the longest list of modules first."""
    lists = [(len(part), name) for name, part in names.items() if isinstance(part, nn.ModuleList | nn.Sequential)]
    if lists:
        return f"{max(lists, key=lambda found: found[0])[1]}.*"
    return ", ".join([name for name in names if "." not in name][:3])


@contextlib.contextmanager
def replaced(modules: Mapping[str, nn.Module], tape: Tape) -> Iterator[None]:
    """For as long as it lasts, calls of these modules go through ``Passage``."""
    before = {name: part.__dict__.get("forward") for name, part in modules.items()}
    try:
        for name, part in modules.items():
            part.__dict__["forward"] = partial(_call, name, part, part.forward, tape)
        yield
    finally:
        for name, part in modules.items():
            part.__dict__.pop("forward", None)
            if before[name] is not None:
                part.__dict__["forward"] = before[name]


def _call(name: str, part: nn.Module, forward: Callable[..., Any], tape: Tape, *args: Any, **kwargs: Any) -> Any:
    """A checkpointed module's forward pass, called from inside a row's pass."""
    if not torch.is_grad_enabled() or tape.watch is not None:
        return forward(*args, **kwargs)  # nothing is kept, or it is part of a passage that is under way
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [place for place, value in enumerate(leaves) if isinstance(value, Tensor) and is_of_rows(value)]
    rows = [leaves[place] for place in places]
    for place in places:
        leaves[place] = None
    passage = Passage(name, part, forward, tape, leaves, places, spec)
    found = lifted_all(tape.anchor, passage.first, *rows)
    outputs, spec = passage.outputs, passage.out_spec
    passage.outputs = []
    assert spec is not None
    for place, number in passage.numbers.items():
        outputs[place] = found[number]
    return pytree.tree_unflatten(outputs, spec)
