"""The release bundle: the only folder of a run that is made to leave the building.

    model.safetensors   weights (no pickle, ever)
    model.json          which registered model they belong to, and how to read its outputs
    statement.json      what is promised, public tier; signed, with the digests of the two above
    manifest.json       SHA-256 and size of each of the above; nothing else may lie in the folder

A bundle names a model; it cannot name code. Weights of a user's own model load only where the user also gives
``imports``.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from dptrain.bundle_files import FILES, MANIFEST_SCHEMA, SIGNED_FILES, bundle_folder, file_facts, verify_files
from dptrain.errors import ConfigError
from dptrain.models.build import ModelSpec, build_model
from dptrain.models.features import cached_features
from dptrain.run_folder import read_json, write_json

MODEL_SCHEMA = "dptrain.model/1"


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


def save_bundle(
    path: Path, module: nn.Module, spec: ModelSpec, state: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Writes a bundle beside its final place, syncs it, and renames it there; returns the statement in it.

    Args:
        path: the bundle's folder, to be made.
        module: whose weights are saved.
        spec: what they belong to.
        state: makes the statement from {file name: {sha256, bytes}} of weights and model description.

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
        statement = state({name: file_facts(temporary / name) for name in SIGNED_FILES})
        write_json(temporary / "statement.json", statement)
        manifest = {"schema": MANIFEST_SCHEMA, "files": {name: file_facts(temporary / name) for name in FILES}}
        write_json(temporary / "manifest.json", manifest)
        for name in (weights, temporary):
            _sync(name)
        os.rename(temporary, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return statement


def load_bundle(path: str | Path) -> Bundle:
    """Checks every digest, then builds the registered model and fills in the weights.

    Raises:
        ConfigError: a file is missing, foreign, changed, truncated, or does not fit the model it names.
    """
    folder = bundle_folder(Path(path))
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


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
