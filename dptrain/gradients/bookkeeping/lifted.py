"""From inside one row's pass: an operation that runs once, on all rows.

torch offers this for an ``autograd.Function`` with a ``vmap`` rule, at half a millisecond a call, most of it spent on
looking at arguments of any shape. The direct way does for tensors what that rule does: it takes the rows out of their
wrapping, steps out of vmap, computes, and wraps the result. It stands on names that torch does not promise to keep;
where one is gone, the rule is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as core  # pyright: ignore[reportAttributeAccessIssue]

Whole = Callable[..., Tensor]
"""(anchor (R,), *tensors (R, ...)) -> (R, ...): an operation on all rows at once."""

NESTED = "a trainable parameter inside a transform of the model's own"

_NAMES = "_add_batch_dim get_unwrapped is_batchedtensor maybe_current_level maybe_get_bdim maybe_get_level"
DIRECT = all(hasattr(core, n) for n in (*_NAMES.split(), "pop_dynamic_layer_stack", "push_dynamic_layer_stack"))


def lifted(anchor: Tensor | None, whole: Whole, *tensors: Tensor) -> Tensor:
    """Runs ``whole`` once on all rows.

    Args:
        anchor: a scalar of each row, as seen inside vmap.
        whole: see ``Whole``.
        tensors: values of one row, as seen inside vmap; what all rows share is repeated for every row.
    """
    assert anchor is not None, "a lifted operation was called outside a pass"
    return _direct(anchor, whole, *tensors)[0] if direct() else _Lifted.apply(whole, anchor, *tensors)


def lifted_all(anchor: Tensor | None, whole: Callable[..., Sequence[Tensor]], *tensors: Tensor) -> list[Tensor]:
    """The same for an operation with any number of results; by the direct way alone.

    Raises:
        RuntimeError: torch's names are gone, or it is called inside a transform of the model's own.
    """
    assert anchor is not None, "a lifted operation was called outside a pass"
    if not direct():
        raise RuntimeError("this release of torch offers no way out of vmap")
    return _direct(anchor, whole, *tensors)


def direct() -> bool:
    """Whether the direct way is open: torch's names are there, and nobody compiles what is going on."""
    return DIRECT and not torch.compiler.is_compiling()


def _direct(anchor: Tensor, whole: Callable[..., Tensor | Sequence[Tensor]], *tensors: Tensor) -> list[Tensor]:
    level: Any = core.maybe_current_level()
    if not _in_rows(anchor, level):
        raise RuntimeError(NESTED)
    size = len(core.get_unwrapped(anchor))
    rows = [
        core.get_unwrapped(t).movedim(core.maybe_get_bdim(t), 0) if _in_rows(t, level) else t.expand(size, *t.shape)
        for t in tensors
    ]
    outside = core.pop_dynamic_layer_stack()
    try:
        out = whole(core.get_unwrapped(anchor), *rows)
    finally:
        core.push_dynamic_layer_stack(outside)
    return [core._add_batch_dim(one, 0, level) for one in ([out] if isinstance(out, Tensor) else out)]


def _in_rows(value: Tensor, level: Any) -> bool:
    return core.is_batchedtensor(value) and core.maybe_get_level(value) == level


def is_of_rows(value: Tensor) -> bool:
    """Whether a tensor seen inside vmap is a row's own, rather than the same for all."""
    return core.is_batchedtensor(value)


class _Lifted(torch.autograd.Function):
    @staticmethod
    def forward(whole: Whole, anchor: Tensor, *tensors: Tensor) -> Tensor:
        raise RuntimeError("a lifted operation was called outside vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Tensor, int]:
        whole: Whole = args[0]
        anchor: Tensor = args[1]
        tensors: tuple[Tensor, ...] = args[2:]
        if in_dims[1] is None:
            raise RuntimeError(NESTED)
        rows = []
        for tensor, dim in zip(tensors, in_dims[2:], strict=True):
            if dim is None:
                rows.append(tensor.expand(info.batch_size, *tensor.shape))
            else:
                rows.append(tensor.movedim(dim, 0))
        return whole(anchor, *rows), 0
