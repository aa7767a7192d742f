"""The release bundle: the only folder of a run that is made to leave the building.

    model.safetensors   weights (no pickle, ever); or, where asked for, model.sealed: the same under a sealing key
    model.json          which registered model they belong to, and how to read its outputs
    statement.json      what is promised, public tier; signed, with the digests of the two above
    manifest.json       SHA-256 and size of each of the above
    signature.json      Ed25519 over the manifest; nothing else may lie in the folder

A bundle names a model; it cannot name code. Weights of a user's own model load only where the user also gives
``imports``.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.bundle_files import (
    MANIFEST,
    RESTORE,
    SIGNATURE,
    WEIGHTS,
    bundle_folder,
    file_facts,
    is_sealed,
    listed_files,
    manifest_text,
    signature_text,
    verify_files,
)
from dptrain.checkpoint.described import build_described, read_spec
from dptrain.checkpoint.sealing_key import MasterKey, key_ring
from dptrain.checkpoint.weights_file import read_weights, write_weights
from dptrain.durable import sync
from dptrain.errors import ConfigError
from dptrain.models.build import ModelSpec
from dptrain.models.features import cached_features
from dptrain.models.reading import as_read
from dptrain.privacy.verified_bundle import verified_bundle
from dptrain.run_folder import write_json, write_text
from dptrain.signing import Signer, load_signer
from dptrain.untrusted_json import LARGEST, NotReadable, parse_untrusted

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
        with torch.no_grad():
            parts = [as_read(self.model, part) for part in inputs.split(batch_size)]
            return torch.cat([self.model(part).double() for part in parts])


def save_bundle(
    path: Path,
    module: nn.Module,
    spec: ModelSpec,
    state: Callable[[dict[str, Any]], dict[str, Any]],
    signer: Signer | None = None,
    key: MasterKey | None = None,
) -> dict[str, Any]:
    """Writes a signed bundle beside its final place, syncs it, and renames it there; returns the statement in it.

    Args:
        path: the bundle's folder, to be made.
        module: whose weights are saved.
        spec: what they belong to.
        state: makes the statement from {file name: {sha256, bytes}} of weights and model description.
        signer: of the manifest, the same that ``state`` signs with; None for the user's own.
        key: to seal the weights under; None leaves them plain.

    Raises:
        ConfigError: there is a folder at ``path`` already, or there is no key to sign with.
    """
    if path.exists():
        raise ConfigError("checkpoint", path, "exists already", "a bundle is never overwritten; name another run")
    signer = signer or load_signer()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(mode=0o700)
    try:
        weights = write_weights(temporary, module, key)
        write_json(temporary / "model.json", {"schema": MODEL_SCHEMA, **spec.to_json()})
        statement = state({WEIGHTS: weights, "model.json": file_facts(temporary / "model.json")})
        write_json(temporary / "statement.json", statement)
        manifest = manifest_text({name: file_facts(temporary / name) for name in listed_files(key is not None)})
        write_text(temporary / MANIFEST, manifest)
        write_text(temporary / SIGNATURE, signature_text(manifest.encode(), signer))
        sync(temporary)
        os.rename(temporary, path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return statement


def load_verified(
    path: str | Path,
    key: str | Path | None = None,
    heads: Iterable[str] = (),
    after: Iterable[str] = (),
    sealing_key: str | None = None,
) -> Bundle:
    """What ``dptrain verify`` would pass, loaded: the way into the house for a bundle that anyone may have touched.

    The weights that are loaded are the bytes whose digest the verified statement names, read once: a file that is
    swapped between the check and the loading is noticed.

    Args:
        path: a release bundle, or a run folder that holds one.
        key, heads, after: as in ``privacy.verify.verified``.
        sealing_key: source of the key of sealed weights, as ``checkpoint.key``; None for the user's own.

    Raises:
        ClaimRejected: it does not verify (exit code 4); nothing was loaded.
        ConfigError: there is no bundle, its files do not fit one another, or no key at hand opens its weights.
    """
    statement = verified_bundle(path, key, heads, after)
    return _load(bundle_folder(Path(path).expanduser()), statement["artifact"]["files"], statement, sealing_key)


def load_bundle(path: str | Path, sealing_key: str | None = None) -> Bundle:
    """Checks every digest and the signature, then builds the registered model and fills in the weights.

    Says nothing of whose signature it is, nor of the statement's numbers: see ``load_verified``.

    Raises:
        ConfigError: a file is missing, foreign, changed, truncated, or does not fit the model it names.
    """
    folder = bundle_folder(Path(path).expanduser())
    facts = verify_files(folder).facts
    statement = _json(folder / "statement.json", facts)
    if not isinstance(statement, dict):
        raise ConfigError("checkpoint", folder / "statement.json", "is not a statement", RESTORE)
    try:
        weights = facts[WEIGHTS] if WEIGHTS in facts else statement["artifact"]["files"][WEIGHTS]
    except (TypeError, KeyError) as error:
        raise ConfigError("checkpoint", folder / "statement.json", "is not a statement", RESTORE) from error
    return _load(folder, {**facts, WEIGHTS: weights}, statement, sealing_key)


def _load(folder: Path, facts: dict[str, Any], statement: dict[str, Any], sealing_key: str | None) -> Bundle:
    """Builds the model from bytes that have these digests."""
    described = _json(folder / "model.json", facts)
    if not isinstance(described, dict) or described.pop("schema", None) != MODEL_SCHEMA:
        raise ConfigError("checkpoint", folder / "model.json", "is of another kind", f"give a bundle of {MODEL_SCHEMA}")
    spec = read_spec(described, folder / "model.json")
    tensors = read_weights(folder, facts[WEIGHTS], key_ring(sealing_key) if is_sealed(folder) else {})
    module = build_described(spec, tensors, folder)
    return Bundle(folder, module.eval(), spec, statement)


def _json(file: Path, facts: dict[str, Any]) -> Any:
    try:
        if facts[file.name]["bytes"] > LARGEST:
            raise NotReadable(f"is larger than {LARGEST} bytes")
        return parse_untrusted(_read(file, facts))
    except NotReadable as error:
        raise ConfigError("checkpoint", file, f"cannot be read: it {error}", RESTORE) from error


def _read(file: Path, facts: dict[str, Any]) -> bytes:
    """The bytes that have the digest listed; what is read here is what is used."""
    data = file.read_bytes()
    if facts[file.name] != {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}:
        raise ConfigError("checkpoint", file, "does not match its digest: changed or truncated", RESTORE)
    return data
