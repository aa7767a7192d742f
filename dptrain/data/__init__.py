"""Sources of rows, the Poisson sampler and physical batches. Importing it registers the sources that dptrain ships."""

from __future__ import annotations

from dptrain.data import digits, idx_images

__all__ = ["digits", "idx_images"]
