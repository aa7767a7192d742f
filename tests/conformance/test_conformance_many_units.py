"""Batches of tens of thousands of units: honest engines pass, and what ends at some number of units is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dptrain.conformance.many_units import MANY, loss, many_units, unit_gradients
from dptrain.conformance.stand import Stand
from dptrain.data.batches import PhysicalBatch
from dptrain.data.source import Rows
from dptrain.gradients import recompute
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.training import assemble


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "opacus_hooks", "opacus_ghost", "loop"])
def test_honest_engines_pass(engine: str, stands: Callable[..., Stand]) -> None:
    found = many_units(stands(f"clipping.engine={engine}"))
    assert found.passed, found.says
    assert (f"{MANY} units" in found.says) == (engine != "loop")


@pytest.mark.parametrize("words", [["execution.dtype=float64"], ["privacy.noise=fast"], ["execution.dtype=bfloat16"]])
def test_other_settings_pass(words: list[str], stands: Callable[..., Stand]) -> None:
    assert many_units(stands(*words)).passed


def test_the_gradients_it_compares_with_are_those_of_autograd() -> None:
    generator = torch.Generator().manual_seed(1)
    unit = torch.tensor([1, 0, 2, 1, 2, 2])
    rows = Rows(torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 1, 0, 1, 0]), unit)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2))
    batch = PhysicalBatch(rows.inputs, rows.targets, unit, 1.0 / torch.bincount(unit)[unit].float())
    wanted = torch.stack(list(recompute.unit_gradients(module, loss, batch, torch.arange(3))))
    assert torch.allclose(unit_gradients(module, rows), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 15, 16])
def test_slots_of_few_bits_are_found(bits: int, stands: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    original = assemble.physical_batches

    def few(*given: Any) -> Iterator[PhysicalBatch]:
        for batch in original(*given):
            yield replace(batch, unit=batch.unit % 2**bits)

    monkeypatch.setattr(assemble, "physical_batches", few)
    found = many_units(stands())
    assert found.passed is False and "units are clipped where" in found.says


def test_one_unit_of_seventy_thousand_that_is_lost_is_found(
    stands: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last unit's gradient counts as that of the first."""
    original = assemble.physical_batches

    def lost(*given: Any) -> Iterator[PhysicalBatch]:
        for batch in original(*given):
            weight = batch.weight.clone()
            weight[batch.unit == 65_536] *= 1e-3
            yield replace(batch, weight=weight)

    monkeypatch.setattr(assemble, "physical_batches", lost)
    assert many_units(stands()).passed is False


def test_norms_that_are_low_behind_some_unit_are_found(
    stands: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BookkeepingEngine._clip

    def low(self: Any, found: Any, groups: Any, size: int) -> tuple[Tensor, Tensor]:
        norms, factors = original(self, found, groups, size)
        norms[32_768:] *= 0.999
        return norms, factors

    monkeypatch.setattr(BookkeepingEngine, "_clip", low)
    found = many_units(stands())
    assert found.passed is False and "below the true one" in found.says
