"""Every mistake of lists three to five trains, and is in force. A few by default; all of them: ``-m slow``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from in_force import Watched, clean, differences, in_force, runner

SIZES = {"list_three": 92, "list_four": 60, "list_five": 62}
FEW = {
    "list_three": ("blocks_overlap", "clip_decays", "intent_one_behind", "step_in_the_counter"),
    "list_four": ("factor_in_float8", "cyclic_groups", "rest_carried_over", "sign_agreement"),
    "list_five": (
        *("buffer_not_refilled", "slots_in_a_byte", "rows_kept_by_one_shuffle"),
        *("key_of_two_bytes", "best_by_private_loss"),
    ),
}
LISTS: dict[str, dict[str, Any]] = {name: runner.load(str(Path(__file__).with_name(name))) for name in SIZES}


def _named(names: dict[str, Iterable[str]]) -> list[Any]:
    return [pytest.param(which, name, id=f"{which}-{name}") for which, own in names.items() for name in own]


def _check(which: str, name: str) -> None:
    _, _, apply, settings = LISTS[which][name]
    assert in_force(apply, settings)


@pytest.mark.parametrize("which", SIZES)
def test_a_list_says_what_it_is(which: str) -> None:
    mutants = LISTS[which]
    assert len(mutants) == SIZES[which]
    for name, (row, says, apply, settings) in mutants.items():
        assert name.isidentifier() and row and says and callable(apply) and isinstance(settings, tuple)
    assert len({says for _, says, _, _ in mutants.values()}) == len(mutants)


@pytest.mark.parametrize(("which", "name"), _named({which: FEW[which] for which in SIZES}))
def test_a_mistake_trains_and_is_in_force(which: str, name: str) -> None:
    _check(which, name)


def test_two_runs_without_a_mistake_do_the_same() -> None:
    assert not dict(differences(clean(()), Watched(())))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "name"), _named({which: sorted(own.keys() - set(FEW[which])) for which, own in LISTS.items()})
)
def test_every_mistake_trains_and_is_in_force(which: str, name: str) -> None:
    _check(which, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", sorted({settings for own in LISTS.values() for *_, settings in own.values()}), ids=" ".join
)
def test_no_settings_make_a_difference_by_themselves(settings: tuple[str, ...]) -> None:
    assert not dict(differences(clean(settings), Watched(settings)))
