"""The gate of the model registry: a bundle enters with a statement that verifies, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dptrain.errors import ClaimRejected
from dptrain.run_folder import read_json


def verified_statement(bundle: Path) -> dict[str, Any]:
    """The statement of a release bundle, verified now: its numbers recomputed, signature and digests checked.

    Raises:
        ClaimRejected: it does not verify, or there is none (exit code 4).
    """
    from dptrain.privacy.verify import verified

    verdict = verified(bundle)
    if not verdict.holds:
        why = verdict.problems[0] if verdict.problems else "its statement could not be verified"
        raise ClaimRejected("checkpoint", bundle, why, "only a bundle whose statement verifies is registered")
    return read_json(bundle / "statement.json")
