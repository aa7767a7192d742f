"""Engines that compute clipped sums of per-unit gradients."""
