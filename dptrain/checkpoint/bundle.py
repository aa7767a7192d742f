"""The release bundle: the only folder of a run that is made to leave the building.

    model.safetensors   weights (no pickle, ever)
    model.json          which registered model they belong to, and how to read its outputs
    statement.json      what is promised, public tier
    manifest.json       SHA-256 and size of each of the above; nothing else may lie in the folder

A bundle names a model; it cannot name code. Weights of a user's own model load only where the user also gives
``imports``.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from dptrain.errors import ConfigError
from dptrain.models.build import ModelSpec, build_model
from dptrain.models.features import cached_features
from dptrain.run_folder import read_json, write_json

MODEL_SCHEMA = "dptrain.model/1"
MANIFEST_SCHEMA = "dptrain.manifest/1"
FILES = ("model.safetensors", "model.json", "statement.json")


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: every digest agreed."""

    path: Path
    model: nn.Module
    """In evaluation mode, on the CPU; takes feature-mapped inputs (see ``ModelSpec.features``)."""
    spec: ModelSpec
    statement: dict[str, Any]

    def outputs(self, inputs: Tensor, batch_size: int, cache_dir: Path | None = None) -> Tensor:
        """Outputs (N, num_outputs) float64 for raw rows: the feature map first, then the model, in parts.

        Args:
            inputs: (N, *raw_shape).
            batch_size: rows at once.
            cache_dir: where mapped rows are cached (internal tier), or None.
        """
        if self.spec.features != "none":
            inputs = cached_features(self.spec.features, inputs, cache_dir)
        dtype = next(self.model.parameters()).dtype
        with torch.no_grad():
            return torch.cat([self.model(part.to(dtype)).double() for part in inputs.split(batch_size)])


def save_bundle(path: Path, module: nn.Module, spec: ModelSpec, statement: dict[str, Any]) -> dict[str, Any]:
    """Writes a bundle beside its final place, syncs it, and renames it there; returns the manifest.

    Raises:
        ConfigError: there is a folder at ``path`` already.
    """
    if path.exists():
        raise ConfigError("checkpoint", path, "exists already", "a bundle is never overwritten; name another run")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(mode=0o700)
    try:
        weights = temporary / "model.safetensors"
        try:
            save_model(module, str(weights))
        except SafetensorError as error:  # its writer does not say OSError when the disk is full
            raise OSError(None, str(error), str(path)) from error
        weights.chmod(0o600)
        write_json(temporary / "model.json", {"schema": MODEL_SCHEMA, **asdict(spec)})
        write_json(temporary / "statement.json", statement)
        manifest = {"schema": MANIFEST_SCHEMA, "files": {name: _facts(temporary / name) for name in FILES}}
        write_json(temporary / "manifest.json", manifest)
        for name in (weights, temporary):
            _sync(name)
        os.rename(temporary, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def load_bundle(path: str | Path) -> Bundle:
    """Checks every digest, then builds the registered model and fills in the weights.

    Raises:
        ConfigError: a file is missing, foreign, changed, truncated, or does not fit the model it names.
    """
    folder = Path(path)
    if (folder / "checkpoint").is_dir():
        folder = folder / "checkpoint"
    verify_files(folder)
    described = read_json(folder / "model.json")
    if not isinstance(described, dict) or described.pop("schema", None) != MODEL_SCHEMA:
        raise ConfigError("checkpoint", folder, "model.json is of another kind", f"give a bundle of {MODEL_SCHEMA}")
    try:
        spec = ModelSpec(**described)
    except TypeError as error:
        raise ConfigError("checkpoint", folder, f"model.json cannot be read ({error})", "restore it") from error
    with torch.random.fork_rng(devices=[]):
        module = build_model(spec)
    try:
        load_model(module, str(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ConfigError(
            "checkpoint", folder / "model.safetensors", f"does not hold this model's weights ({error})", "restore it"
        ) from error
    return Bundle(folder, module.eval(), spec, read_json(folder / "statement.json"))


def verify_files(folder: Path) -> dict[str, Any]:
    """Compares the folder with its manifest, nothing ignored; returns the manifest.

    Raises:
        ConfigError: naming the first file that is missing, not listed, or changed.
    """
    if not folder.is_dir():
        raise ConfigError("checkpoint", folder, "no such folder", "give a run folder or its checkpoint/")
    manifest = read_json(folder / "manifest.json")
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
        if _facts(file) != files[name]:
            raise ConfigError(
                "checkpoint", file, "does not match its digest: changed or truncated", "restore the bundle from a copy"
            )
    return manifest


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"sha256": hashlib.file_digest(opened, "sha256").hexdigest(), "bytes": file.stat().st_size}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
