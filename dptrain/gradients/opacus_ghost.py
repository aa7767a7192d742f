"""Opacus' ghost clipping: norms from one backward pass, the clipped sum from a second.

Opacus (Yousefpour et al. 2021; ghost clipping after Li et al. 2022) brings the hooks and the norms of each layer. Two
things of its own are not taken over. Its norms are float32, which comes out too small over a large tensor and where
Gram products cancel: here its functions are handed float64. And its second pass adds what it adds: a row whose own
terms cancel (tokens of opposite sign) would leave more rounding error in a float32 sum than its clipped gradient is
long. Such rows are clipped harder, by what their terms would be without cancellation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.clip import check_grid, clip_factor
from dptrain.gradients.draw_sum import add_parts
from dptrain.gradients.loop import LoopEngine
from dptrain.gradients.opacus_twin import Twin, hooked, refusal
from dptrain.gradients.protocol import ClippingRule, EngineSettings, RowLoss, UnitStats, trainable
from dptrain.registry import engines

LOUD = 256.0
"""Cancellation, size of a row's terms over the norm of their sum, from which the row is clipped harder."""
LARGEST_NORM = 2.0**110
"""Times C, or 1 where C is more: larger norms count as overflow, and add nothing."""
MOST_ROWS = 512
"""Rows that are added up in float32; the sums of so many are added in float64."""
CHECKED_ROWS = 4
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Passed:
    """What two passes over some rows gave."""

    parts: list[Tensor]  # clipped sum, one tensor a trainable parameter
    norms: Tensor  # (R,) float64; not finite where the gradient is not
    sizes: Tensor  # (R,) float64: size of a row's terms before they cancel, at least about its norm
    losses: Tensor  # (R,) float32


Sampler = Callable[[nn.Module, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]
"""Opacus' signature: (layer, activations, backprops (R, ...)) -> a norm (R,) or gradient (R, *shape) a parameter."""

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KNOWN = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *NORMS)
"""Layers whose rounding is looked after here; others are refused."""


class OpacusGhostEngine:
    """Clipped sums from two backward passes over one forward pass.

    Guarantee: norms are Opacus' own formulas in float64. The sum is float32 over at most 512 rows, float64 beyond: a
    slot's contribution is C (1 + r) with r measured, not proved (float class ``measured``). A row whose terms cancel
    more than 256-fold is clipped to C times (norm / size of its terms) times 256, never to more than C. A row whose
    gradient is not finite adds exactly nothing, and padding adds exactly nothing. That rows keep apart, and that the
    hooks see every gradient, is tested on the first batch of two finite rows or more against those rows alone.

    Raises:
        ConfigError: units of several rows, autocast, shared weights, a layer that is called twice, a trainable layer
            not in ``KNOWN`` or with options that tie rows together, or rows that meet in the model.
    """

    name = "opacus_ghost"
    float_class = "measured"

    def __init__(self, module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings) -> None:
        check_grid(rule)
        if settings.autocast is not None:
            dtype = str(settings.autocast).removeprefix("torch.")
            problem = f"clipping.engine={self.name} would round its sums to it, after the norms were taken"
            raise ConfigError(
                "execution.dtype", dtype, problem, "set execution.dtype=float32 or clipping.engine=bookkeeping"
            )
        _refuse_layers(module)
        self._twin = Twin(module, self.name)
        self._row_loss = row_loss
        self._rule = rule
        self._sizes: list[Tensor] = []
        self._hooks = hooked(_in_float64(self._sizes), self._twin.module, self.name, use_ghost_clipping=True)
        self._alone = LoopEngine(module, row_loss, ClippingRule(rule.clipping_norm, None), EngineSettings())
        self._checked = False

    def add_clipped_sum(self, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        """See ``Engine``."""
        parts, stats = self.clipped_parts(batch)
        add_parts(parts, total)
        return stats

    def clipped_parts(self, batch: PhysicalBatch) -> tuple[list[Tensor], UnitStats]:
        """The clipped sum, one tensor a trainable parameter, not rounded to the grid. See ``SumsInParts``."""
        live = batch.weight != 0
        if len(torch.unique(batch.unit[live])) < int(live.sum()):
            raise ConfigError(
                "clipping.engine", self.name, "clips rows, and here units have several", "set clipping.engine=auto"
            )
        self._twin.follow()
        passed = self._passes(batch)
        if not self._checked:
            self._check(batch, passed)
        parts = passed.parts
        if self._rule.grid is not None:
            parts = [part.double().div_(self._rule.grid) for part in parts]
        norms = torch.where(passed.norms < self._largest, passed.norms, float("inf"))[live]
        norms = torch.zeros_like(passed.norms).index_copy_(0, batch.unit[live], norms)
        return parts, UnitStats(norms, passed.losses)

    def _passes(self, batch: PhysicalBatch) -> Passed:
        """Two passes over every run of rows; what the runs give added up in float64."""
        runs = []
        for run in _runs(batch):
            passed = self._two_passes(run)
            fine = passed.norms < self._largest
            if not bool(fine.all()):  # a row without a finite norm spoils the sum, even at factor 0
                passed = replace(passed, parts=self._two_passes(_rows(run, torch.nonzero(fine).flatten())).parts)
            runs.append(passed)
        if len(runs) == 1:
            return runs[0]
        parts = [
            torch.stack([one.double() for one in own]).sum(0) for own in zip(*(r.parts for r in runs), strict=True)
        ]
        return Passed(
            parts,
            torch.cat([r.norms for r in runs]),
            torch.cat([r.sizes for r in runs]),
            torch.cat([r.losses for r in runs]),
        )

    @property
    def _largest(self) -> float:
        return LARGEST_NORM * min(self._rule.clipping_norm, 1.0)

    def _two_passes(self, batch: PhysicalBatch) -> Passed:
        """Norms from the first pass, the sum from the second, which is spoilt unless every norm is finite."""
        moving = trainable(self._twin.module)
        if not len(batch.weight):
            return Passed(
                [torch.zeros_like(p) for p in moving.values()], *torch.zeros((3, 0), device=batch.weight.device)
            )
        _forget(self._twin.module)
        self._sizes.clear()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
                self._hooks.enable_hooks()
                losses = self._row_loss(self._twin.module(batch.inputs), batch.targets)
                weighted = losses * batch.weight.to(losses.dtype)
                first = _gradients(weighted.sum(), moving, keep=True)
                norms, sizes = _collected(moving, first, self._sizes, len(batch.weight))
                del first
                self._hooks.disable_hooks()
                factor = self._factor(norms, sizes, sum(p.numel() for p in moving.values()))
                factor = torch.where(batch.weight != 0, factor, 0.0).to(weighted.dtype)
                second = _gradients((weighted * factor).sum(), moving, keep=False)
        except NotImplementedError as error:
            raise refusal(self.name, f"a layer is called twice or shared ({error})") from error
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(moving.values(), second, strict=True)]
        return Passed(parts, norms, sizes, losses.detach().float())

    def _factor(self, norms: Tensor, sizes: Tensor, size: int) -> Tensor:
        """What each row's loss is multiplied by in the second pass, in the gradient's own unit."""
        factor = clip_factor(torch.maximum(norms, sizes / LOUD), replace(self._rule, grid=None), size)
        return torch.where(norms < self._largest, factor, 0.0)

    def _check(self, batch: PhysicalBatch, passed: Passed) -> None:
        """Compares a few rows, together, with each of them alone; once, when there are two that say anything."""
        norms = passed.norms
        telling = (batch.weight != 0) & (norms < self._largest) & (norms > 0) & (passed.sizes < norms * LOUD / 8)
        few = _rows(batch, torch.nonzero(telling).flatten()[:CHECKED_ROWS])
        if len(few.weight) < 2:
            return
        together = self._two_passes(few)
        sums = torch.zeros(sum(p.numel() for p in together.parts), dtype=torch.float64, device=norms.device)
        found = sums.clone()
        add_parts(together.parts, found)
        alone = self._alone.add_clipped_sum(few, sums).norms
        if bool(((norms[telling][:CHECKED_ROWS] - together.norms).abs() > TOLERANCE * together.norms).any()):
            raise refusal(
                self.name, "a row's gradient is another in other company: rows meet, or the model draws random numbers"
            )
        allowed = TOLERANCE * alone.clamp(max=self._rule.clipping_norm).sum()
        if bool(((alone - together.norms).abs() > TOLERANCE * alone).any()) or bool((sums - found).norm() > allowed):
            problem = "rows alone have other gradients than Opacus finds: a weight is used outside its own layer, "
            raise refusal(self.name, problem + "rows meet, or the model draws random numbers")
        self._checked = True


def _rows(batch: PhysicalBatch, rows: Tensor) -> PhysicalBatch:
    """Some rows of a batch, each in a slot of its own."""
    unit = torch.arange(len(rows), device=rows.device)
    return PhysicalBatch(batch.inputs[rows], batch.targets[rows], unit, batch.weight[rows])


def _runs(batch: PhysicalBatch) -> Iterator[PhysicalBatch]:
    """The batch in runs of at most ``MOST_ROWS`` rows."""
    for start in range(0, len(batch.weight), MOST_ROWS):
        run = slice(start, start + MOST_ROWS)
        yield PhysicalBatch(batch.inputs[run], batch.targets[run], batch.unit[run], batch.weight[run])


def _gradients(loss: Tensor, moving: dict[str, nn.Parameter], keep: bool) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, list(moving.values()), allow_unused=True, retain_graph=keep)


def _forget(module: nn.Module) -> None:
    """Removes what hooks left of a pass in which some layer was not reached, or that ended early."""
    for layer in module.modules():
        held: Any = layer
        held.__dict__.pop("activations", None)
        held.__dict__.pop("max_batch_len", None)
    for parameter in module.parameters():
        kept: Any = parameter
        kept._forward_counter = 0
        kept._norm_sample = kept.grad_sample = None
        kept.__dict__.pop("_current_grad_sample", None)


def _collected(
    moving: dict[str, nn.Parameter], gradients: Sequence[Tensor | None], sizes: list[Tensor], rows: int
) -> tuple[Tensor, Tensor]:
    """(R,) float64: norms of rows over all parameters, and sizes of their terms."""
    device = next(iter(moving.values())).device
    squared, size = torch.zeros((2, rows), dtype=torch.float64, device=device)
    for (name, parameter), gradient in zip(moving.items(), gradients, strict=True):
        held: Any = parameter
        norm = held._norm_sample
        if norm is None and gradient is None:
            continue
        if norm is None or norm.shape != (rows,):
            raise refusal(OpacusGhostEngine.name, f"Opacus has no norm of each row for parameter {name}")
        squared = squared + norm.double().square()
        held._norm_sample = None
    for part in sizes:
        if part.shape != (rows,):
            raise refusal(OpacusGhostEngine.name, "a layer's first dimension is not the batch")
        size = size + part.square()
    return squared.sqrt(), size.sqrt()


def _in_float64(sizes: list[Tensor]) -> Any:
    """Opacus' module with every norm taken in float64, each layer leaving the (R,) size of its terms in ``sizes``."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    def wrapped(sampler: Sampler) -> Sampler:
        def sample(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
            inputs, out = activations[0], backprops.detach().double()
            if inputs.is_floating_point():
                inputs = inputs.double()
            if isinstance(layer, nn.Linear) and out.dim() > 3:
                inputs, out = inputs.flatten(1, -2), out.flatten(1, -2)
            if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
                out = out.masked_fill((inputs == layer.padding_idx)[..., None], 0.0)
            found = sampler(layer, [inputs], out)
            if not isinstance(layer, NORMS):
                sizes.append(_size_of_terms(layer, inputs, out))
            else:
                plain = sampler(layer, [inputs.float()], out.float())
                off = torch.stack([(plain[p] - exact).flatten(1).square().sum(1) for p, exact in found.items()])
                sizes.append(off.sum(0).sqrt() * 2.0**24)  # terms of which rounding is that much, as far as seen
            return found

        return sample

    class InFloat64(GradSampleModuleFastGradientClipping):
        NORM_SAMPLERS: ClassVar[dict[type, Sampler]] = {
            kind: wrapped(f) for kind, f in GradSampleModuleFastGradientClipping.NORM_SAMPLERS.items()
        }
        GRAD_SAMPLERS: ClassVar[dict[type, Sampler]] = {
            kind: wrapped(f) if kind in KNOWN else f
            for kind, f in GradSampleModuleFastGradientClipping.GRAD_SAMPLERS.items()
        }

    return InFloat64


def _size_of_terms(layer: nn.Module, inputs: Tensor, out: Tensor) -> Tensor:
    """(R,) float64: sum over t of |a_t| |g_t|, or more; a_t an input, 1 for a bias, g_t the gradient of an output."""
    if isinstance(layer, CONVOLUTIONS):
        # sum |a_t| |g_t| <= (sum |a_t|^2 sum |g_t|^2)^1/2, and every input lies in as many patches as the kernel has
        # places at most.
        places = out[0, 0].numel()
        bias = places if layer.bias is not None else 0
        reach = inputs.flatten(1).square().sum(1) * math.prod(layer.kernel_size) + bias
        return (reach * out.flatten(1).square().sum(1)).sqrt()
    norms = torch.linalg.vector_norm(out.flatten(1, -2) if out.dim() > 2 else out[:, None], dim=2)  # (R, T)
    if isinstance(layer, nn.Embedding):
        return norms.sum(1)
    reach = torch.linalg.vector_norm(inputs.flatten(1, -2) if inputs.dim() > 2 else inputs[:, None], dim=2)
    bias = 1.0 if isinstance(layer, nn.Linear) and layer.bias is not None else 0.0
    return ((reach.square() + bias).sqrt() * norms).sum(1)


def _refuse_layers(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if not any(p.requires_grad for p in layer.parameters(recurse=False)):
            continue
        shown = f"layer {name or 'model'} ({type(layer).__name__})"
        if any(True for _ in layer.buffers(recurse=False)):
            raise refusal(OpacusGhostEngine.name, f"{shown} has buffers")
        if type(layer) not in KNOWN:
            raise refusal(OpacusGhostEngine.name, f"{shown} has no ghost norm whose rounding is bounded")
        if isinstance(layer, nn.Embedding) and (layer.scale_grad_by_freq or layer.max_norm or layer.sparse):
            raise refusal(OpacusGhostEngine.name, f"{shown} has scale_grad_by_freq, max_norm or sparse set")


@engines.register("opacus_ghost")
def opacus_ghost_engine(
    module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings
) -> OpacusGhostEngine:
    """Norms and sum by two backward passes; records, in float32, of models of a few kinds of layers."""
    return OpacusGhostEngine(module, row_loss, rule, settings)
