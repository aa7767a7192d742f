"""What a person's rows become, from the file to the physical batch: the same whoever else is in the file.

The accounting takes neighbours to differ in one person and in nothing else. So a made-up table is read again and again,
with people missing at the front, in the middle and at the end, or with other values and other numbers of rows, and what
is left of everybody else is compared bit by bit: which of their rows are kept under the cap, their order, their mapped
values, targets and weights, and that nobody else is in their slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dptrain.config import ExecutionConfig, ModelConfig, RunConfig, TrainConfig
from dptrain.config_data import ColumnConfig, DataConfig
from dptrain.conformance.stand import Result
from dptrain.conformance.whole_run import own_room
from dptrain.errors import ConfigError
from dptrain.keystream import Keystream
from dptrain.training import stages
from dptrain.training.assemble import build_trainer
from dptrain.training.setup import Setup

PEOPLE, MOST, CAP = 40, 7, 2
"""People of the table, rows of the largest of them, and the cap."""
ROOM = 1000
"""Numbers of rows that a person may have, in the column that tells whose row is whose."""

Line = tuple[int, int, float]
"""Person, number of the row among the person's own, and another value."""
Became = tuple[tuple[float, ...], int, float]
"""A row of a physical batch: mapped inputs, target and weight."""


def own_rows() -> Result:
    """Everybody who is in two versions of the table is the same in both. Exact: reading and capping hold no chance."""
    try:
        return _compared("rows of one user")
    except ConfigError as error:  # nothing in it is the user's
        return Result("rows of one user", False, f"a sound table is refused: {error}")


def _compared(name: str) -> Result:
    with own_room() as folder:
        file = folder / "table.csv"
        _write(file, table())
        setup = stages.prepare(settings(folder, file), check_folder=False)
        before = became(setup)
        if isinstance(before, str):
            return Result(name, False, before)
        if {len(rows) for person, rows in before.items()} != set(range(1, CAP + 1)):
            return Result(name, False, f"people train with other than 1 to {CAP} rows")
        count = 0
        for which, lines in versions().items():
            _write(file, lines)
            after = became(setup)
            if isinstance(after, str):
                return Result(name, False, f"{which}: {after}")
            same = {line[0] for line in lines if line in _LINES} & {line[0] for line in table()}
            same -= {line[0] for line in lines if line not in _LINES}
            for person in sorted(same):
                if before.get(person) != after.get(person):
                    told = f"{_told(before.get(person))} became {_told(after.get(person))}"
                    return Result(name, False, f"{which}: the {told} of somebody else")
                count += person in before
    says = f"{count} times what a person's rows become is the same, in {len(versions())} tables of other people"
    return Result(name, True, says)


def _told(rows: Sequence[Became] | None) -> str:
    if rows is None:
        return "absence"
    return f"rows {', '.join(str(round((row[0][0] + 1.0) / 2.0 * PEOPLE * ROOM) % ROOM) for row in rows)}"


def table() -> list[Line]:
    """Rows of everybody, in no order; people of 1 to 7 rows."""
    lines = [(person, row, 0.1 * row) for person in range(PEOPLE) for row in range(1 + person * 3 % MOST)]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(17)).tolist()
    return [lines[place] for place in order]


_LINES = frozenset(table())


def versions() -> dict[str, list[Line]]:
    """The same table with other people."""
    lines = table()
    first, last = lines[0][0], lines[-1][0]
    gone = {
        "without the first in the file": {first},
        "without the last in the file": {last},
        "without the first by name": {0},
        "without one in the middle": {PEOPLE // 2},
        "without the last by name": {PEOPLE - 1},
        "without every third": set(range(0, PEOPLE, 3)),
        "without the largest": {person for person in range(PEOPLE) if 1 + person * 3 % MOST == MOST},
    }
    found = {name: [line for line in lines if line[0] not in people] for name, people in gone.items()}
    others = set(range(0, PEOPLE, 2))
    mine = [line for line in lines if line[0] not in others]
    theirs = [line for line in lines if line[0] in others]
    found["others have other values"] = [(p, r, 7.0 + v) if p in others else (p, r, v) for p, r, v in lines]
    found["others have more rows"] = lines + [(p, MOST + r, v) for p, r, v in theirs for _ in range(2)]
    found["others come first"] = [(p, r, v + 1.0) for p, r, v in theirs] + mine
    found["others come last"] = mine + [(p, r, v + 1.0) for p, r, v in theirs]
    return found


def settings(folder: Path, file: Path) -> TrainConfig:
    """Of a run on the table: columns declared, people named, few rows of each."""
    base = TrainConfig()
    return TrainConfig(
        data=DataConfig(
            name="csv",
            path=str(file),
            label="label",
            task="binary",
            classes=["no", "yes"],
            columns={
                "own": ColumnConfig(low=0, high=PEOPLE * ROOM),
                "value": ColumnConfig(low=-1, high=1),
                "kind": ColumnConfig(categories=["a", "b", "c"]),
            },
            unit_column="person",
            public_size=PEOPLE,
            public_fraction=0.15,
        ),
        model=ModelConfig(name="linear"),
        privacy=replace(
            base.privacy,
            **{"epsilon": None, "noise_multiplier": 2.0, "steps": 4, "epochs": None, "delta": 1e-5},
            **{"unit": "user", "max_rows_per_unit": CAP, "expected_batch_size": 10, "adjacency": "add_remove"},
        ),
        execution=ExecutionConfig(physical_batch_size=16, device="cpu"),
        run=RunConfig(dir=str(folder / "run"), purpose="final"),
    )


def _write(file: Path, lines: Sequence[Line]) -> None:
    told = (f"{p * ROOM + r},{v},{'abcd'[r % 4]},{'yes' if (p + r) % 3 else 'no'},person {p}" for p, r, v in lines)
    file.write_text("\n".join(["own,value,kind,label,person", *told]) + "\n", encoding="utf-8")


def became(setup: Setup) -> dict[int, list[Became]] | str:
    """Person -> rows as they lie in physical batches, of everybody who trains; or what is wrong with a slot."""
    rows = stages.read_rows(setup).splits.train
    trainer = build_trainer(setup.config, setup.plan, setup.module, rows, setup.row_loss, Keystream())
    found = dict[int, list[Became]]()
    for batch in trainer.batches(torch.arange(rows.num_units)):
        owner = dict[int, int]()
        for person, slot, row in _rows_of(batch.inputs, batch.targets, batch.unit, batch.weight):
            if owner.setdefault(slot, person) != person:
                return "two people share a slot, and are clipped as one"
            if list(owner.values()).count(person) > 1 or (person in found and slot not in owner):
                return "a person has two slots, and is clipped twice"
            found.setdefault(person, []).append(row)
    return found


def _rows_of(
    inputs: torch.Tensor, targets: torch.Tensor, unit: torch.Tensor, weight: torch.Tensor
) -> Iterator[tuple[int, int, Became]]:
    """Person, slot and content of every row that is no padding."""
    for row in torch.nonzero(weight != 0).flatten().tolist():
        values = tuple(float(value) for value in inputs[row])
        person = round((values[0] + 1.0) / 2.0 * PEOPLE * ROOM) // ROOM
        yield person, int(unit[row]), (values, int(targets[row]), float(weight[row]))
