"""The weights of a release bundle on disk: plain (``model.safetensors``) or sealed (``model.sealed``), never both.

A statement names the digest of the plain bytes either way: sealing changes who can read the weights, not what is
promised of them. Sealed weights are never on the disk as plain text, not even for a moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save, save_model
from torch import Tensor, nn

from dptrain.bundle_files import RESTORE, SEALED, WEIGHTS, file_facts
from dptrain.checkpoint.seal import SealBroken, read_sealed, write_sealed
from dptrain.checkpoint.sealing_key import MasterKey
from dptrain.durable import sync
from dptrain.errors import ConfigError


def write_weights(folder: Path, module: nn.Module, key: MasterKey | None) -> dict[str, Any]:
    """Writes the module's weights into a new bundle, synced; {sha256, bytes} of the plain bytes.

    Args:
        folder: of the bundle.
        module: tied parameters are kept once, under the first of their names.
        key: to seal them under; None leaves them plain.

    Raises:
        OSError: the disk is full or gone.
    """
    if key is not None:
        plain = save(_kept_once(module))
        facts = {"sha256": hashlib.sha256(plain).hexdigest(), "bytes": len(plain)}
        write_sealed(folder / SEALED, [plain], key, _context(facts))
        return facts
    file = folder / WEIGHTS
    try:
        save_model(module, str(file))
    except SafetensorError as error:  # its writer does not say OSError when the disk is full
        raise OSError(None, str(error), str(folder)) from error
    file.chmod(0o600)
    sync(file)
    return file_facts(file)


def read_weights(folder: Path, facts: dict[str, Any], keys: Mapping[str, MasterKey]) -> dict[str, Tensor]:
    """The tensors of the bundle's weights, from bytes that have the digest given: what was checked is what is used.

    Args:
        folder: of the bundle.
        facts: {sha256, bytes} of the plain bytes, as the statement names them.
        keys: those that may open sealed weights.

    Raises:
        ConfigError: the weights are sealed under another key, changed, truncated, or no weights.
    """
    file = folder / SEALED
    if file.exists():
        try:
            data = bytes(read_sealed(file, keys, _context(facts)))
        except SealBroken as error:
            raise ConfigError("checkpoint", file, error.problem, _remedy(error)) from error
    else:
        file = folder / WEIGHTS
        data = file.read_bytes()
    if facts != {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}:
        raise ConfigError("checkpoint", file, "does not match its digest: changed or truncated", RESTORE)
    try:
        return load(data)
    except Exception as error:  # SafetensorError, or what torch says of shapes and types that cannot be
        problem = f"does not hold weights ({type(error).__name__}: {error})"
        raise ConfigError("checkpoint", file, problem, RESTORE) from error


def _kept_once(module: nn.Module) -> dict[str, Tensor]:
    """The module's state with every tied tensor under the first of its names."""
    kept: dict[Any, str] = {}
    state = module.state_dict()
    for name in sorted(state):
        tensor = state[name]
        kept.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name, name)
    return {name: state[name].detach().cpu().contiguous() for name in kept.values()}


def _remedy(error: SealBroken) -> str:
    if error.problem.startswith("is sealed under key"):
        return "name its source (file:PATH, env:NAME or command:PROGRAM): checkpoint.key, audit.key or sealing_key"
    return RESTORE


def _context(facts: dict[str, Any]) -> str:
    """Binds the sealed file to the weights that a statement names."""
    return f"dptrain.weights/1 sha256:{facts['sha256']}"
