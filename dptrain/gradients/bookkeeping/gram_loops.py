"""Gram matrices by compiled loops: one triangle of a symmetric matrix, which torch has no product for.

A matrix product computes every entry twice, and in small blocks it is slow. Here three rows meet three rows at a time:
nine running sums, which stay in registers, and runs of so many columns that the rows of a block stay in the nearest
cache. Entries are sums in float32 of at most ``RUN`` products, several at a time, and of these runs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dptrain.compiling import loop

RUN = 384
"""Columns that are gone through at once."""
BLOCK = 15
"""Rows of a block: with ``RUN`` columns 23 KB."""

f32 = np.float32


def triangle(values: Tensor) -> Tensor:
    """(U, T, d) float32 on the CPU -> (U, T, T): v_t . v_s for t <= s; below the diagonal there may be anything."""
    units, tokens = values.shape[:2]
    out = torch.empty((units, tokens, tokens))
    _triangles(values.contiguous().numpy(), out.numpy())
    return out


def met(first: Tensor, second: Tensor) -> Tensor:
    """Two triangles (U, T, T) -> (U,) float64: the sum over t and s of the products of their entries."""
    total = torch.empty(len(first), dtype=torch.float64)
    _met(first.numpy(), second.numpy(), total.numpy())
    return total


@loop(any_order=True, inline=True)
def _three_by_three(x, i, j, begin, stop, out):
    s00 = s01 = s02 = s10 = s11 = s12 = s20 = s21 = s22 = f32(0)
    a0, a1, a2 = x[i, begin:stop], x[i + 1, begin:stop], x[i + 2, begin:stop]
    b0, b1, b2 = x[j, begin:stop], x[j + 1, begin:stop], x[j + 2, begin:stop]
    for k in range(stop - begin):
        x0, x1, x2, y0, y1, y2 = a0[k], a1[k], a2[k], b0[k], b1[k], b2[k]
        s00 += x0 * y0
        s01 += x0 * y1
        s02 += x0 * y2
        s10 += x1 * y0
        s11 += x1 * y1
        s12 += x1 * y2
        s20 += x2 * y0
        s21 += x2 * y1
        s22 += x2 * y2
    out[i, j] += s00
    out[i, j + 1] += s01
    out[i, j + 2] += s02
    out[i + 1, j] += s10
    out[i + 1, j + 1] += s11
    out[i + 1, j + 2] += s12
    out[i + 2, j] += s20
    out[i + 2, j + 1] += s21
    out[i + 2, j + 2] += s22


@loop(any_order=True, inline=True)
def _four_by_one(x, i, j, begin, stop, out):
    s0 = s1 = s2 = s3 = f32(0)
    a0, a1, a2, a3 = x[i, begin:stop], x[i + 1, begin:stop], x[i + 2, begin:stop], x[i + 3, begin:stop]
    b = x[j, begin:stop]
    for k in range(stop - begin):
        y = b[k]
        s0 += a0[k] * y
        s1 += a1[k] * y
        s2 += a2[k] * y
        s3 += a3[k] * y
    out[i, j] += s0
    out[i + 1, j] += s1
    out[i + 2, j] += s2
    out[i + 3, j] += s3


@loop(any_order=True, inline=True)
def _one_by_one(x, i, j, begin, stop, out):
    s = f32(0)
    a, b = x[i, begin:stop], x[j, begin:stop]
    for k in range(stop - begin):
        s += a[k] * b[k]
    out[i, j] += s


@loop(any_order=True)
def _triangles(values, out):
    tokens, columns = values.shape[1:]
    even = tokens // 3 * 3  # rows in threes; the one or two behind them meet four others at a time
    for u in range(len(values)):
        x, gram = values[u], out[u]
        gram[:] = f32(0)
        for begin in range(0, columns, RUN):
            stop = min(begin + RUN, columns)
            for block in range(0, even, BLOCK):
                for i in range(0, min(block + BLOCK, even), 3):
                    for j in range(max(block, i), min(block + BLOCK, even), 3):
                        _three_by_three(x, i, j, begin, stop, gram)
            for j in range(even, tokens):
                fours = (j + 1) // 4 * 4
                for i in range(0, fours, 4):
                    _four_by_one(x, i, j, begin, stop, gram)
                for i in range(fours, j + 1):
                    _one_by_one(x, i, j, begin, stop, gram)


@loop(any_order=True)
def _met(first, second, total):
    for u in range(len(total)):
        beside, on = 0.0, 0.0
        for t in range(first.shape[1]):
            a, b = first[u, t], second[u, t]
            on += np.float64(a[t]) * np.float64(b[t])
            for s in range(t + 1, len(a)):
                beside += np.float64(a[s]) * np.float64(b[s])
        total[u] = 2.0 * beside + on
