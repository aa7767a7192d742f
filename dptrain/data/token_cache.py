"""Token ids of private rows, kept so that text is tokenised once. Internal tier: folder 0700, files 0600.

A file is named by a digest of tokenizer, settings and texts, so its name, too, must stay inside: whoever can guess a
text could test the guess.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from dptrain.data.tokenise import Tokeniser
from dptrain.errors import ConfigError

FORMAT = "dptrain.tokens/1"


def cached_tokens(texts: Sequence[str], tokeniser: Tokeniser, folder: Path | None) -> tuple[Tensor, Tensor]:
    """As ``Tokeniser.rows``, from the cache where they lie there.

    A file that is torn, altered or of another shape is made anew.

    Args:
        texts: N texts.
        tokeniser: what makes ids of them.
        folder: of the cache; None computes without one.

    Returns:
        Ids (N, T) int64; which rows were cut off, (N,) bool.

    Raises:
        ConfigError: the cache cannot be written.
    """
    if folder is None:
        return tokeniser.rows(texts)
    path = folder / f"tokens-{_key(texts, tokeniser)}.safetensors"
    held = _read(path, (len(texts), tokeniser.length))
    if held is None:
        held = tokeniser.rows(texts)
        _write(path, *held)
    return held


def _key(texts: Sequence[str], tokeniser: Tokeniser) -> str:
    whole = hashlib.sha256(f"{FORMAT} {tokeniser.digest} {len(texts)}\n".encode())
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        whole.update(len(raw).to_bytes(8, "little"))
        whole.update(raw)
    return whole.hexdigest()


def _digest(ids: Tensor, cut: Tensor) -> str:
    whole = hashlib.sha256(ids.contiguous().view(-1).view(torch.uint8).numpy().data)
    whole.update(cut.to(torch.uint8).numpy().data)
    return whole.hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """What was kept, if the file is whole, else None."""
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get("sha256")
            ids, cut = file.get_tensor("ids"), file.get_tensor("cut")
    except (SafetensorError, OSError):
        return None
    right = tuple(ids.shape) == shape and tuple(cut.shape) == shape[:1] and ids.dtype == torch.int32
    if not right or _digest(ids, cut) != told:
        return None
    return ids.long(), cut.bool()


def _write(path: Path, ids: Tensor, cut: Tensor) -> None:
    """Writes the file whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    small, flags = ids.to(torch.int32), cut.to(torch.uint8)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        save_file({"ids": small, "cut": flags}, temporary, metadata={"sha256": _digest(small, flags)})
        temporary.chmod(0o600)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        remedy = "free the disk or its rights"
        raise ConfigError("cache", path.parent, f"cannot be written ({error})", remedy) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
