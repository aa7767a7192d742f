"""Every unit's gradient of a convolution's weight, by compiled loops over tiles of it.

A tile is a few places of the kernel by some outputs. Going through the picture, a place's output gradients are
multiplied with all values of the input that the tile's places meet. The input is read where it lies, with its padding
around it: nothing is unfolded. Entries are sums in float32 of at most about ``RUN`` products, and of these runs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dptrain.compiling import loop
from dptrain.gradients.bookkeeping.tiles import COLUMNS, LANES, add_tile, rows_of, turn_square

RUN = 128
"""Places of the picture that are added up at once, rounded up to a line."""

f32 = np.float32


def per_unit_gradients(
    x: Tensor, g: Tensor, kernel: torch.Size, stride: tuple[int, ...], padding: tuple[int, ...], groups: int
) -> Tensor:
    """Gradients of a convolution's weight in one or two dimensions, without dilation.

    Args:
        x: (U, M, C, *S) float32 on the CPU.
        g: (U, M, O, *S') float32.
        kernel: (O, C / groups, *K).
        stride, padding, groups: of the convolution.

    Returns:
        (U, groups, C / groups * prod(K), O / groups) float32: places of the kernel before outputs, unlike the weight.
    """
    if x.dim() == 4:  # one dimension is two, of one line
        x, g, kernel = x.unsqueeze(3), g.unsqueeze(3), torch.Size([*kernel[:2], 1, kernel[2]])
        stride, padding = (1, *stride), (0, *padding)
    outputs, (channels, high, wide) = kernel[0] // groups, kernel[1:]
    columns = next(c for c in COLUMNS if wide % c == 0)
    padded = -(-outputs // LANES) * LANES
    vectors = 2 if padded % (2 * LANES) == 0 else 1
    rows = rows_of(columns, vectors)
    lines, line = (size + 2 * pad for size, pad in zip(x.shape[3:], padding, strict=True))
    starts = torch.arange(channels)[:, None, None] * (lines * line) + torch.arange(high)[:, None] * line
    starts = (starts + torch.arange(0, wide, columns)).flatten()
    starts = F.pad(starts, (0, max(0, rows - len(starts))))
    out = x.new_empty((len(x), groups, len(starts) * columns, padded))
    picture = x.new_zeros(x.shape[2], lines, line)
    turned = x.new_empty(padded // (vectors * LANES), g.shape[3] * g.shape[4], vectors * LANES)
    arrays = (values.numpy() for values in (x.contiguous(), g.contiguous(), starts, out, picture, turned))
    _gradients(*arrays, padding, stride[0] * line, stride[1], columns, rows)
    return out[:, :, : channels * high * wide, :outputs].contiguous()


@loop(inline=True)
def _turn(g, out):
    """(O, places) -> (blocks, places, V), with zeros for outputs that there are not."""
    outputs, places = g.shape
    width = out.shape[2]
    for first in range(0, out.shape[0] * width, LANES):
        into, beside = out[first // width].reshape(-1), first % width
        full = places // LANES * LANES if first + LANES <= outputs else 0
        for place in range(0, full, LANES):
            turn_square(g[first:].reshape(-1)[place:], places, into[place * width + beside :], width)
        for place in range(full, places):
            for lane in range(LANES):
                into[place * width + beside + lane] = g[first + lane, place] if first + lane < outputs else f32(0)


@loop
def _gradients(x, g, starts, out, picture, turned, padding, down, right, columns, rows):
    """x: (U, M, C, *S); g: (U, M, O, *S'); out: (U, groups, rows columns, outputs); the others are scratch."""
    images, groups = x.shape[1], out.shape[1]
    high, wide = g.shape[3:]
    blocks, places, width = turned.shape
    share, outputs = x.shape[2] // groups, g.shape[2] // groups
    step, vectors = max(1, -(-RUN // wide)), width // LANES
    sums = np.empty(rows * columns * width, np.float32)
    for u in range(len(x)):
        for m in range(images):
            for channel in range(x.shape[2]):
                for y in range(x.shape[3]):
                    picture[channel, padding[0] + y, padding[1] : padding[1] + x.shape[4]] = x[u, m, channel, y]
            for group in range(groups):
                _turn(g[u, m, group * outputs : (group + 1) * outputs].reshape(outputs, places), turned)
                values = picture[group * share : (group + 1) * share].reshape(-1)
                for block in range(blocks):
                    grads = turned[block].reshape(-1)
                    for begin in range(0, len(starts), rows):
                        first = min(begin, len(starts) - rows)  # the last tile may go over some rows again
                        sums[:] = f32(0)
                        for y in range(0, high, step):
                            lines, met, own = min(step, high - y), values[y * down :], grads[y * wide * width :]
                            add_tile(columns, vectors, met, starts[first:], own, width, sums, lines, wide, down, right)
                        for row in range(begin - first, rows):
                            for column in range(columns):
                                place = row * columns + column
                                into = out[u, group, first * columns + place, block * width : (block + 1) * width]
                                for lane in range(width):
                                    total = sums[place * width + lane]
                                    into[lane] = total if m == 0 else into[lane] + total
