"""The gate of the model registry: a bundle enters with a statement that verifies, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def verified_statement(bundle: Path) -> dict[str, Any]:
    """The statement of a release bundle, verified now: its numbers recomputed, signature and digests checked.

    Raises:
        ClaimRejected: it does not verify, there is none, or nothing binds it to the weights beside it (exit code 4).
    """
    from dptrain.privacy.verified_bundle import verified_bundle

    return verified_bundle(bundle, remedy="only a bundle whose statement verifies is registered")
