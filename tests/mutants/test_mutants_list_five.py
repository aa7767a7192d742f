"""Every mistake of list five trains, and is in force. A few by default; all of them: ``-m slow``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from in_force import Watched, clean, differences, in_force, runner

FEW = ("buffer_not_refilled", "slots_in_a_byte", "rows_kept_by_one_shuffle", "key_of_two_bytes", "best_by_private_loss")

mutants: dict[str, Any] = runner.load(str(Path(__file__).with_name("list_five")))


def test_the_list_says_what_it_is() -> None:
    assert len(mutants) == 62
    for name, (row, says, apply, settings) in mutants.items():
        assert name.isidentifier() and row and says and callable(apply) and isinstance(settings, tuple)
    assert len({says for _, says, _, _ in mutants.values()}) == len(mutants)


def _check(name: str) -> None:
    _, _, apply, settings = mutants[name]
    assert in_force(apply, settings)


@pytest.mark.parametrize("name", FEW)
def test_a_mistake_trains_and_is_in_force(name: str) -> None:
    _check(name)


def test_two_runs_without_a_mistake_do_the_same() -> None:
    assert not dict(differences(clean(()), Watched(())))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(mutants.keys() - set(FEW)))
def test_every_mistake_trains_and_is_in_force(name: str) -> None:
    _check(name)


@pytest.mark.slow
@pytest.mark.parametrize("settings", sorted({settings for *_, settings in mutants.values()}), ids=" ".join)
def test_no_settings_make_a_difference_by_themselves(settings: tuple[str, ...]) -> None:
    assert not dict(differences(clean(settings), Watched(settings)))
