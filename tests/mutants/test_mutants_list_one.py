"""A few mutants of list one, and the runner itself; all of them: ``-m slow``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from in_force import runner, script

LIST = Path(__file__).with_name("list_one")
FEW = {"noise_half": "noise, deviation", "clip_110": "sum", "draws_merged": "replay, own draws"}
"""Mutant -> the check that must be the first to fail, of those that are none of the runner's ``LATER``."""

digest: Any = script("mutant_digest")
mutants: dict[str, Any] = runner.load(str(LIST))


def test_entries_are_named_once_and_say_where_they_come_from() -> None:
    assert len(mutants) >= 40
    for name, (row, says, apply, settings) in mutants.items():
        assert name.isidentifier() and row and says and callable(apply) and isinstance(settings, tuple)
    assert len({says for _, says, _, _ in mutants.values()}) == len(mutants)


@pytest.mark.parametrize("name", sorted(FEW))
def test_a_mutant_is_caught_and_taken_back(name: str) -> None:
    found = runner.examine(name, mutants[name], True)
    *later, first = found.caught_by
    assert found.caught and first == FEW[name] and set(later) <= set(runner.LATER) and not found.crash
    with runner.mutated(lambda patch: patch(runner, "BASE", ())):
        assert runner.BASE == ()
    assert runner.BASE


def test_outcomes_are_kept_and_what_later_checks_catch_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    outcome = runner.Outcome("a", "own", "says", ("key stream",), None, "", 1.0)
    runner.Rows(str(file)).keep("a", runner.asdict(outcome))
    assert runner.Rows(str(file)).kept["a"]["caught_by"] == ["key stream"]
    assert outcome.caught and not outcome.caught_before
    assert runner.Outcome("b", "own", "says", ("sum", "key stream"), None, "", 1.0).caught_before


def test_a_digest_knows_entries_and_not_files(tmp_path: Path) -> None:
    first, second = 'def one(patch):\n    """Says."""\n', "def two(patch):\n    patch(1)\n"
    entries = ['"a": ("own", "a", one, ())', '"b": ("own", "b", two, ("x=1",))']
    whole = tmp_path / "whole.py"
    whole.write_text(f"import os\n\n{first}\n{second}\nMUTANTS: dict = {{{', '.join(entries)}}}\n")
    folder = tmp_path / "list"
    folder.mkdir()
    (folder / "b.py").write_text(f"# two\n{second}\nMUTANTS: dict = {{{entries[1]}}}\n")
    (folder / "a.py").write_text(f"{first}\nMUTANTS: dict = {{{entries[0]}}}\n")
    assert digest.digest(whole) == digest.digest(folder)
    (folder / "b.py").write_text(f"{second}\nMUTANTS: dict = {{{entries[1].replace('x=1', 'x=2')}}}\n")
    assert digest.digest(whole) != digest.digest(folder)


@pytest.mark.slow
def test_every_mutant_is_caught_and_nothing_clean_is() -> None:
    assert runner.main([str(LIST), "stop=first"]) == 0
