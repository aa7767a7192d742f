"""Shared by the tests of verify: a true statement, and prices that are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from statement_maker import remembering, stated

from dptrain.privacy import accounting, recompute
from dptrain.signing import load_signer


@pytest.fixture(scope="module")
def remembered() -> Iterator[None]:
    """Hundreds of changed statements name the same few mechanisms: each is priced once, by the real accountants."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in [(accounting, "epsilon"), (accounting, "rdp_epsilon"), (recompute, "guarantee_block")]:
            patch.setattr(module, name, remembering(getattr(module, name)))
        yield


@pytest.fixture(scope="module")
def true_statement(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Signed anew by each test's own key."""
    return stated(signer=load_signer(tmp_path_factory.mktemp("keys") / "k"))
