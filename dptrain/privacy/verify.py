"""Checks a release bundle or a statement: schema, signature, signer, files, numbers, ledger head.

Nothing that the file names is imported or run, no torch is needed, and what is read and computed is bounded. What a
signer whom one trusts can still say untruthfully is listed in docs/statement.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dptrain.bundle_files import (
    MANIFEST,
    SEALED,
    SIGNATURE,
    SIGNED_FILES,
    bundle_folder,
    is_as_listed,
    verify_files,
)
from dptrain.errors import ConfigError
from dptrain.privacy import statement_words as words
from dptrain.privacy.head_check import check_ledger
from dptrain.privacy.outside_heads import read_heads
from dptrain.privacy.recompute import check_numbers
from dptrain.privacy.rollback import check_rollback
from dptrain.privacy.seal import signed_by, statement_digest
from dptrain.privacy.statement_schema import SCHEMA, faults
from dptrain.privacy.verdict import MISMATCH, OK, UNKNOWN, Verdict
from dptrain.revoked_keys import refusal
from dptrain.signing import key_id, trusted_keys
from dptrain.untrusted_json import NotReadable, read_untrusted


def verified(
    path: str | Path, key: str | Path | None = None, heads: Iterable[str] = (), after: Iterable[str] = ()
) -> Verdict:
    """What can be said of a statement without its maker's help.

    Args:
        path: a release bundle, a run folder that holds one, or a statement file.
        key: public key file of the one signer to accept; None for the user's own key and those in ``trusted/``.
        heads: files that name ledger heads (``privacy/outside_heads.py``).
        after: files that name heads which the statement must not be older than (``privacy/rollback.py``).

    Returns:
        The verdict; ``holds`` only where schema, signature, signer and epsilon are ok and nothing contradicts.

    Raises:
        ConfigError: there is no statement at ``path``; ``key``, ``heads`` or ``after`` cannot be read; or the list of
            revoked keys was changed.
    """
    folder, file = _places(Path(path).expanduser())
    accepted, outside, later = _accepted(key), read_heads(heads), read_heads(after)
    verdict = Verdict(str(path))
    statement = _read(file, verdict)
    if statement is None:
        return verdict
    verdict.statement = statement
    if not _check_signature(statement, accepted, verdict):
        return verdict  # whatever else it says, nobody said it: no work is done for it
    _check_files(statement, folder, Path(path).expanduser(), verdict)
    if statement["guarantee"] is None:
        _check_no_promise(statement, verdict)
    else:
        check_numbers(statement, verdict)
    check_ledger(statement, [*outside, *later], verdict)
    check_rollback(statement, later, verdict)
    _check_audit(statement, verdict)
    return verdict


def _places(path: Path) -> tuple[Path | None, Path]:
    """(bundle folder or None, statement file)."""
    if path.is_dir():
        folder = bundle_folder(path)
        file = folder / "statement.json"
        if not file.exists():
            raise ConfigError("path", path, "holds no statement.json", "give a run folder, its checkpoint/, or a file")
        bundled = folder != path or any(
            (folder / name).exists() for name in (MANIFEST, SIGNATURE, SEALED, *SIGNED_FILES)
        )
        return (folder, file) if bundled else (None, file)
    if not path.exists():
        raise ConfigError("path", path, "does not exist", "give a run folder, its checkpoint/, or a statement.json")
    return None, path


def _accepted(key: str | Path | None) -> dict[str, str]:
    """Key id -> public key of the signers to accept."""
    if key is None:
        return trusted_keys()
    file = Path(key).expanduser()
    if file.exists() and not file.is_file():
        raise ConfigError("key", file, "is not a file", "name the .pub file of the signer")
    try:
        with file.open(encoding="utf-8") as opened:
            public = opened.read(1000).strip()
        return {key_id(public): public}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("key", file, "cannot be read", "name the .pub file of the signer") from error
    except ConfigError as error:
        raise ConfigError("key", file, f"is not a public key ({error.problem})", "name a .pub file") from error


def _read(file: Path, verdict: Verdict) -> dict[str, Any] | None:
    """The statement, where it can be read and fits the schema."""
    try:
        statement = read_untrusted(file)
    except NotReadable as error:
        verdict.add("schema", MISMATCH, f"{file.name} {error}")
        return None
    named = statement.get("schema") if isinstance(statement, dict) else None
    if named == "dptrain.statement/1":
        verdict.add("schema", MISMATCH, f"is {named}: unsigned; use the release of dptrain that wrote it")
        return None
    if named != SCHEMA:
        verdict.add("schema", MISMATCH, f"is {str(named)[:60]!r}; this release verifies {SCHEMA}")
        return None
    wrong = faults(statement)
    if wrong:
        verdict.add("schema", MISMATCH, "; ".join(wrong))
        return None
    internal = "internal" in statement
    if internal != (statement["tier"] == "internal"):
        verdict.add("schema", MISMATCH, "the block 'internal' belongs to tier internal, and to no other")
        return None
    verdict.add("schema", OK, f"{SCHEMA}, tier {statement['tier']}, digest {statement_digest(statement)[:16]}")
    return statement


def _check_signature(statement: dict[str, Any], accepted: dict[str, str], verdict: Verdict) -> bool:
    """Adds the lines ``signature`` and ``signer``; returns whether the signature holds, whoever's it is."""
    block = statement["integrity"]
    if block is None:
        verdict.add("signature", MISMATCH, "it is not signed")
        return False
    if not signed_by(statement, block["public_key"]):
        verdict.add("signature", MISMATCH, "does not hold: the statement was changed after it was signed")
        return False
    try:
        name = key_id(block["public_key"])
    except ConfigError:
        name = ""
    if name != block["key_id"]:
        verdict.add("signature", MISMATCH, "its key is not the key it names")
        return False
    verdict.add("signature", OK, f"holds, by {name}")
    gone = refusal(name)
    if gone is not None:
        verdict.add("signer", MISMATCH, f"{gone}: nothing that it signed is believed")
    elif accepted.get(name) == block["public_key"]:
        verdict.add("signer", OK, f"{name} is trusted here")
    else:
        remedy = f"if you know whose it is, write {block['public_key']} to FILE.pub and give key=FILE.pub"
        verdict.add("signer", MISMATCH, f"{name} is not trusted here; {remedy}")
    return True


def _check_files(statement: dict[str, Any], folder: Path | None, given: Path, verdict: Verdict) -> None:
    listed = statement["artifact"]["files"]
    if folder is None:
        verdict.add("files", UNKNOWN, "only the statement is at hand: nothing is said of any weights")
        return
    if folder != given and folder.is_symlink():
        verdict.add("files", MISMATCH, f"{folder.name} is a link to elsewhere")
        return
    try:
        found = verify_files(folder)
    except (ConfigError, OSError) as error:
        problem = f"{Path(str(error.value)).name} {error.problem}" if isinstance(error, ConfigError) else str(error)
        verdict.add("files", MISMATCH, problem)
        return
    if found.public_key != statement["integrity"]["public_key"]:
        verdict.add("files", MISMATCH, f"{SIGNATURE} is by another key than statement.json")
        return
    if set(listed) != set(SIGNED_FILES):
        verdict.add("files", MISMATCH, "the statement does not name the digests of the bundle's files")
        return
    sealed = SEALED in found.facts
    for name in SIGNED_FILES:
        if name in found.facts and found.facts[name] != listed[name]:
            verdict.add("files", MISMATCH, f"{name} is not the file that the statement was made for")
            return
    copy = given / "statement.json"
    if folder != given and copy.is_file() and not is_as_listed(copy, found.facts["statement.json"]):
        verdict.add("files", MISMATCH, "statement.json of the run folder is not that of its checkpoint")
        return
    said = "weights, model description and manifest are those the statement was made for"
    if sealed:
        said += "; the weights are sealed, and held against the statement's digest when they are opened"
    verdict.add("files", OK, said)


def _check_no_promise(statement: dict[str, Any], verdict: Verdict) -> None:
    """A statement that promises nothing must say so, and nothing else."""
    silent = ("adjacency", "mechanism", "randomness", "accounting", "threat", "tuning")
    said = statement["sentence"] in words.NO_PRIVACY.values() and not statement["private"]
    unit, scope = statement["unit"], statement["scope"]
    held = said and all(statement[name] is None for name in silent)
    held = held and statement["limits"] == {"claim": statement["sentence"], "not_covered": words.NOTHING_COVERED}
    held = held and unit["enforced_by"] == words.enforced_by(unit["kind"], unit["max_rows"])
    held = held and (scope["covered"], scope["uncovered"]) == ([], words.NOTHING)
    if held and set(statement["sampling"]) == {"steps_planned", "steps_done"}:
        verdict.add("epsilon", OK, "none is claimed")
    else:
        verdict.add("epsilon", MISMATCH, "there is no guarantee, and it does not say that it promises nothing")


def _check_audit(statement: dict[str, Any], verdict: Verdict) -> None:
    """An audit in the statement is the signer's word; only a contradiction with the claim can be seen from here.

    That canaries were planted is no audit: they wait for one.
    """
    audit, guarantee = statement["audit"], statement["guarantee"]
    if audit is None:
        verdict.add("audit", UNKNOWN, "none was published")
        return
    if set(audit) == {"canaries"}:
        verdict.add("audit", UNKNOWN, f"none was published; {_planted(audit['canaries'])}")
        return
    lower = audit.get("epsilon_lower")
    contradicts = guarantee is not None and isinstance(lower, int | float) and lower > guarantee["epsilon"]
    if contradicts or audit.get("rejected") is True or audit.get("consistent") is False:
        verdict.add("audit", MISMATCH, "the audit that it publishes contradicts the claim")
    else:
        verdict.add("audit", UNKNOWN, "the signer's word; 'dptrain audit' repeats it where the rows are at hand")


def _planted(canaries: Any) -> str:
    """What is said of canaries, which the schema leaves open: by a stranger perhaps, so no more of it is repeated than
    a number."""
    count = canaries.get("count") if isinstance(canaries, dict) else None
    if type(count) is not int or not 0 < count < 10**12:
        return "of canaries it says nothing that can be read"
    return f"{count:,} {'canary was' if count == 1 else 'canaries were'} planted"
