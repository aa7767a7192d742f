"""What several of the mistakes are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Patch = Callable[[Any, str, Any], None]
Mutant = tuple[str, str, Callable[[Patch], None], tuple[str, ...]]
VMAP = ("clipping.engine=vmap",)
FAST = ("privacy.noise=fast",)
HOOKS = ("clipping.engine=opacus_hooks",)


@contextmanager
def temporarily(owner: Any, name: str, value: Any) -> Iterator[None]:
    held = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, held)
