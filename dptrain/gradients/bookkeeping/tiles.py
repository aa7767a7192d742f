"""Sums of outer products in compiled loops that keep a tile of the sum in registers.

A tile is a few numbers of one side by as many of the other as one or two registers hold. Going through the terms, a
term's vector is read once, and multiplied with each of the tile's numbers of the other side. (The innermost loop of
matrix products in Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication", section 4.2, written
out here since terms are read where they lie: torch has no product of that kind.)

Compiled code is kept by the file of the loop that calls: whoever changes this one touches those, too.
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_WIDE = binding.get_host_cpu_features().get("avx512f", False)
LANES = 16 if _WIDE else 8
"""float32 values in a register."""
_TILE = 20 if _WIDE else 12
"""Registers for a tile's sums; the others hold what is multiplied."""
_MOST_ROWS = 8
"""Rows of a tile: each takes a register for its address."""
COLUMNS = (7, 5, 4, 3, 2, 1)
"""Numbers that lie side by side and may be a tile's columns."""


def rows_of(columns: int, vectors: int) -> int:
    """Rows of a tile: runs of so many columns."""
    return min(_MOST_ROWS, max(1, _TILE // (columns * vectors)))


@intrinsic
def _add_tile(
    typing: Any,
    columns: Any,
    vectors: Any,
    x: Any,
    starts: Any,
    g: Any,
    apart: Any,
    sums: Any,
    high: Any,
    wide: Any,
    down: Any,
    right: Any,
) -> Any:
    """sums[row, column, :] += sum over terms of x[starts[row] + place + column] g[apart term :].

    ``columns`` is one of ``COLUMNS`` and ``vectors`` 1 or 2; there are ``rows_of`` rows. Terms are counted by ``high``
    lines of ``wide``; a term's place in x is line times ``down`` plus number within it times ``right``. ``x`` and ``g``
    begin at the first term, ``starts`` at the tile's first row.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        read = [
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, args, strict=True)
        ]
        number = builder.add(builder.mul(read[0], ir.Constant(read[0].type, 2)), read[1])
        done = builder.append_basic_block("done")
        which = builder.switch(number, done)
        for shape in itertools.product(COLUMNS, (1, 2)):
            block = builder.append_basic_block(f"tile_{shape[0]}_{shape[1]}")
            which.add_case(ir.Constant(number.type, 2 * shape[0] + shape[1]), block)
            builder.position_at_end(block)
            _emit(builder, read[2:], (rows_of(*shape), *shape))
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(columns, vectors, x, starts, g, apart, sums, high, wide, down, right), generate


add_tile: Any = _add_tile  # called without what numba passes first


def _emit(builder: Any, read: list[Any], shape: tuple[int, int, int]) -> None:
    """Writes the loop of one shape of tile. Sums are variables that LLVM keeps in registers."""
    values, starts, grads, apart, totals, high, wide, down, right = read
    rows, columns, vectors = shape
    vector, index, short = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64), ir.IntType(32)
    undefined, everywhere = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(short, LANES), [0] * LANES)

    def move(pointer: Any, offset: Any) -> Any:
        return builder.gep(pointer, [ir.Constant(index, offset) if isinstance(offset, int) else offset])

    def vector_at(pointer: Any, number: int) -> Any:
        return builder.bitcast(move(pointer, number * LANES), vector.as_pointer())

    def spread(number: Any) -> Any:
        return builder.shuffle_vector(
            builder.insert_element(undefined, number, ir.Constant(short, 0)), undefined, everywhere
        )

    zero = ir.Constant(vector, [0.0] * LANES)
    sums = [cgutils.alloca_once_value(builder, zero) for _ in range(rows * columns * vectors)]
    for one in sums:  # the variable's first value is set where the function begins, not where the tile does
        builder.store(zero, one)
    lines = [move(values, builder.load(move(starts, row))) for row in range(rows)]
    current = cgutils.alloca_once(builder, grads.type)
    builder.store(grads, current)
    with cgutils.for_range(builder, high) as y, cgutils.for_range(builder, wide) as x:
        at = builder.add(builder.mul(y.index, down), builder.mul(x.index, right))
        grad = builder.load(current)
        builder.store(move(grad, apart), current)
        outer = [builder.load(vector_at(grad, v), align=4) for v in range(vectors)]
        for row, line in enumerate(lines):
            for column in range(columns):
                value = spread(builder.load(move(move(line, at), column)))
                for v in range(vectors):
                    one = sums[(row * columns + column) * vectors + v]
                    product = builder.fmul(value, outer[v], flags=("contract",))
                    builder.store(builder.fadd(builder.load(one), product, flags=("contract",)), one)
    for number, one in enumerate(sums):
        total = vector_at(totals, number)
        builder.store(builder.fadd(builder.load(total, align=4), builder.load(one)), total, align=4)


@intrinsic
def _turn_square(typing: Any, g: Any, places: Any, out: Any, width: Any) -> Any:
    """LANES rows of g, ``places`` apart, become columns of LANES rows of out, ``width`` apart."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, index, short = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64), ir.IntType(32)

        def line(number: int, pointer: Any, apart: Any) -> Any:
            at = builder.gep(pointer, [builder.mul(apart, ir.Constant(index, number))])
            return builder.bitcast(at, vector.as_pointer())

        source, target = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
        values = [builder.load(line(i, source, args[1]), align=4) for i in range(LANES)]
        half = 1
        while half < LANES:  # pairs of rows exchange blocks of ``half``: transposes squares of twice that
            for i in range(LANES):
                if not i & half:
                    low, high = values[i], values[i + half]
                    kept = [n if not n & half else n - half + LANES for n in range(LANES)]
                    moved = [n + half if not n & half else n + LANES for n in range(LANES)]
                    values[i], values[i + half] = (
                        builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(short, LANES), mask))
                        for mask in (kept, moved)
                    )
            half *= 2
        for i, value in enumerate(values):
            builder.store(value, line(i, target, args[3]), align=4)
        return context.get_dummy_value()

    return types.void(g, places, out, width), generate


turn_square: Any = _turn_square
