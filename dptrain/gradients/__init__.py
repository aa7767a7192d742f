"""Engines that compute clipped sums of per-unit gradients."""

from dptrain.gradients import loop, opacus, vmap
from dptrain.gradients.bookkeeping import engine as bookkeeping

__all__ = ["bookkeeping", "loop", "opacus", "vmap"]
