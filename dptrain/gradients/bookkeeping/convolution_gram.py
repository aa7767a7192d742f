"""Squared norms of a convolution's weight gradients from Gram matrices of pictures, by compiled loops.

With P(t) the patch of the input under place t, the squared norm of the sum over t of g(t) P(t)' is the sum over t and s
of (g(t) . g(s)) (P(t) . P(s)) (Li et al. 2022, section 4). Patches are made of places of the picture, so P(t) . P(s) is
the sum over places k of the kernel of x(t + k) . x(s + k), and these scalar products, over channels, are those of one
Gram matrix of the picture. So no patch is written down, and a pair of places costs as many products as there are
channels, not that many for every place of the kernel.

The places of g are laid on lines as wide as the padded picture's, with zeros behind: then t + k is t moved by the same
distance for every t, and sums over s run through memory. One triangle is computed of either symmetric matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dptrain.compiling import loop
from dptrain.gradients.bookkeeping.tiles import LANES, add_tile, rows_of

COLUMNS, VECTORS = 4, 2
"""The tile of a Gram matrix: four rows, or twice that, by two registers."""
WIDTH = VECTORS * LANES
RUN = 64
"""Channels that are added up at once in float32."""

f32 = np.float32


def picture_norms(
    x: Tensor, g: Tensor, kernel: torch.Size, padding: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of convolutions in two dimensions with stride 1, without groups.

    Args:
        x: (U, C, H, W) float32 on the CPU.
        g: (U, O, H', W') float32.
        kernel: (O, C, Kh, Kw).
        padding, dilation: of the convolution.

    Returns:
        (U,) squared norms, and (U, H' W') |P(t)| and |g(t)|, all float64.
    """
    high, wide = g.shape[2:]
    line = x.shape[3] + 2 * padding[1]
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).flatten(2)
    g = F.pad(g, (0, line - wide)).flatten(2)
    reach = (torch.arange(kernel[2])[:, None] * (dilation[0] * line) + torch.arange(kernel[3]) * dilation[1]).flatten()
    pictures = _filled(x, g.shape[2] + int(reach[-1]))  # places behind the last line stand for nothing
    grads = _filled(g, g.shape[2])
    squared = torch.empty(len(x), dtype=torch.float64)
    lengths = torch.empty((2, len(x), high * wide), dtype=torch.float64)
    scratch = (torch.empty(v.shape[2], v.shape[2]).numpy() for v in (pictures, grads))
    found = (squared.numpy(), lengths[0].numpy(), lengths[1].numpy())
    starts = np.arange(0, rows_of(COLUMNS, VECTORS) * COLUMNS, COLUMNS)
    _norms(pictures.numpy(), grads.numpy(), *scratch, reach.numpy(), starts, high, wide, line, *found)
    return squared, lengths[0].sqrt_(), lengths[1].sqrt_()


def _filled(values: Tensor, places: int) -> Tensor:
    """With zeros behind, up to whole tiles and at least so many places."""
    whole = -(-max(places, values.shape[2]) // WIDTH) * WIDTH
    return F.pad(values, (0, whole - values.shape[2])).contiguous()


@loop(inline=True)
def _triangle(values, starts, sums, out):
    """values (C, P) -> out[p, q] = sum over c of values[c, p] values[c, q], for q from about p on."""
    channels, places = values.shape
    flat, tall = values.reshape(-1), len(starts) * COLUMNS
    for p in range(0, places, tall):
        for q in range(p // WIDTH * WIDTH, places, WIDTH):
            sums[:] = f32(0)
            for c in range(0, channels, RUN):
                at = c * places
                terms = min(RUN, channels - c)
                add_tile(COLUMNS, VECTORS, flat[at + p :], starts, flat[at + q :], places, sums, terms, 1, places, 1)
            for row in range(tall):
                for lane in range(WIDTH):
                    out[p + row, q + lane] = sums[row * WIDTH + lane]


@loop(any_order=True)
def _norms(x, g, gram_x, gram_g, reach, starts, high, wide, line, squared, lengths_x, lengths_g):
    """x: (U, C, P); g: (U, O, T); gram_x: (P, P), gram_g: (T, T) scratch; reach: (K,) distances within the kernel."""
    sums = np.empty(len(starts) * COLUMNS * WIDTH, np.float32)
    last = high * line
    for u in range(len(x)):
        _triangle(x[u], starts, sums, gram_x)
        _triangle(g[u], starts, sums, gram_g)
        total = 0.0
        for y in range(high):
            for column in range(wide):
                t = y * line + column
                grads = gram_g[t, t:last]
                own, beside = 0.0, 0.0
                for move in reach:
                    patches = gram_x[t + move, t + move : last + move]
                    own += np.float64(patches[0])
                    row = f32(0)
                    for s in range(len(grads)):
                        row += grads[s] * patches[s]
                    beside += np.float64(row)
                total += 2.0 * beside - own * np.float64(grads[0])
                lengths_x[u, y * wide + column] = own
                lengths_g[u, y * wide + column] = grads[0]
        squared[u] = total
