"""Loops compiled by numba, where it is installed (extra ``fast``). Modules that hold such loops are imported late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def loop(function: Callable[..., Any]) -> Any:
    """Compiles a loop over arrays on its first call; compiled code is kept for later processes where there is a folder.

    A product and a sum may become one operation, which rounds once in place of twice. Other threads run meanwhile.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # there is no folder to keep compiled code in
        return numba.njit(function, **options)
