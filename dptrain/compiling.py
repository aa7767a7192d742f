"""Loops compiled by numba, where it is installed (extra ``fast``). Modules that hold such loops are imported late."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba


def loop(function: Callable[..., Any] | None = None, *, any_order: bool = False, inline: bool = False) -> Any:
    """Compiles a loop over arrays on its first call; compiled code is kept for later processes where there is a folder.

    A product and a sum may become one operation, which rounds once in place of twice. Other threads run meanwhile.

    Args:
        function: the loop; None gives a decorator.
        any_order: whether sums may be taken in any order, and so several terms at a time; NaN and infinity stay.
        inline: whether it becomes a part of the loops that call it.
    """
    if function is None:
        return partial(loop, any_order=any_order, inline=inline)
    allowed = {"contract", "reassoc", "nsz"} if any_order else {"contract"}
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": allowed}
    if inline:
        return numba.njit(function, inline="always", **options)
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # there is no folder to keep compiled code in
        return numba.njit(function, **options)
