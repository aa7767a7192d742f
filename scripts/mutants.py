"""The mutation score: how many seeded mistakes the checks of ``dptrain conform`` find, by which of them, and when.

    python scripts/mutants.py tests/mutants/list_one [more lists] [only=NAME,NAME] [part=1/3] [stop=first]
                              [rows=FILE] [clean=no]

``part=1/3`` takes every third mutant, from the first; ``stop=first`` leaves a mutant at the first check that fails and
is none of ``LATER``; ``clean=no`` leaves the unchanged parts out, which otherwise must pass all checks under every
mutant's settings first. ``rows=FILE`` adds every outcome to a file of JSON lines as it comes, leaves out what is in it
already, and so goes on where a run was cut off; the table is of all its rows.

Every list is a folder of files (or one file) with dictionaries MUTANTS (tests/mutants/README.md). Exit code 0: all were
caught and nothing clean was accused; 1 otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dptrain.compose import compose
from dptrain.conformance.kit import conform, open_conform
from dptrain.errors import DptrainError, one_line

Mutant = tuple[str, str, Callable[[Callable[[Any, str, Any], None]], None], tuple[str, ...]]

BASE = (
    "data=digits",
    "model=mlp",
    "model.options.hidden=[32]",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=1",
    "privacy.epochs=null",
    "privacy.steps=64",
    "execution.device=cpu",
)
"""A small model, so that a mutant takes seconds; a mutant's own settings come after these."""

LATER = (
    *("just above C", "learning rates", "slack paid", "key stream", "noise, lattice", "noise, tails"),
    *("rough gradients", "large batch", "noise, each parameter", "noise, places", "noise, never twice"),
    *("noise, rounding", "sampling, rate", "sampling, sizes", "sampling, empty draws", "sampling, each step"),
    *("sum, few clipped", "sampling, planned rate", "price"),
    *("layers", "token lengths", "public numbers", "price, looks", "price, units unknown", "price, best of trials"),
    *("account", "short runs", "long run, events", "long run, addresses", "post-processing", "long run, replay"),
    *("noise, with units", "whole run", "whole run, count", "whole run, claim", "whole run, files", "noise, regular"),
    *("wide release", "noise, wide", "noise, wide, never twice", "private looks"),
    *("many units", "rows of one user", "whole run, best", "keys", "draws, far apart"),
)
"""Checks that were added when list two had been read, list three, and list five. What they catch is counted apart."""


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant."""

    name: str
    row: str
    says: str
    caught_by: tuple[str, ...]
    """Checks that failed; ``refused`` where the run would not have begun."""
    step: int | None
    """Fewest steps of a run after which a check knew; None where no step was needed, or none caught it."""
    crash: str
    """The Python error it ended in; it counts as not caught then."""
    seconds: float

    @property
    def caught(self) -> bool:
        return bool(self.caught_by) and not self.crash

    @property
    def caught_before(self) -> bool:
        """Whether a check that is none of ``LATER`` failed."""
        return self.caught and any(check not in LATER for check in self.caught_by)


def load(path: str) -> dict[str, Mutant]:
    """The mutants of one list: of a file, or of the files of a folder, in the order of their names."""
    name, place = f"mutants_{Path(path).stem}", Path(path)
    if not place.is_dir():
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module.MUTANTS
    if name not in sys.modules:  # a package, so that its files can import from each other
        package = ModuleType(name)
        package.__path__ = [str(place)]
        sys.modules[name] = package
    files = [importlib.import_module(f"{name}.{file.stem}") for file in sorted(place.glob("*.py"))]
    return {key: mutant for file in files for key, mutant in getattr(file, "MUTANTS", {}).items()}


@contextmanager
def mutated(apply: Callable[[Callable[[Any, str, Any], None]], None]) -> Iterator[None]:
    """The mistake is made, and taken back afterwards."""
    held: list[tuple[Any, str, bool, Any]] = []

    def patch(owner: Any, name: str, value: Any) -> None:
        own = name in vars(owner)
        held.append((owner, name, own, vars(owner)[name] if own else None))
        setattr(owner, name, value)

    try:
        apply(patch)
        yield
    finally:
        for owner, name, own, value in reversed(held):
            if own:
                setattr(owner, name, value)
            else:
                delattr(owner, name)


def checked(settings: Sequence[str], first_only: bool) -> tuple[tuple[str, ...], int | None]:
    """Checks that fail under these settings, and the fewest steps that one of them needed.

    Raises:
        DptrainError: the run is refused.
    """
    overrides = spelled([*BASE, *settings])
    config = compose("conform", overrides)
    torch.manual_seed(0)
    failed, steps = list[str](), list[int]()
    for result in conform(open_conform(config), config):
        if result.passed is False:
            failed.append(result.check)
            steps += [] if result.step is None else [result.step]
            if first_only and result.check not in LATER:
                break
    return tuple(failed), min(steps, default=None)


def spelled(overrides: Sequence[str]) -> list[str]:
    """A mutant's own model or source takes the place of the base's, whose options it has not."""
    groups = {o.split("=")[0] for o in overrides[len(BASE) :]}
    base = [o for o in BASE if o.split("=")[0] not in groups]
    base = [o for o in base if "model" not in groups or not o.startswith("model.options")]
    return [*base, *overrides[len(BASE) :]]


def examine(name: str, mutant: Mutant, first_only: bool) -> Outcome:
    """Runs the checks on one mutant."""
    row, says, apply, settings = mutant
    began = time.monotonic()
    caught: tuple[str, ...] = ()
    step, crash = None, ""
    with mutated(apply):
        try:
            caught, step = checked(settings, first_only)
        except DptrainError:
            caught = ("refused",)
        except Exception as error:  # a mutant may end in anything
            crash = one_line(f"{type(error).__name__}: {error}")[:120]
    return Outcome(name, row, says, caught, step, crash, time.monotonic() - began)


def clean(settings: tuple[str, ...]) -> tuple[str, ...]:
    """Checks that accuse the unchanged parts; ``refused`` where a run would not begin."""
    try:
        return checked(settings, first_only=False)[0]
    except DptrainError:
        return ("refused",)


def main(words: Sequence[str]) -> int:
    """Prints the table and the score of each list."""
    options = dict(word.split("=", 1) for word in words if "=" in word)
    lists = [word for word in words if "=" not in word]
    only = options.get("only", "").split(",") if "only" in options else None
    torch.set_num_threads(1)
    good = True
    for path in lists:
        mutants = {name: m for name, m in load(path).items() if only is None or name in only}
        part, parts = (int(number) for number in options.get("part", "1/1").split("/"))
        mutants = dict(list(mutants.items())[part - 1 :: parts])
        rows = Rows(options.get("rows"))
        every = dict.fromkeys(m[3] for m in mutants.values()) if options.get("clean") != "no" else {}
        for settings in every:
            name = f"clean {' '.join(settings) or '(base)'}"
            if name not in rows.kept:
                rows.keep(name, {"accused": clean(settings)})
            accused = rows.kept[name]["accused"]
            good &= list(accused) in ([], ["refused"])
            print(f"{name}: {', '.join(accused) or 'passes all'}", flush=True)
        print("\n|mutant|source|mistake|caught by|step|\n|---|---|---|---|---|", flush=True)
        outcomes = list[Outcome]()
        for name, mutant in mutants.items():
            if name not in rows.kept:
                rows.keep(name, asdict(examine(name, mutant, options.get("stop") == "first")))
            one = Outcome(**{**rows.kept[name], "caught_by": tuple(rows.kept[name]["caught_by"])})
            outcomes.append(one)
            found = one.crash or ", ".join(one.caught_by) or "**not caught**"
            print(f"|{name}|{one.row}|{one.says}|{found}|{'' if one.step is None else one.step}|", flush=True)
        count, before = sum(one.caught for one in outcomes), sum(one.caught_before for one in outcomes)
        good &= count == len(outcomes)
        score = f"{count}/{len(outcomes)}, of them {count - before} by later checks alone"
        print(f"\nmutation score of {Path(path).stem}: {score}; {sum(o.seconds for o in outcomes):.0f} s", flush=True)
    return 0 if good else 1


class Rows:
    """Outcomes by name, kept in a file where there is one."""

    def __init__(self, file: str | None) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self._file = None if file is None else Path(file)
        if self._file is not None and self._file.is_file():
            lines = self._file.read_text(encoding="utf-8").splitlines()
            self.kept = {row["name"]: row for row in (json.loads(line) for line in lines)}

    def keep(self, name: str, row: dict[str, Any]) -> None:
        """Adds one."""
        self.kept[name] = {**row, "name": name}
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                print(json.dumps(self.kept[name]), file=file)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("DPTRAIN_HOME", home)
        sys.exit(main(sys.argv[1:]))
