"""Squared norms of per-unit gradients, never too small: float32 where terms do not cancel, float64 where they do."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 4 * 2.0**-24
"""Relative float32 error granted to a Gram-matrix norm, of the square of the sum of |a_t| |g_t|; see ``gram_norm``."""
UNDERFLOW = 2.0**-126
"""Smallest normal float32: products below it may be lost."""
UNSAFE = 25.0
"""Cancellation, sum of |a_t| |g_t| over |sum of g_t a_t'|, from which a Gram norm is computed again in float64. Below,
it was off by 1e-6 of itself at most (T = 8 to 1024; identical, balanced and few dominant tokens; 2e-6 at 100)."""
LOUD = 100.0
"""Cancellation from which a unit is added in float64 and apart: among the others its terms, far larger than C, would
leave their rounding errors in the sum."""
FEW = 1 << 17
"""Numbers up to which float64 arithmetic costs less than the calls that avoid it (30 against 150 microseconds)."""
SMALL = 1e-28
"""Squared norms from here on cannot have lost anything that matters to underflow."""


def squared_norms(values: Tensor) -> Tensor:
    """(U, *shape) float32 or float64 -> (U,) float64 squared norms.

    Up to ``FEW`` numbers are squared and added in float64, where calls cost more than arithmetic. Of more, float32
    squares are added in runs of at most 64, whose sums are then added in float64: relative error below
    66 2^-24 < 4e-6 in the worst case, 2e-7 as found. Units whose squares may have fallen out of what float32 holds,
    at either end, are taken again in float64.
    """
    flat = values.reshape(len(values), -1)
    if flat.dtype == torch.float64:
        return flat.square().sum(1)
    if flat.numel() <= FEW:
        return torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square_()
    whole = flat.shape[1] // 64 * 64
    total = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
    if whole:
        runs = flat[:, :whole].unflatten(1, (-1, 64))
        total += torch.linalg.vector_norm(runs, dim=2).double().square_().sum(1)
    if whole < flat.shape[1]:
        total += flat[:, whole:].double().square().sum(1)
    lost = (total < SMALL) | ~total.isfinite()
    if bool(lost.any()):
        total[lost] = flat[lost].double().square().sum(1)
    return total


def outer_in_float64(a: Tensor, g: Tensor) -> Tensor:
    """(T, d), (T, p) of one unit -> (p, d) float64."""
    return g.double().t() @ a.double()


LOOPS = 0
"""In place of a number of blocks: compiled loops (``gram_loops``), for float32 on a CPU where numba is installed."""


def gram_norm(
    a: Tensor, g: Tensor, blocks: int = 1, held: dict[int, Tensor] | None = None
) -> tuple[Tensor, Tensor | None]:
    """|sum over t of g_t a_t'|^2 of every unit: sum over t, t' of (a_t . a_t') (g_t . g_t').

    Args:
        a: (U, T, d).
        g: (U, T, p).
        blocks: into how many runs of t the symmetric sum is cut; only blocks on and above the diagonal are computed.
            ``LOOPS``: not by matrix products.
        held: Gram matrices of ``a`` by block, reused where present and left there where not.

    Returns:
        (U,) float64, and the numbers of loud units (see ``LOUD``), None without any. On a CPU, units whose terms
        cancel so much that float32 could miss are computed again in float64, and nothing is added, so that the norm
        does not depend on the way in which it was computed. On a GPU, where asking for such units would stop the
        device, norms are raised by what rounding can hide (``allowance``), and no unit is loud: a raised norm keeps
        the sum of |a_t| |g_t| under 2,048 norms.
    """
    length = a.shape[1]
    if length == 1:
        return squared_norms(a) * squared_norms(g), None
    sums = _by_loops if blocks == LOOPS else _by_products
    total, norms_a, norms_g = sums(a, g, {} if held is None else held, blocks)
    total.clamp_(min=0.0)
    if a.is_cuda:
        rounding, hidden = doubts(norms_a, norms_g, a.shape[2], g.shape[2])
        return total + rounding + hidden, None
    size, unsafe = unsafe_units(total, norms_a, norms_g, a.shape[2], g.shape[2])
    if not bool(unsafe.any()):
        return total, None
    whole_a, whole_g = a, g
    a, g = a[unsafe].double(), g[unsafe].double()
    total[unsafe] = (torch.bmm(a, a.transpose(1, 2)) * torch.bmm(g, g.transpose(1, 2))).sum((1, 2)).clamp(min=0.0)
    loud = loud_units(size, total, length)
    for unit in loud.tolist():  # in squares, float64 too would miss what is left of the largest cancellation
        total[unit] = outer_in_float64(whole_a[unit], whole_g[unit]).square().sum()
    return total, loud if len(loud) else None


def unsafe_units(total: Tensor, norms_a: Tensor, norms_g: Tensor, width_a: int, width_g: int) -> tuple[Tensor, Tensor]:
    """Which Gram norms are to be computed again in float64.

    Args:
        total: (U,) squared norms from Gram matrices.
        norms_a, norms_g: (U, T) float64 |a_t| and |g_t|.
        width_a, width_g: numbers in an a_t, and in a g_t.

    Returns:
        (U,) sums over t of |a_t| |g_t|, and (U,) bool.
    """
    _, hidden = doubts(norms_a, norms_g, width_a, width_g)
    size = (norms_a * norms_g).sum(1)
    far = _cancels(size, total, max(UNSAFE, 2.0 * norms_a.shape[1] ** 0.5))
    return size, far | (hidden > (1e-7 * total).clamp(min=1e-24)) | ~total.isfinite()


def _by_products(a: Tensor, g: Tensor, held: dict[int, Tensor], blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """(U,) sums over t, t', and (U, T) |a_t| and |g_t|, all float64, from batched matrix products."""
    length = a.shape[1]
    total = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    norms_a: list[Tensor] = []
    norms_g: list[Tensor] = []
    step = -(-length // blocks)
    for start in range(0, length, step):
        stop = min(start + step, length)
        if start not in held:
            held[start] = torch.bmm(a[:, start:stop], a[:, start:].transpose(1, 2))
        gram_a, gram_g = held[start], torch.bmm(g[:, start:stop], g[:, start:].transpose(1, 2))
        norms_a.append(_lengths(gram_a))
        norms_g.append(_lengths(gram_g))
        columns = gram_g.mul_(gram_a).sum(1).double()
        total += columns[:, : stop - start].sum(1) + 2.0 * columns[:, stop - start :].sum(1)
    return total, torch.cat(norms_a, 1), torch.cat(norms_g, 1)


def _by_loops(a: Tensor, g: Tensor, held: dict[int, Tensor], _: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same from compiled loops."""
    from dptrain.gradients.bookkeeping.gram_loops import met, triangle

    if LOOPS not in held:
        held[LOOPS] = triangle(a)
    gram_a, gram_g = held[LOOPS], triangle(g)
    return met(gram_a, gram_g), _lengths(gram_a), _lengths(gram_g)


def _lengths(gram: Tensor) -> Tensor:
    """The (U, T) float64 norms on the diagonal of Gram matrices."""
    return gram.diagonal(dim1=1, dim2=2).double().sqrt()


def loud_units(size: Tensor, squared_norm: Tensor, terms: int) -> Tensor:
    """Numbers of the units whose sum of |terms|, (U,), is far above the norm of the sum of their terms.

    Of T independent terms it is sqrt(T) norms, and no more than twice that in the models looked at.
    """
    return torch.nonzero(_cancels(size, squared_norm, max(LOUD, 4.0 * terms**0.5))).flatten()


def _cancels(size: Tensor, squared_norm: Tensor, most: float) -> Tensor:
    return size.square() > most**2 * squared_norm


def doubts(norms_a: Tensor, norms_g: Tensor, d: int, p: int) -> tuple[Tensor, Tensor]:
    """What rounding and underflow can take from squared norms, from (U, T) float64 |a_t| and |g_t|."""
    rounding = ROUNDING * (norms_a * norms_g).sum(1).square()
    return rounding, UNDERFLOW * (p * norms_a.sum(1).square() + d * norms_g.sum(1).square())
