"""How units fall into groups by what was declared about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dptrain.audit.groups import by_quantile, check_groups, make_groupings
from dptrain.audit.tier import make_pool
from dptrain.config_data import ColumnConfig
from dptrain.data.columns import decode, encode
from dptrain.data.source import Rows, SourceInfo
from dptrain.errors import ConfigError

COLUMNS = {"age": ColumnConfig(low=0, high=100), "sex": ColumnConfig(categories=["f", "m"])}


def info(unit: str = "user", **more) -> SourceInfo:
    facts = {"name": "t", "task": "binary", "input_shape": (4,), "num_classes": 2, "public_size": 4}
    return SourceInfo(**(facts | {"unit": unit, "columns": COLUMNS, "class_names": ("no", "yes")} | more))


def people() -> Rows:
    """Eight people of 1, 1, 1, 1, 2, 2, 9 and 9 rows, ten years apart; the last one's sex is not declared."""
    sizes = [1, 1, 1, 1, 2, 2, 9, 9]
    unit = np.repeat(np.arange(8), sizes)
    cells = {"age": (10.0 * unit).astype(object), "sex": np.array([*"ffmmfmf", "x"], dtype=object)[unit]}
    inputs = np.concatenate([encode(cells, COLUMNS), np.zeros((len(unit), 1), np.float32)], axis=1)
    return Rows(torch.from_numpy(inputs), torch.from_numpy(unit % 2), torch.from_numpy(unit))


def test_declared_columns_are_read_back_from_inputs() -> None:
    found = decode(people().inputs.numpy(), COLUMNS)
    assert found["age"][:4] == pytest.approx([0, 10, 20, 30], abs=1e-4)
    assert found["sex"][[0, 2, -1]].tolist() == [0, 1, -1]


def test_units_are_sorted_by_class_size_and_columns() -> None:
    made = {one.by: one for one in make_groupings(people(), info(), check_groups(info(), None))}
    assert list(made) == ["class", "unit_size", "age", "sex"]
    assert made["class"].group.tolist() == [0, 1] * 4 and made["class"].names == ("no", "yes")
    assert [made["unit_size"].names[k] for k in made["unit_size"].group] == ["1"] * 4 + ["2"] * 2 + ["9"] * 2
    assert made["age"].names == ("0 to 10", "20 to 30", "40 to 50", "60 to 70")
    assert [made["sex"].names[k] for k in made["sex"].group] == [*"ffmmfmf", "none of the declared"]


def test_only_what_is_asked_for_and_there() -> None:
    assert [one.by for one in make_groupings(people(), info(), ["sex"])] == ["sex"]
    assert check_groups(info(unit="record", columns=None), None) == ["class"]
    for wrong in ("sexx", "unit_size"):
        with pytest.raises(ConfigError, match=r"audit\.groups"):
            check_groups(info(unit="record"), [wrong])


@pytest.mark.parametrize("values", [[5.0], [3.0] * 50, list(range(101)), [0.0] * 90 + [1.0] * 10])
def test_quantile_groups_keep_equal_values_together(values: list[float]) -> None:
    made = by_quantile("x", np.array(values, dtype=np.float64))
    assert len(made.names) == len(set(made.group.tolist())) <= 4
    for value in set(values):
        assert len(set(made.group[np.array(values) == value])) == 1
    if len(set(values)) > 100:
        assert max(np.bincount(made.group)) <= 0.27 * len(values)


def test_a_pools_scored_members_come_in_the_order_of_their_scores() -> None:
    rows = people()
    pool = make_pool(rows, rows, 5, 3)
    scored = pool.scored[pool.is_member]
    members = pool.scored_members()
    assert members.num_units == 5
    for place, unit in enumerate(scored):
        assert torch.equal(members.inputs[members.unit_id == place], rows.inputs[rows.unit_id == unit])
