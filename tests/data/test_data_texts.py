"""Repeats, splits, targets and units of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.config_text import TextConfig
from dptrain.data.split import split_share
from dptrain.data.texts import LANGUAGE, Texts, normalised, public_rows, to_rows, without_repeats
from dptrain.data.tokenise import open_tokeniser

BYTES = open_tokeniser(TextConfig(tokenizer="bytes", max_length=8))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_repeats_go_by_normalised_text_and_the_first_stays() -> None:
    held = without_repeats(Texts(["Win  NOW", "hello", "win now\n", "Hello!", "hello"], [1, 0, 0, 0, 1]))
    assert held.text == ["Win  NOW", "hello", "Hello!"] and held.target == [1, 0, 0]


def test_one_owners_repeats_leave_anothers_alone() -> None:
    texts = Texts(["a", "a", "b", "a"], [0, 0, 0, 0], ["ann", "bob", "bob", "bob"])
    assert without_repeats(texts).owner == ["ann", "bob", "bob"]
    # Taking ann away changes nothing of bob's.
    rest = without_repeats(texts.take([1, 2, 3]))
    assert rest.text == ["a", "b"] and rest.owner == ["bob", "bob"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="aB \n", max_size=4), max_size=20))
def test_without_repeats_every_text_is_there_once(texts: list[str]) -> None:
    held = without_repeats(Texts(texts, [0] * len(texts)))
    names = [normalised(text) for text in held.text]
    assert len(set(names)) == len(names) and set(names) == {normalised(text) for text in texts}
    assert without_repeats(held) == held


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.floats(0.01, 0.99), st.integers(0, 5))
def test_the_share_of_public_units_is_exact_and_units_stay_whole(owners: list[int], share: float, seed: int) -> None:
    ids = [str(owner) for owner in owners]
    public = split_share(ids, share, seed)
    sides = {name: {bool(side) for other, side in zip(ids, public, strict=True) if other == name} for name in set(ids)}
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {True} for side in sides.values()) == round(len(sides) * share)
    order = np.random.RandomState(seed).permutation(len(ids))
    assert np.array_equal(split_share([ids[i] for i in order], share, seed), public[order])


def test_where_the_size_is_declared_no_unit_moves_another() -> None:
    texts = Texts([f"text {i}" for i in range(200)], [0] * 200)
    whole = public_rows(texts, 0.3, 4, declared=True)
    without = public_rows(texts.take(range(1, 200)), 0.3, 4, declared=True)
    assert np.array_equal(whole[1:], without) and 30 < whole.sum() < 90
    assert public_rows(texts, 0.3, 4, declared=False).sum() == 60


def test_targets_and_units() -> None:
    texts = Texts(["abc", "", "abcdefghij"], [1, 0, 1], ["z", "a", "z"])
    rows, cut = to_rows(texts, BYTES, "binary")
    assert rows.targets.tolist() == [1, 0, 1] and rows.unit_id.tolist() == [0, 1, 0]
    assert rows.inputs.dtype == torch.int64 and cut.tolist() == [False, False, True]
    told, _ = to_rows(Texts(texts.text, []), BYTES, LANGUAGE)
    assert told.targets.tolist() == [4, 1, 7]  # the letters and the end; the end alone; all but the first of eight
    assert told.unit_id.tolist() == [0, 1, 2]
