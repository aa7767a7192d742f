"""Engines that compute clipped sums of per-unit gradients."""

from dptrain.gradients import loop, opacus, vmap

__all__ = ["loop", "opacus", "vmap"]
