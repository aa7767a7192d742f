"""Made-up rows in the shape that a source declares: what may be timed without touching a private row."""

from __future__ import annotations

import torch

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.protocol import trainable
from dptrain.training.setup import Setup


def made_up_batch(setup: Setup, size: int, rows_per_unit: int = 1) -> PhysicalBatch:
    """A full physical batch of normal inputs and all classes in turn, on the model's device.

    Guarantee: made of public facts (``SourceInfo``) and a fixed seed; the source is not asked to load.

    Args:
        size: rows.
        rows_per_unit: rows that are one unit, side by side.
    """
    generator = torch.Generator().manual_seed(0)
    info = setup.source.info
    dtype = next(iter(trainable(setup.module).values())).dtype
    classes = max(2, info.num_classes)
    regression = info.task == "regression"
    targets = torch.zeros(size, dtype=dtype) if regression else torch.arange(size, dtype=torch.int64) % classes
    unit = torch.arange(size) // rows_per_unit
    batch = (
        torch.randn(size, *setup.spec.input_shape, generator=generator, dtype=dtype),
        targets,
        unit,
        1.0 / torch.bincount(unit)[unit].float(),
    )
    device = next(setup.module.parameters()).device
    return PhysicalBatch(*(t.to(device) for t in batch))
