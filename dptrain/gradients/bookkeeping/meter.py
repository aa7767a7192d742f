"""Bytes of the tensors that come into being while a piece of code runs, and are alive at once."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Meter(TorchDispatchMode):
    """Counts every tensor that torch makes under it, on any device, until its memory is let go.

    What a kernel takes for itself and gives back before it returns is not seen, nor what the C library loses between
    tensors. Only sizes are read, never values. A call costs some microseconds of Python: for one pass, not for all.

    Attributes:
        now: bytes alive.
        most: largest ``now`` so far.
        marks: ``now`` at every ``mark``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self.marks: list[int] = []
        self._alive: dict[int, int] = {}

    def mark(self) -> None:
        """Keeps ``now``."""
        self.marks.append(self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        found = None
        for value in pytree.tree_leaves(result):
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            address = storage._cdata
            if address in self._alive:
                continue
            if found is None:
                found = {
                    v.untyped_storage()._cdata for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)
                }
            if address not in found:  # otherwise a view of what was there before
                self._enter(storage, address)
        return result

    def _enter(self, storage: torch.UntypedStorage, address: int) -> None:
        size = self._alive[address] = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._leave, address).atexit = False

    def _leave(self, address: int) -> None:
        self.now -= self._alive.pop(address)
