"""Splits ignore content, keep people together, and move nobody when somebody else leaves."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dptrain.data.split import split_ids, split_positions

FRACTIONS = st.floats(0.01, 0.99)


@given(st.integers(1, 500), FRACTIONS, st.integers(0, 2**32 - 1))
def test_positions_give_the_fraction_and_do_not_depend_on_the_number_of_rows(
    rows: int, fraction: float, seed: int
) -> None:
    public = split_positions(rows, fraction, seed)
    assert len(public) == rows
    assert abs(public.sum() - rows * fraction) <= 1
    assert (split_positions(rows + 1, fraction, seed)[:rows] == public).all()


def test_positions_depend_on_the_seed() -> None:
    assert (split_positions(200, 0.3, 0) != split_positions(200, 0.3, 1)).any()
    assert split_positions(1000, 0.2, 4).sum() == 200


@given(st.lists(st.text(max_size=4), min_size=1, max_size=60), FRACTIONS, st.integers(0, 2**32 - 1))
def test_an_id_is_on_one_side_only_and_stays_there(ids: list[str], fraction: float, seed: int) -> None:
    public = split_ids(ids, fraction, seed)
    sides = {}
    for name, side in zip(ids, public, strict=True):
        assert sides.setdefault(name, side) == side
    fewer = [name for name in ids if name != ids[0]]
    if fewer:
        assert split_ids(fewer, fraction, seed).tolist() == [sides[name] for name in fewer]


def test_ids_give_about_the_fraction() -> None:
    # Binomial(20,000, 0.3): sd 65; 400 is over 6 sd (false alarm < 1e-9), and the seed is fixed.
    public = split_ids([f"person {i}" for i in range(20_000)], 0.3, 1)
    assert abs(int(np.sum(public)) - 6000) < 400
