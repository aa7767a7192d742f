"""The gate before a bundle is used: loaded, attacked, registered. What ``dptrain verify`` refuses does not pass."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dptrain.errors import ClaimRejected, ConfigError
from dptrain.privacy.verdict import OK
from dptrain.privacy.verify import verified


def verified_bundle(
    path: str | Path,
    key: str | Path | None = None,
    heads: Iterable[str] = (),
    after: Iterable[str] = (),
    remedy: str = "only a bundle that 'dptrain verify' passes is loaded",
) -> dict[str, Any]:
    """The statement of a release bundle, verified now, and bound to the files beside it.

    Args:
        path: a release bundle, or a run folder that holds one.
        key, heads, after: as in ``verify.verified``.
        remedy: what the refusal advises.

    Returns:
        The statement that was checked, not read again: ``artifact.files`` holds the digests to load by.

    Raises:
        ClaimRejected: it does not verify, or nothing binds a statement to weights (exit code 4).
        ConfigError: there is nothing at ``path``, or ``key``, ``heads`` or ``after`` cannot be read (exit code 2).
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError("checkpoint", path, "no such folder", "give a run folder or its checkpoint/")
    verdict = verified(folder, key, heads, after)
    bound = any(line.name == "files" and line.status == OK for line in verdict.lines)
    if not (verdict.holds and bound):
        why = verdict.problems[0] if verdict.problems else "files: no weights are bound to the statement"
        raise ClaimRejected("checkpoint", path, why, remedy)
    assert verdict.statement is not None
    return verdict.statement
