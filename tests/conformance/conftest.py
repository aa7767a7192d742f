"""Stands of a module's tests, in a home of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tiny_stand import stand_of

from dptrain.conformance.stand import Stand


@pytest.fixture(scope="module")
def stands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stand]]:
    """Settings -> a tiny stand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPTRAIN_HOME", str(tmp_path_factory.mktemp("home")))
        yield stand_of


@pytest.fixture(scope="module")
def stand(stands: Callable[..., Stand]) -> Stand:
    """The tiny stand."""
    return stands()
