"""The digest of the rows notices every change and is nothing without its salt."""

from __future__ import annotations

import pytest
import torch

from dptrain.data.manifest import manifest_digest, new_salt
from dptrain.data.source import Rows

SALT = bytes(range(32))


def some_rows() -> Rows:
    generator = torch.Generator().manual_seed(3)
    return Rows(torch.randn(20, 2, 3, generator=generator), torch.arange(20) % 4, torch.arange(20) // 2)


def changed(what: str) -> Rows:
    rows = some_rows()
    inputs, targets, unit_id = rows.inputs.clone(), rows.targets.clone(), rows.unit_id.clone()
    order = torch.arange(20)
    if what == "edit one value by one bit":
        inputs[7, 1, 2] = torch.nextafter(inputs[7, 1, 2], torch.tensor(9.0))
    if what == "edit one target":
        targets[11] = 3 - targets[11]
    if what == "move a row to another unit":
        unit_id[19] = 0
    if what == "append":
        order = torch.cat([order, torch.tensor([19])])
    if what == "drop":
        order = order[:-1]
    if what == "reorder":
        order = torch.cat([torch.tensor([1, 0]), order[2:]])
    if what == "shape":
        inputs = inputs.reshape(20, 3, 2)
    if what == "type":
        targets = targets.int()
    return Rows(inputs[order], targets[order], unit_id[order])


CHANGES = ["edit one value by one bit", "edit one target", "move a row to another unit", "append", "drop", "reorder",
           "shape", "type"]  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_is_noticed(what: str) -> None:
    assert manifest_digest(changed(what), SALT) != manifest_digest(some_rows(), SALT)


def test_equal_rows_have_equal_digests_whatever_their_memory() -> None:
    rows = some_rows()
    strided = Rows(rows.inputs.transpose(1, 2).contiguous().transpose(1, 2), rows.targets, rows.unit_id)
    assert not strided.inputs.is_contiguous()
    assert manifest_digest(strided, SALT) == manifest_digest(rows, SALT) == manifest_digest(changed("nothing"), SALT)


def test_bytes_do_not_flow_from_one_field_into_the_next() -> None:
    one = Rows(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    other = Rows(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int32), torch.arange(2))
    assert manifest_digest(one, SALT) != manifest_digest(other, SALT)


def test_the_salt_matters_and_is_fresh() -> None:
    first, second = new_salt(), new_salt()
    assert first != second and len(first) >= 16
    assert manifest_digest(some_rows(), first) != manifest_digest(some_rows(), second)
    with pytest.raises(ValueError, match="salt"):
        manifest_digest(some_rows(), b"short")
