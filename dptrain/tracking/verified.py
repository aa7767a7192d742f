"""The gate of the model registry: a bundle enters with a statement that verifies, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dptrain.errors import ClaimRejected


def verified_statement(bundle: Path) -> dict[str, Any]:
    """The statement of a release bundle, verified now: its numbers recomputed, signature and digests checked.

    Raises:
        ClaimRejected: it does not verify, there is none, or nothing binds it to the weights beside it (exit code 4).
    """
    from dptrain.privacy.verdict import OK
    from dptrain.privacy.verify import verified

    verdict = verified(bundle)
    bound = any(line.name == "files" and line.status == OK for line in verdict.lines)
    if not (verdict.holds and bound):
        why = verdict.problems[0] if verdict.problems else "the statement is not bound to the files beside it"
        raise ClaimRejected("checkpoint", bundle, why, "only a bundle whose statement verifies is registered")
    assert verdict.statement is not None  # it holds; the very text that was checked, not read again
    return verdict.statement
