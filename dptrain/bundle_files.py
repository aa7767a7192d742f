"""Which files a release bundle consists of, and whether they are those that were written. Needs no torch.

model.safetensors   weights
model.json          which registered model they belong to
statement.json      what is promised; names the digests of the two above, and is signed
manifest.json       SHA-256 and size of each of the above; nothing else may lie in the folder
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.untrusted_json import NotReadable, read_untrusted

MANIFEST_SCHEMA = "dptrain.manifest/1"
FILES = ("model.safetensors", "model.json", "statement.json")
SIGNED_FILES = ("model.safetensors", "model.json")
"""Those whose digests the statement names."""
SMALL = 1 << 16


def bundle_folder(path: Path) -> Path:
    """The bundle of a run folder, or the folder itself."""
    return path / "checkpoint" if (path / "checkpoint").is_dir() else path


def file_facts(file: Path) -> dict[str, Any]:
    """{sha256, bytes} of a file, read in parts."""
    with file.open("rb") as opened:
        return {"sha256": hashlib.file_digest(opened, "sha256").hexdigest(), "bytes": file.stat().st_size}


def verify_files(folder: Path) -> dict[str, Any]:
    """Compares the folder with its manifest, nothing ignored; returns the manifest.

    Raises:
        ConfigError: naming the first file that is missing, not listed, or changed.
    """
    if not folder.is_dir():
        raise ConfigError("checkpoint", folder, "no such folder", "give a run folder or its checkpoint/")
    try:
        manifest = read_untrusted(folder / "manifest.json", SMALL)
    except NotReadable as error:
        raise ConfigError(
            "checkpoint", folder / "manifest.json", f"cannot be read: it {error}", "restore the bundle from a copy"
        ) from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("schema") != MANIFEST_SCHEMA or set(files) != set(FILES):
        raise ConfigError("checkpoint", folder / "manifest.json", "is not a manifest", "restore it from a copy")
    present = {p.name for p in folder.iterdir()} - {"manifest.json"}
    for name in sorted(present - set(files)):
        raise ConfigError("checkpoint", folder / name, "is not listed in the manifest", "remove it")
    for name in FILES:
        file = folder / name
        if not file.is_file() or file.is_symlink():
            raise ConfigError("checkpoint", file, "is missing", "restore the bundle from a copy")
        if not is_as_listed(file, files[name]):
            raise ConfigError(
                "checkpoint", file, "does not match its digest: changed or truncated", "restore the bundle from a copy"
            )
    return manifest


def is_as_listed(file: Path, facts: Any) -> bool:
    """Whether a file has the size and digest listed; only a file of the right size is read."""
    return isinstance(facts, dict) and facts.get("bytes") == file.stat().st_size and file_facts(file) == facts
