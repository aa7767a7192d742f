"""Which files a release bundle consists of, and whether they are those that were written. Needs no torch.

model.safetensors   weights; or model.sealed, the same under a sealing key (its manifest is of the next schema)
model.json          which registered model they belong to
statement.json      what is promised; names the digests of the two above, and is signed
manifest.json       SHA-256 and size of each of the above
signature.json      Ed25519 over the manifest, by the key that signed the statement

Nothing else may lie in the folder, hidden or empty, and no file may be a link, be executable or be open to everybody's
hand. Manifest and signature have one spelling each, so that no byte of a bundle is nobody's word. The one exception are
the envelope slots of ``model.sealed``: its digest leaves them out, so that ``dptrain keys rotate`` needs no signature;
a slot that was changed opens nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.signing import Signer, canonical, key_id, signature_holds
from dptrain.untrusted_json import NotReadable, parse_untrusted

MANIFEST_SCHEMAS = {False: "dptrain.manifest/2", True: "dptrain.manifest/3"}
"""Whether the weights are sealed -> schema of the manifest."""
SIGNATURE_SCHEMA = "dptrain.bundle.signature/1"
WEIGHTS, SEALED = "model.safetensors", "model.sealed"
SIGNED_FILES = (WEIGHTS, "model.json")
"""Those whose digests the statement names; of sealed weights, it is that of the plain bytes."""
MANIFEST, SIGNATURE = "manifest.json", "signature.json"
SMALL = 1 << 16
SLOTS = (512, 1536)
"""Where the envelope slots of a sealed file begin and end (``checkpoint.seal``)."""
RESTORE = "restore the bundle from a copy"


@dataclass(frozen=True)
class CheckedFiles:
    """What ``verify_files`` found: nothing missing, nothing more, every digest and the signature in order."""

    facts: dict[str, dict[str, Any]]
    """File name -> {sha256, bytes}, for ``listed_files``."""
    public_key: str
    """Whose signature holds. Whether that key is trusted is not asked here."""


def bundle_folder(path: Path) -> Path:
    """The bundle of a run folder, or the folder itself."""
    return path / "checkpoint" if (path / "checkpoint").is_dir() else path


def listed_files(sealed: bool) -> tuple[str, ...]:
    """Names that a manifest lists, in order."""
    return (SEALED if sealed else WEIGHTS, "model.json", "statement.json")


def is_sealed(folder: Path) -> bool:
    """Whether a bundle's weights are sealed."""
    return os.path.lexists(folder / SEALED)


def file_facts(file: Path) -> dict[str, Any]:
    """{sha256, bytes} of a file, read in parts; of sealed weights, the digest is of all but the envelope slots."""
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        if file.name == SEALED:
            digest.update(opened.read(SLOTS[0]))
            opened.seek(SLOTS[1])
        digest = hashlib.file_digest(opened, lambda: digest)
        return {"sha256": digest.hexdigest(), "bytes": file.stat().st_size}


def manifest_text(facts: dict[str, dict[str, Any]]) -> str:
    """The one spelling of a manifest."""
    sealed = SEALED in facts
    listed = {name: {"sha256": facts[name]["sha256"], "bytes": facts[name]["bytes"]} for name in listed_files(sealed)}
    return _text({"schema": MANIFEST_SCHEMAS[sealed], "files": listed})


def signature_text(manifest: bytes, signer: Signer) -> str:
    """The content of ``signature.json`` for a manifest's bytes.

    What is signed is canonical JSON that names its own schema: it cannot pass for a statement or a ledger head.
    """
    return _text(_signature_block(manifest, signer.public_key, signer.sign(_message(manifest))))


def verify_files(folder: Path) -> CheckedFiles:
    """Holds the folder against manifest and signature, nothing ignored.

    Raises:
        ConfigError: naming the first file that is missing, too many, not plain, open to others, or changed.
    """
    if not folder.is_dir():
        raise ConfigError("checkpoint", folder, "no such folder", "give a run folder or its checkpoint/")
    try:
        names = listed_files(is_sealed(folder))
        _check_names(folder, names)
        listed, manifest = _read_manifest(folder / MANIFEST, names)
        public_key = _check_signature(folder / SIGNATURE, manifest)
        for name in names:
            if not is_as_listed(folder / name, listed[name]):
                problem = "does not match its digest: changed or truncated"
                raise ConfigError("checkpoint", folder / name, problem, RESTORE)
    except OSError as error:
        what = error.filename or folder
        raise ConfigError("checkpoint", what, f"cannot be read ({error.strerror})", "mend its permissions") from error
    return CheckedFiles(listed, public_key)


def is_as_listed(file: Path, facts: Any) -> bool:
    """Whether a file has the size and digest listed; only a file of the right size is read."""
    return isinstance(facts, dict) and facts.get("bytes") == file.stat().st_size and file_facts(file) == facts


def _check_names(folder: Path, listed: tuple[str, ...]) -> None:
    """Exact names (case included), plain files, and modes."""
    wanted = (*listed, MANIFEST, SIGNATURE)
    present = sorted(entry.name for entry in os.scandir(folder))
    for name in present:
        if name not in wanted:
            raise ConfigError("checkpoint", folder / name, "is not listed in the manifest", "remove it")
    for name in wanted:
        file = folder / name
        if name not in present:
            raise ConfigError("checkpoint", file, "is missing", RESTORE)
        if not stat.S_ISREG(os.lstat(file).st_mode):
            raise ConfigError("checkpoint", file, "is missing: a link or something else has its name", RESTORE)
    if os.name != "posix":
        return  # modes mean nothing there
    for file in (folder, *(folder / name for name in wanted)):
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o002:
            raise ConfigError("checkpoint", file, f"can be written by everybody (mode {mode:o})", f"chmod o-w {file}")
        if file != folder and mode & 0o7111:
            raise ConfigError("checkpoint", file, f"is marked as a program (mode {mode:o})", f"chmod 600 {file}")


def _read_manifest(file: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Any]], bytes]:
    """(file name -> facts, the bytes they were read from)."""
    found, text = _read(file, MANIFEST_SCHEMAS[SEALED in names])
    facts = found.get("files")
    if not (isinstance(facts, dict) and set(facts) == set(names) and all(_is_facts(value) for value in facts.values())):
        raise ConfigError("checkpoint", file, "is not a manifest of a bundle's files", RESTORE)
    if text != manifest_text(facts).encode():
        raise ConfigError("checkpoint", file, "holds more than digests, or spells them otherwise", RESTORE)
    return facts, text


def _check_signature(file: Path, manifest: bytes) -> str:
    """The public key whose signature of the manifest holds."""
    found, text = _read(file, SIGNATURE_SCHEMA)
    public, signature = found.get("public_key"), found.get("signature")
    try:
        if not isinstance(public, str) or not isinstance(signature, str):
            raise ConfigError("", "", "holds no key and signature", "")
        expected = _text(_signature_block(manifest, public, signature)).encode()
    except ConfigError as error:
        raise ConfigError("checkpoint", file, f"is not a signature ({error.problem})", RESTORE) from error
    if text != expected or not signature_holds(public, signature, _message(manifest)):
        problem = f"does not hold: {MANIFEST} or the signature itself was changed after signing"
        raise ConfigError("checkpoint", file, problem, RESTORE)
    return public


def _read(file: Path, schema: str) -> tuple[dict[str, Any], bytes]:
    """(content, bytes) of one of the two small files; both from one reading."""
    try:
        with file.open("rb") as opened:
            data = opened.read(SMALL + 1)
        if len(data) > SMALL:
            raise NotReadable(f"is larger than {SMALL} bytes")
        found = parse_untrusted(data)
    except NotReadable as error:
        raise ConfigError("checkpoint", file, f"cannot be read: it {error}", RESTORE) from error
    if not isinstance(found, dict) or found.get("schema") != schema:
        named = str(found.get("schema"))[:60] if isinstance(found, dict) else type(found).__name__
        raise ConfigError("checkpoint", file, f"is {named!r}; this release reads {schema}", RESTORE)
    return found, data


def _signature_block(manifest: bytes, public_key: str, signature: str) -> dict[str, Any]:
    return {
        "schema": SIGNATURE_SCHEMA,
        "algorithm": "ed25519",
        "key_id": key_id(public_key),
        "public_key": public_key,
        "manifest": _digest(manifest),
        "signature": signature,
    }


def _message(manifest: bytes) -> bytes:
    return canonical({"schema": SIGNATURE_SCHEMA, "manifest": _digest(manifest)})


def _digest(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _is_facts(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"sha256", "bytes"}
        and isinstance(value["sha256"], str)
        and type(value["bytes"]) is int
    )


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
