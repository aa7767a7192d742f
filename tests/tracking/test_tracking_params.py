"""Settings as trackers keep them."""

from __future__ import annotations

import doctest

from dptrain.tracking import params


def test_the_example_holds_and_a_name_with_a_dot_at_its_end_is_kept_apart() -> None:
    assert doctest.testmod(params).failed == 0 and doctest.testmod(params).attempted == 1
    assert params.flat_settings({"a": {"b": None}, "c": {}}) == {"a.b": "None"}
