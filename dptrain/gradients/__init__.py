"""Engines that compute clipped sums of per-unit gradients."""

from dptrain.gradients import loop, opacus_ghost, opacus_hooks, vmap
from dptrain.gradients.bookkeeping import engine

__all__ = ["engine", "loop", "opacus_ghost", "opacus_hooks", "vmap"]
