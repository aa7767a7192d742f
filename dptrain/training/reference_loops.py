"""Steps of a chain of linear layers in compiled loops: products, loss, gradients and SGD, without copies between them.

Rows are read where they lie in the pool. A gradient is made four rows of a weight matrix at a time, which are updated
while they are in the nearest cache. Rows of a draw and of a weight matrix come in fours: what is missing is filled up
with rows that count for nothing. Entries are sums in float32, taken in any order.
"""

from __future__ import annotations

import numpy as np

from dptrain.compiling import loop
from dptrain.gradients.bookkeeping.tiles import LANES

NEAR = 65536
"""Numbers of a draw's rows that are gone through at once: 256 KB, which stay in a cache."""
LINEAR, RELU, TANH, SIGMOID = range(4)

WIDE = LANES == 16
"""Whether there are the registers of AVX-512."""
f32 = np.float32
FLAT = f32(7.90531110763549805)
"""Where tanh is 1 in float32."""
P1, P3, P5 = f32(4.89352455891786e-03), f32(6.37261928875436e-04), f32(1.48572235717979e-05)
P7, P9, P11 = f32(5.12229709037114e-08), f32(-8.60467152213735e-11), f32(2.00018790482477e-13)
P13 = f32(-2.76076847742355e-16)
Q0, Q2 = f32(4.89352518554385e-03), f32(2.26843463243900e-03)
Q4, Q6 = f32(1.18534705686654e-04), f32(1.19825839466702e-06)
"""Eigen's quotient of polynomials for tanh (``generic_fast_tanh_float``): within 4e-7, several numbers at a time."""


@loop(inline=True)
def _matrix(flat, begin, height, width):
    return flat[begin : begin + height * width].reshape(height, width)


@loop(any_order=True, inline=True)
def _four_by_two(x, r0, r1, r2, r3, w, j, bias, out, i):
    """Four rows of x meet two of w: out[i:i+4, j:j+2]."""
    s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = f32(0)
    a0, a1, a2, a3, b0, b1 = x[r0], x[r1], x[r2], x[r3], w[j], w[j + 1]
    for k in range(w.shape[1]):
        x0, x1, x2, x3, y0, y1 = a0[k], a1[k], a2[k], a3[k], b0[k], b1[k]
        s00 += x0 * y0
        s01 += x0 * y1
        s10 += x1 * y0
        s11 += x1 * y1
        s20 += x2 * y0
        s21 += x2 * y1
        s30 += x3 * y0
        s31 += x3 * y1
    left, right = bias[j], bias[j + 1]
    out[i, j], out[i, j + 1] = s00 + left, s01 + right
    out[i + 1, j], out[i + 1, j + 1] = s10 + left, s11 + right
    out[i + 2, j], out[i + 2, j + 1] = s20 + left, s21 + right
    out[i + 3, j], out[i + 3, j + 1] = s30 + left, s31 + right


@loop(any_order=True, inline=True)
def _four_by_four(x, r0, r1, r2, r3, w, j, bias, out, i):
    """Four rows of x meet four of w: out[i:i+4, j:j+4]. Needs the registers of AVX-512."""
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = f32(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = f32(0)
    a0, a1, a2, a3, b0, b1, b2, b3 = x[r0], x[r1], x[r2], x[r3], w[j], w[j + 1], w[j + 2], w[j + 3]
    for k in range(w.shape[1]):
        x0, x1, x2, x3, y0, y1, y2, y3 = a0[k], a1[k], a2[k], a3[k], b0[k], b1[k], b2[k], b3[k]
        s00 += x0 * y0
        s01 += x0 * y1
        s02 += x0 * y2
        s03 += x0 * y3
        s10 += x1 * y0
        s11 += x1 * y1
        s12 += x1 * y2
        s13 += x1 * y3
        s20 += x2 * y0
        s21 += x2 * y1
        s22 += x2 * y2
        s23 += x2 * y3
        s30 += x3 * y0
        s31 += x3 * y1
        s32 += x3 * y2
        s33 += x3 * y3
    c0, c1, c2, c3 = bias[j], bias[j + 1], bias[j + 2], bias[j + 3]
    out[i, j], out[i, j + 1], out[i, j + 2], out[i, j + 3] = s00 + c0, s01 + c1, s02 + c2, s03 + c3
    out[i + 1, j], out[i + 1, j + 1], out[i + 1, j + 2], out[i + 1, j + 3] = s10 + c0, s11 + c1, s12 + c2, s13 + c3
    out[i + 2, j], out[i + 2, j + 1], out[i + 2, j + 2], out[i + 2, j + 3] = s20 + c0, s21 + c1, s22 + c2, s23 + c3
    out[i + 3, j], out[i + 3, j + 1], out[i + 3, j + 2], out[i + 3, j + 3] = s30 + c0, s31 + c1, s32 + c2, s33 + c3


@loop(any_order=True, inline=True)
def _four_from_four(out, i, share, j, x, r0, r1, r2, r3, width):
    """Adds share[i + a, j + b] of row r_b of x to row i + a of out, for a and b from 0 to 3."""
    a0, a1, a2, a3 = share[i, j], share[i, j + 1], share[i, j + 2], share[i, j + 3]
    b0, b1, b2, b3 = share[i + 1, j], share[i + 1, j + 1], share[i + 1, j + 2], share[i + 1, j + 3]
    c0, c1, c2, c3 = share[i + 2, j], share[i + 2, j + 1], share[i + 2, j + 2], share[i + 2, j + 3]
    d0, d1, d2, d3 = share[i + 3, j], share[i + 3, j + 1], share[i + 3, j + 2], share[i + 3, j + 3]
    x0, x1, x2, x3, o0, o1, o2, o3 = x[r0], x[r1], x[r2], x[r3], out[i], out[i + 1], out[i + 2], out[i + 3]
    for k in range(width):
        y0, y1, y2, y3 = x0[k], x1[k], x2[k], x3[k]
        o0[k] += a0 * y0 + a1 * y1 + a2 * y2 + a3 * y3
        o1[k] += b0 * y0 + b1 * y1 + b2 * y2 + b3 * y3
        o2[k] += c0 * y0 + c1 * y1 + c2 * y2 + c3 * y3
        o3[k] += d0 * y0 + d1 * y1 + d2 * y2 + d3 * y3


@loop(any_order=True, inline=True)
def _tanh(number):
    x = FLAT if number > FLAT else number
    x = -FLAT if x < -FLAT else x
    y = x * x
    above = x * (P1 + y * (P3 + y * (P5 + y * (P7 + y * (P9 + y * (P11 + y * P13))))))
    return above / (Q0 + y * (Q2 + y * (Q4 + y * Q6)))


@loop(any_order=True)
def _forward(x, rows, w, bias, kind, out):
    """(N, n) rows of a pool -> (B, p): activation of row . weight + bias."""
    block = max(4, NEAR // w.shape[1] // 4 * 4)
    for begin in range(0, len(rows), block):
        stop = min(begin + block, len(rows))
        for j in range(0, len(w), 4):
            for i in range(begin, stop, 4):
                if WIDE:
                    _four_by_four(x, rows[i], rows[i + 1], rows[i + 2], rows[i + 3], w, j, bias, out, i)
                else:
                    _four_by_two(x, rows[i], rows[i + 1], rows[i + 2], rows[i + 3], w, j, bias, out, i)
                    _four_by_two(x, rows[i], rows[i + 1], rows[i + 2], rows[i + 3], w, j + 2, bias, out, i)
    if kind == RELU:
        for i in range(len(out)):
            for j in range(len(w)):
                out[i, j] = f32(0) if out[i, j] < 0 else out[i, j]
    elif kind == TANH:
        for i in range(len(out)):
            for j in range(len(w)):
                out[i, j] = _tanh(out[i, j])
    elif kind == SIGMOID:
        for i in range(len(out)):
            for j in range(len(w)):
                out[i, j] = f32(0.5) + f32(0.5) * _tanh(f32(0.5) * out[i, j])


@loop(any_order=True)
def _backward(delta, w, kind, out, before):
    """(B, p) gradients of a layer's outputs -> (B, n) those of what the layer before it summed."""
    width = w.shape[1]
    for i in range(0, len(delta), 4):
        for a in range(4):
            before[i + a, :width] = f32(0)
        for j in range(0, len(w), 4):
            _four_from_four(before, i, delta, j, w, j, j + 1, j + 2, j + 3, width)
        for a in range(i, i + 4):
            for k in range(width):
                y = out[a, k]
                if kind == RELU:
                    before[a, k] = before[a, k] if y > 0 else f32(0)
                elif kind == TANH:
                    before[a, k] *= f32(1) - y * y
                elif kind == SIGMOID:
                    before[a, k] *= y * (f32(1) - y)


@loop(any_order=True)
def _learn(x, rows, delta, w, bias, w_moment, bias_moment, how):
    """SGD on one layer, whose gradient is delta^T . x, and the sum of delta for its bias.

    With momentum u a moment m becomes u m + gradient + decay w. Nesterov's step, gradient + decay w + u m by the new m,
    is (1 + u) of the new m less u of the old one: the old one's part is taken ahead of the gradient.
    """
    rate, ahead, momentum, decay = how[0], how[1], how[2], how[3]
    turned = delta.T
    for i in range(0, len(w), 4):
        for a in range(i, i + 4):
            own, moment = w[a], w_moment[a]
            for k in range(len(own)):
                old = moment[k]
                moment[k] = momentum * old + decay * own[k]
                own[k] += ahead * old
        for j in range(0, len(rows), 4):
            _four_from_four(w_moment, i, turned, j, x, rows[j], rows[j + 1], rows[j + 2], rows[j + 3], w.shape[1])
        for a in range(i, i + 4):
            own, moment = w[a], w_moment[a]
            for k in range(len(own)):
                own[k] -= rate * moment[k]
    for k in range(len(bias)):
        old, total = bias_moment[k], f32(0)
        for i in range(len(delta)):
            total += delta[i, k]
        bias_moment[k] = momentum * old + decay * bias[k] + total
        bias[k] += ahead * old - rate * bias_moment[k]


@loop(any_order=True)
def _loss(outputs, classes, targets, divisor, delta):
    """Gradients of the summed cross entropy over ``divisor``; rows beyond the targets get none."""
    for i in range(len(targets)):
        top = outputs[i, 0]
        for j in range(1, classes):
            top = max(top, outputs[i, j])
        total = f32(0)
        for j in range(classes):
            delta[i, j] = np.exp(outputs[i, j] - top)
            total += delta[i, j]
        for j in range(classes):
            delta[i, j] = (delta[i, j] / total - (f32(1) if j == targets[i] else f32(0))) / divisor


@loop
def subsets(picked, members, draws):
    """Floyd's subsets: the i-th of B numbers picks up to n - B + i, and n - B + i itself where it picks one again.

    Args:
        picked: (K, B) int64, uniform between 0 and n - B + i, both included.
        members: (n,) int64.
        draws: (K, B or more) int64, is filled; columns beyond B repeat the first.
    """
    size = picked.shape[1]
    first, taken = len(members) - size, np.full(len(members), -1)
    for k in range(len(picked)):
        for i in range(size):
            place = picked[k, i] if taken[picked[k, i]] < k else first + i
            taken[place] = k
            draws[k, i] = members[place]
        draws[k, size:] = draws[k, 0]


@loop
def steps(pool, targets, draws, count, rates, sizes, kinds, values, moments, momentum, decay, nesterov, divisor):
    """Takes one step a draw, in place.

    Args:
        pool: (N, d) float32.
        targets: (N,) int64 classes.
        draws: (K, B) int64 rows of the pool, B a multiple of 4.
        count: rows of a draw that count, the first of it.
        rates: (K,) float32 learning rates.
        sizes: (L + 1,) int64: numbers of a row, outputs of each layer.
        kinds: (L,) int64, what follows each layer.
        values: flat float32, of each layer p rows of weights and p biases, p its outputs rounded up to fours.
        moments: like ``values``.
        momentum, decay, nesterov, divisor: float32; nesterov 1 or 0.
    """
    layers, drawn = len(kinds), draws.shape[1]
    padded = (sizes + 3) // 4 * 4
    starts, places = np.zeros(layers + 1, np.int64), np.zeros(layers + 1, np.int64)
    for layer in range(layers):
        starts[layer + 1] = starts[layer] + padded[layer + 1] * (sizes[layer] + 1)
        places[layer + 1] = places[layer] + padded[layer + 1] * drawn
    outputs, deltas = np.zeros(places[layers], f32), np.zeros(places[layers], f32)
    themselves = np.arange(drawn)
    for step in range(len(draws)):
        x, rows = pool, draws[step]
        for layer in range(layers):
            n, p = sizes[layer], padded[layer + 1]
            end = starts[layer] + p * n
            out = _matrix(outputs, places[layer], drawn, p)
            _forward(x, rows, _matrix(values, starts[layer], p, n), values[end : end + p], kinds[layer], out)
            x, rows = out, themselves
        rows = draws[step]
        delta = _matrix(deltas, places[layers - 1], drawn, padded[layers])
        _loss(x, sizes[layers], targets[rows[:count]], divisor, delta)
        how = rates[step] * (f32(1) + nesterov * momentum), rates[step] * nesterov * momentum, momentum, decay
        for layer in range(layers - 1, -1, -1):
            n, p = sizes[layer], padded[layer + 1]
            end = starts[layer] + p * n
            w, w_moment = _matrix(values, starts[layer], p, n), _matrix(moments, starts[layer], p, n)
            bias, bias_moment = values[end : end + p], moments[end : end + p]
            if layer > 0:
                x = _matrix(outputs, places[layer - 1], drawn, padded[layer])
                before = _matrix(deltas, places[layer - 1], drawn, padded[layer])
                _backward(delta, w, kinds[layer - 1], x, before)
                _learn(x, themselves, delta, w, bias, w_moment, bias_moment, how)
                delta = before
            else:
                _learn(pool, rows, delta, w, bias, w_moment, bias_moment, how)
