"""What both engines on Opacus' hooks share: a twin of the caller's module to hang the hooks on, and refusals."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from dptrain.errors import ConfigError


class Twin:
    """A copy of a module with modules and parameter objects of its own, over the same memory.

    The hooks sit on it, so that the caller's module, its parameters, its ``.grad`` fields and its ``state_dict`` stay
    as they are.

    Args:
        module: the caller's.
        engine: name of the engine, for refusals.

    Raises:
        ConfigError: two names stand for one parameter.
    """

    def __init__(self, module: nn.Module, engine: str) -> None:
        _refuse_shared_weights(module, engine)
        self._given = module
        memo: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=p.requires_grad) for p in module.parameters()}
        self.module = copy.deepcopy(module, memo)

    def follow(self) -> None:
        """Points the twin at the caller's present weights and modes, and at copies of its buffers."""
        with torch.no_grad():
            for own, given in zip(self.module.parameters(), self._given.parameters(), strict=True):
                own.data = given.data
            # Clones: what a forward pass writes into a buffer came from private rows and must not reach the caller.
            for own, given in zip(self.module.buffers(), self._given.buffers(), strict=True):
                own.data = given.data.clone()
        for own, given in zip(self.module.modules(), self._given.modules(), strict=True):
            own.training = given.training


def hooked(kind: Any, module: nn.Module, engine: str, **settings: Any) -> Any:
    """``kind(module, loss_reduction="sum", **settings)``, Opacus' own refusals phrased in one line."""
    try:
        return kind(module, loss_reduction="sum", **settings)
    except NotImplementedError as error:
        for name, layer in module.named_modules():
            if list(layer.parameters(recurse=False)) and list(layer.buffers()):
                raise refusal(engine, f"layer {name or 'model'} ({type(layer).__name__}) has buffers") from error
        raise refusal(engine, str(error)[:200]) from error


def refusal(engine: str, problem: str) -> ConfigError:
    """What an engine on Opacus' hooks says to a model that it cannot run."""
    return ConfigError(
        "clipping.engine",
        engine,
        problem,
        "set clipping.engine=auto or clipping.engine=vmap, which run rows one by one",
    )


def _refuse_shared_weights(module: nn.Module, engine: str) -> None:
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            raise refusal(engine, f"{other} and {name} are one shared parameter, which the hooks cannot tell apart")
