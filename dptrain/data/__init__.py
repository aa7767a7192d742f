"""Sources of rows, the Poisson sampler and physical batches. Importing it registers the sources that dptrain ships."""

from __future__ import annotations

from dptrain.data import adult, digits, idx_images, image_folder, table

__all__ = ["adult", "digits", "idx_images", "image_folder", "table"]
