"""Convolutions of one, two or three dimensions, with stride, padding, dilation and groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dptrain.gradients.bookkeeping.choice import Way
from dptrain.gradients.bookkeeping.contribution import Contribution, PerUnit, in_runs
from dptrain.gradients.bookkeeping.norms import loud_units, squared_norms, unsafe_units
from dptrain.gradients.bookkeeping.seen import MOST_KEPT, RowGradients, Tokens, wide
from dptrain.gradients.bookkeeping.tape import Tape, cast_inputs, is_parameter

aten = torch.ops.aten
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
KEPT = ("loop", "grouped", "bands", "unfolded", "tiles")
"""Ways that hold gradients as they are."""
MUCH = 2
"""Times what a convolution saw: gradients that take more are not held."""
BAND = 1 << 18
"""Values of bands made at once: 1 MiB in float32."""
MOST_COLUMNS = 1 << 26
"""Bytes of unfolded inputs beyond which ways that unfold them whole are not tried."""
SURELY_SMALL = 1 << 20
"""Bytes of unfolded inputs up to which nothing is lost by trying."""
FEW_OUTPUTS = 8
"""Outputs of a group under which a tile of compiled loops would be mostly empty."""
MOST_GRAM_PLACES = 256
"""Most places of an output for which Gram matrices are tried: beyond, they cost more than the gradients."""


@dataclass(frozen=True)
class Shape:
    """What a convolution is, beside its tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def weight_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the weight, summed over the N images of x (N, C, *S) and g (N, O, *S')."""
        return self._backward(g, x, weight, [False, True, False])[1]

    def input_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """(N, C, *S) gradient of the input."""
        return self._backward(g, x, weight, [True, False, False])[0]

    def _backward(self, g: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> Any:
        nothing = [0] * len(self.stride)
        return aten.convolution_backward(
            g, x, weight, None, self.stride, self.padding, self.dilation, False, nothing, self.groups, mask
        )


def convolution_rule(tape: Tape, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``F.conv1d``, ``F.conv2d``, ``F.conv3d``: input (1, C, *S), weight (O, C / groups, *K), bias (O,) or None, ..."""
    return _convolution(tape, *args, **kwargs)


def _convolution(
    tape: Tape,
    input: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not is_parameter(weight) or not (bias is None or is_parameter(bias)):
        return NotImplemented
    dims = weight.dim() - 2
    if input.dim() == dims + 1:
        return _convolution(tape, input[None], weight, bias, stride, padding, dilation, groups).squeeze(0)
    step, spread = _tuple(stride, dims), _tuple(dilation, dims)
    if isinstance(padding, str):
        input, padding = _explicit_padding(input, padding, weight.shape[2:], spread)
    shape = Shape(step, _tuple(padding, dims), spread, int(groups))
    x, kernel, offset = cast_inputs(input, weight.detach(), None if bias is None else bias.detach())
    record = ConvolutionRecord(tape, tape.open(weight), tape.open(bias), kernel, shape)

    def whole(anchor: Tensor, rows: Tensor) -> Tensor:
        images = rows.flatten(0, 1)
        if record.weight is None and record.bias is None:
            out = CONVOLVE[dims](images, kernel, offset, step, shape.padding, spread, shape.groups)
        else:
            out = _Convolution.apply(images, kernel, offset, anchor, record)
        return out.unflatten(0, rows.shape[:2])

    return tape.lift(whole, x)


def _explicit_padding(x: Tensor, padding: str, kernel: Any, dilation: tuple[int, ...]) -> tuple[Tensor, int]:
    if padding == "valid":
        return x, 0
    ends: list[int] = []
    for size, spread in zip(reversed(kernel), reversed(dilation), strict=True):
        total = spread * (size - 1)
        ends += [total // 2, total - total // 2]
    return F.pad(x, ends), 0


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


@dataclass(frozen=True)
class ConvolutionRecord:
    """Takes what one convolution saw, and enters its contributions."""

    tape: Tape
    weight: str | None
    bias: str | None
    kernel: Tensor
    shape: Shape

    def enter(self, x: Tensor, g: Tensor) -> None:
        """x: (R M, C, *S) inputs; g: (R M, O, *S') gradients of outputs, M images a row."""
        rows = self.tape.num_rows
        g = wide(g).unflatten(0, (rows, -1))
        if self.bias is not None:
            self.tape.enter(self.bias, RowGradients(g.flatten(3).sum((1, 3))))
        if self.weight is not None:
            x = wide(x).unflatten(0, (rows, -1))
            groups = self.tape.groups
            images = groups.gather(x).flatten(1, 2), groups.gather(g).flatten(1, 2)
            self.tape.enter(self.weight, Convolved(*images, wide(self.kernel), self.shape))


class _Convolution(torch.autograd.Function):
    """A convolution that leaves no gradient of the weight but a record."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, anchor: Tensor, record: ConvolutionRecord) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.record = record
        shape = record.shape
        return CONVOLVE[x.dim() - 2](x, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, weight = ctx.saved_tensors
        g = grads[0].contiguous()
        ctx.record.enter(x, g)
        dx = ctx.record.shape.input_gradient(g, x, weight) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


@dataclass
class Convolved:
    """A convolution's inputs and output gradients.

    Six ways to a unit's gradient: torch's kernel called unit by unit; one grouped convolution for all units, with
    units in the place of channels; matrix products with bands of the input; one with unfolded inputs; compiled loops
    over tiles of the gradient; and, for few places, Gram matrices of the unfolded inputs. And one to its norm alone:
    Gram matrices of the pictures. None is the quickest everywhere (docs/results/step_cost.md).
    """

    x: Tensor  # (U, M, C, *S)
    g: Tensor  # (U, M, O, *S')
    kernel: Tensor  # (O, C / groups, *K): for its shape
    shape: Shape

    def resolve(self, tape: Tape) -> Contribution:
        ways = self._ways(tape)
        held = len(self.x) * self.kernel.numel() * self.x.element_size()
        if held > max(MOST_KEPT, MUCH * (self.x.nbytes + self.g.nbytes)):
            ways = {name: way for name, way in ways.items() if name not in KEPT}
        return tape.chooser.take(self._key, ways, len(self.x), lambda few: self._first(few)._ways(tape))

    def kept(self, tape: Tape) -> PerUnit:
        ways = {name: way for name, way in self._ways(tape).items() if name in KEPT}
        found = tape.chooser.take((*self._key, "kept"), ways, len(self.x), lambda few: self._first(few)._ways(tape))
        return found if isinstance(found, PerUnit) else PerUnit(found.per_unit())

    def _first(self, units: int) -> Convolved:
        return replace(self, x=self.x[:units], g=self.g[:units])

    @property
    def _key(self) -> tuple[Any, ...]:
        kind = (tuple(self.x.shape[1:]), tuple(self.kernel.shape), self.shape)
        return "convolved", *kind, self.x.dtype, str(self.x.device)

    def _ways(self, tape: Tape) -> dict[str, Way]:
        ways: dict[str, Way] = {
            "loop": lambda: self.held(self.looped),
            "grouped": lambda: self.held(self.grouped),
            "loop, again": lambda: self.again(self.looped),
            "grouped, again": lambda: self.again(self.grouped),
        }
        if tape.chooser.compiled and self._fits_tiles:
            ways["tiles"] = lambda: self.held(self.tiled, turned=(1, 2), whole=self.kernel.shape)
            ways["tiles, again"] = lambda: self.again(self.tiled)
            if self._fits_pictures:
                ways["pictures, again"] = self.by_pictures
        if self.x.dim() == 5 and self.shape.groups == 1:
            ways["bands"] = lambda: self.held(self.banded, turned=(1, 2))
            ways["bands, again"] = lambda: self.again(self.banded)
            outputs, places = self.g.shape[2], math.prod(self.g.shape[3:])
            patch = math.prod(self.kernel.shape[1:])
            columns = self.x.shape[0] * self.x.shape[1] * patch * places * self.x.element_size()
            if columns > MOST_COLUMNS:
                return ways
            ways["unfolded"] = lambda: self.held(self.unfolded)
            pays = columns <= SURELY_SMALL or places * (patch + outputs) <= 4 * patch * outputs
            # On a GPU Gram norms are raised, and then norms would depend on the way.
            if places <= MOST_GRAM_PLACES and pays and not self.x.is_cuda:
                ways["gram"] = lambda: self.tokens().outer(tape, 1).reshaped(self.kernel.shape)
        return ways

    def looped(self) -> Tensor:
        """(U, *K) by torch's own kernel, unit by unit."""
        out = self.x.new_empty((len(self.x), *self.kernel.shape))
        for own, g, x in zip(out.unbind(), self.g.unbind(), self.x.unbind(), strict=True):
            own.copy_(self.shape.weight_gradient(g, x, self.kernel))
        return out

    def grouped(self) -> Tensor:
        """(U, *K) as one convolution: the weight's gradient is the input convolved with the output's gradient."""
        units, channels = self.x.shape[0], self.x.shape[2]
        groups, outputs = self.shape.groups, self.g.shape[2]
        dims = self.x.dim() - 3
        split = self.x.unflatten(2, (groups, channels // groups))  # (U, M, gr, c, *S)
        x = split.movedim(3, 0).transpose(2, 3).flatten(1, 3)  # (c, U gr M, *S)
        g = self.g.unflatten(2, (groups, outputs // groups)).movedim(1, 3).flatten(0, 2)  # (U gr o, M, *S')
        out = CONVOLVE[dims](x, g, None, self.shape.dilation, self.shape.padding, self.shape.stride, units * groups)
        for dim, size in enumerate(self.kernel.shape[2:]):
            out = out.narrow(2 + dim, 0, size)
        return out.movedim(0, 1).unflatten(0, (units, outputs)).contiguous()

    def banded(self) -> Tensor:
        """(U, O, Kh, C, Kw) as Kh matrix products a unit, for two dimensions without groups.

        Inputs are unfolded along the width alone (C Kw rows of bands); the rows of the picture that row i of the kernel
        meets then lie side by side, and are read in place. A few units at a time, so that bands stay in cache.
        """
        units, images, channels = self.x.shape[:3]
        outputs, high, wide = self.g.shape[2:]
        kernel_h, kernel_w = self.kernel.shape[2:]
        (down, right), (reach_h, reach_w) = self.shape.stride, self.shape.dilation
        pad_h, pad_w = self.shape.padding
        lines = high + ((kernel_h - 1) * reach_h) // down + 1  # of a picture's every ``down``-th line
        below = max(0, lines * down - self.x.shape[3] - pad_h)
        x = F.pad(self.x, (pad_w, pad_w + right, pad_h, below))[:, :, :, : lines * down]
        out = self.x.new_empty((units, outputs, kernel_h, channels * kernel_w))
        few = max(1, BAND // (channels * kernel_w * down * lines * wide))
        bands = self.x.new_empty((min(few, units), channels, kernel_w, down, lines, wide))
        for start in range(0, units, few):
            stop = min(start + few, units)
            part, sums = bands[: stop - start], out[start:stop]
            flat = part.view(stop - start, channels * kernel_w, -1)
            for image in range(images):
                picture = x[start:stop, image].unflatten(2, (lines, down)).transpose(2, 3)  # (n, C, down, lines, W)
                for column in range(kernel_w):
                    first = column * reach_w
                    part[:, :, column] = picture[..., first : first + (wide - 1) * right + 1 : right]
                g = self.g[start:stop, image].flatten(2)
                for row in range(kernel_h):
                    phase, line = (row * reach_h) % down, (row * reach_h) // down
                    first = (phase * lines + line) * wide
                    product = torch.bmm(g, flat[:, :, first : first + high * wide].transpose(1, 2))
                    sums[:, :, row] = product if image == 0 else sums[:, :, row] + product
        return out.unflatten(3, (channels, kernel_w))

    @property
    def _fits_tiles(self) -> bool:
        few = self.kernel.shape[0] // self.shape.groups < FEW_OUTPUTS
        plain = self.x.device.type == "cpu" and self.x.dtype == self.g.dtype == torch.float32
        return plain and not few and self.x.dim() < 6 and set(self.shape.dilation) == {1}

    def tiled(self) -> Tensor:
        """(U, groups, C / groups * prod(K), O / groups) by compiled loops."""
        from dptrain.gradients.bookkeeping.convolution_loops import per_unit_gradients

        shape = self.shape
        return per_unit_gradients(self.x, self.g, self.kernel.shape, shape.stride, shape.padding, shape.groups)

    def tokens(self) -> Tokens:
        """The convolution as a linear map of unfolded patches, which are its tokens."""
        kernel = self.kernel.shape[2:]
        shape = self.shape
        columns = F.unfold(self.x.flatten(0, 1), kernel, shape.dilation, shape.padding, shape.stride)  # (U M, C K, L)
        units, images = self.x.shape[:2]
        a = columns.transpose(1, 2).unflatten(0, (units, images)).flatten(1, 2)
        return Tokens(a, self.g.flatten(3).transpose(2, 3).flatten(1, 2), turned=False)

    def unfolded(self) -> Tensor:
        """(U, *K) as a matrix product."""
        seen = self.tokens()
        return torch.bmm(seen.g.transpose(1, 2), seen.a).view(len(self.x), *self.kernel.shape)

    def held(
        self,
        gradients: Callable[[], Tensor],
        turned: tuple[int, int] | None = None,
        whole: torch.Size | None = None,
    ) -> PerUnit:
        """Held as it is."""
        unit = PerUnit(gradients(), turned, whole)
        unit.replace(self.loud(unit.squared_norm), self.in_float64)
        return unit

    def again(self, gradients: Callable[[], Tensor]) -> Again:
        """Norms from gradients that are dropped; the sum by a second, ordinary weight gradient."""
        squared = squared_norms(gradients())
        loud = self.loud(squared)
        for unit in loud.tolist():
            squared[unit] = self.in_float64(unit).square().sum()
        return Again(self, squared, loud)

    @property
    def _fits_pictures(self) -> bool:
        outputs, channels, *kernel = self.kernel.shape
        places, spots = math.prod(self.g.shape[3:]), math.prod(kernel)
        pairs = places**2 / 2  # one triangle
        cheaper = pairs * (channels + outputs + spots) < places * outputs * channels * spots
        one = self.x.dim() == 5 and self.x.shape[1] == 1 and self.shape.groups == 1
        return one and cheaper and set(self.shape.stride) == {1}

    def by_pictures(self) -> Again:
        """Norms from Gram matrices by compiled loops; the sum by an ordinary weight gradient."""
        from dptrain.gradients.bookkeeping.convolution_gram import picture_norms

        x, g = self.x[:, 0], self.g[:, 0]
        squared, norms_x, norms_g = picture_norms(x, g, self.kernel.shape, self.shape.padding, self.shape.dilation)
        squared.clamp_(min=0.0)
        size, unsafe = unsafe_units(squared, norms_x, norms_g, math.prod(self.kernel.shape[1:]), g.shape[1])
        for unit in torch.nonzero(unsafe).flatten().tolist():
            squared[unit] = self.in_float64(unit).square().sum()
        return Again(self, squared, loud_units(size, squared, norms_x.shape[1]))

    def loud(self, squared_norm: Tensor) -> Tensor:
        """Numbers of the units whose terms cancel too much for float32; none on a GPU, where asking would stop it.

        The sum over places of |patch| |g| is at most the root of (sum of |patch|^2) (sum of |g|^2), and a value of the
        input lies in no more patches than the kernel has places. Groups do not meet, so this holds for each apart.
        """
        if self.x.is_cuda:
            return torch.empty(0, dtype=torch.int64)
        norms_x, norms_g = (self._by_group(values) for values in (self.x, self.g))
        size = (norms_x * norms_g).square().sum(1).mul(math.prod(self.kernel.shape[2:])).sqrt()
        return loud_units(size, squared_norm, math.prod(self.g.shape[3:]) * self.x.shape[1])

    def _by_group(self, values: Tensor) -> Tensor:
        """(U, M, channels, *S) -> (U, groups) float64 norms."""
        split = values.unflatten(2, (self.shape.groups, -1)).movedim(2, 1)
        return torch.linalg.vector_norm(split.flatten(2), dim=2).double()

    def in_float64(self, unit: int) -> Tensor:
        """One unit's gradient, in float64."""
        return self.shape.weight_gradient(self.g[unit].double(), self.x[unit].double(), self.kernel.double())


@dataclass
class Again:
    """A convolution held by what it saw; the weighted sum is computed from scaled output gradients."""

    seen: Convolved
    squared_norm: Tensor
    loud: Tensor  # numbers of units that are added apart

    def silence(self, dead: Tensor) -> None:
        shape = (-1, *[1] * (self.seen.x.dim() - 1))
        self.seen.x = self.seen.x.masked_fill(dead.view(shape), 0)
        self.seen.g = self.seen.g.masked_fill(dead.view(shape), 0)

    def weighted_sum(self, factor: Tensor) -> Tensor:
        total = in_runs(len(factor), partial(self._product, factor.index_fill(0, self.loud, 0.0)))
        for unit in self.loud.tolist():
            total = total.double().add_(self.seen.in_float64(unit) * factor[unit])
        return total

    def _product(self, factor: Tensor, run: slice) -> Tensor:
        x, g = self.seen.x[run], self.seen.g[run]
        g = g * factor[run].to(g.dtype).view(-1, *[1] * (g.dim() - 1))
        return self.seen.shape.weight_gradient(g.flatten(0, 1), x.flatten(0, 1), self.seen.kernel)

    def per_unit(self) -> Tensor:
        return self.seen.looped()

    @property
    def nbytes(self) -> int:
        return self.seen.x.nbytes + self.seen.g.nbytes
