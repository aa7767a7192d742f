"""Rows of one user are capped by a choice that looks at ids alone; people who repeat are never promised as records."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dptrain.data.source import Rows, Splits
from dptrain.data.units import cap_line, check_units, found_rows, limit_rows
from dptrain.errors import ConfigError


def numbered(unit_id: list[int]) -> Rows:
    """Rows whose content is their position in the file."""
    number = torch.arange(len(unit_id))
    return Rows(number.float()[:, None], number, torch.tensor(unit_id, dtype=torch.int64))


def test_the_same_person_twice_is_refused_as_a_record() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.unit=record.*a row, not the person.*privacy\.unit=user"):
        limit_rows(numbered([0, 1, 1, 2]), "record", 1, seed=0)


def test_a_user_promise_needs_ids() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.unit=user.*data\.unit_column"):
        check_units(numbered([0, 1]), "user", 1, has_user_ids=False)
    with pytest.raises(ConfigError, match=r"privacy\.max_rows_per_unit=0"):
        limit_rows(numbered([0, 1]), "user", 0, seed=0)


def test_records_pass_untouched() -> None:
    rows = limit_rows(numbered([2, 0, 1]), "record", 1, seed=5)
    assert rows.targets.tolist() == [0, 1, 2] and rows.unit_id.tolist() == [0, 1, 2]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_each_user_keeps_just_as_many_rows_as_allowed(unit_id: list[int], most: int, seed: int) -> None:
    kept = limit_rows(numbered(unit_id), "user", most, seed)
    owners = [unit_id[int(row)] for row in kept.targets]
    for user in set(unit_id):
        assert owners.count(user) == min(unit_id.count(user), most)
    assert kept.targets.tolist() == sorted(kept.targets.tolist())
    assert sorted(set(kept.unit_id.tolist())) == list(range(len(set(unit_id))))
    assert kept.unit_id.tolist() == [sorted(set(unit_id)).index(owner) for owner in owners]


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(1, 3), st.integers(0, 1000))
def test_taking_a_user_out_moves_no_row_of_another(unit_id: list[int], most: int, seed: int) -> None:
    gone = unit_id[0]
    with_user = limit_rows(numbered(unit_id), "user", most, seed)
    stays = torch.tensor([i for i, user in enumerate(unit_id) if user != gone], dtype=torch.int64)
    if len(stays) == 0:
        return
    without = limit_rows(numbered(unit_id).take(stays), "user", most, seed)
    assert without.targets.tolist() == [row for row in with_user.targets.tolist() if unit_id[row] != gone]


def test_the_choice_depends_on_the_seed_and_on_no_content() -> None:
    ids = [0] * 50
    choices = {tuple(limit_rows(numbered(ids), "user", 3, seed).targets.tolist()) for seed in range(10)}
    assert len(choices) > 5
    wild = numbered(ids)
    wild.inputs.fill_(float("nan"))
    assert limit_rows(wild, "user", 3, 7).targets.tolist() == limit_rows(numbered(ids), "user", 3, 7).targets.tolist()


def test_every_row_of_a_user_is_kept_about_equally_often() -> None:
    # 400 seeds, 2 of 8 rows kept: each row's count is Binomial(400, 1/4), sd 8.7; 52 is 6 sd (false alarm < 2e-8).
    counts = torch.zeros(8)
    for seed in range(400):
        counts[limit_rows(numbered([0] * 8), "user", 2, seed).targets] += 1
    assert counts.sum() == 800
    assert (counts - 100).abs().max() < 52


def test_what_the_cap_left_out_is_counted_for_the_internal_room() -> None:
    before = numbered([0, 0, 0, 1, 2, 2])
    after = limit_rows(before, "user", 2, seed=0)
    told = found_rows(Splits(after, numbered([0]), uncapped=before, found={"text": {"rows_cut_off": 4}}))
    assert told == {"units": 3, "before_cap": 6, "kept": 5, "left_out": 1, "units_above_cap": 1,
                    "text": {"rows_cut_off": 4}}  # fmt: skip
    assert found_rows(Splits(before, before))["left_out"] == 0


def test_the_plan_says_what_a_cap_costs_from_public_counts_alone() -> None:
    line = cap_line({1: 10, 3: 2, 40: 1}, 2)
    assert "16 of 56 rows stay (29%), 3 of 13 users lose some" in line
    assert "1 keeps 23%" in line and "4 keeps 36%" in line and " 2 keeps" not in line
    assert "private" in cap_line(None, 2)
