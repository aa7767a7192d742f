"""Weights that ``torch.save`` wrote, as safetensors: the one place where a file of pickles is read.

Guarantee: nothing of the file is run. ``torch.load(weights_only=True)`` builds tensors and plain containers from an
own list of names and calls nothing else; since torch 2.6, which is the oldest that dptrain runs with, no way around it
is known (CVE-2025-32434 was the last, mended there). What comes out is a flat table of dense tensors or nothing, in
memory bounded by the size of the file.
Source: torch's ``serialization`` notes on ``weights_only``; safetensors' format description.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dptrain.durable import make_folder, sync
from dptrain.errors import ConfigError, one_line

FIELD = "weights"
TENSORS_ONLY = "dptrain takes a flat table of tensors: in its own program, torch.save(model.state_dict(), FILE)"
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""What safetensors and the loaders that follow agree on."""
LONGEST_NAME, MOST_TENSORS = 500, 100_000


def read_foreign(path: Path, part: str | None, strip: str, into: Path) -> tuple[dict[str, Tensor], str]:
    """(tensors by name, contiguous and apart from one another; SHA-256 of the bytes that they were made of).

    Args:
        path: a file of ``torch.save``: zip archive, or the older form.
        part: entry of the outermost table that holds them; None where it is that table itself.
        strip: beginning of every name that is taken off.
        into: where they will be written, looked at before anything is read.

    Raises:
        ConfigError: no file, not of ``torch.save``, it would run code, or it holds something that is no dense tensor
            of ordinary numbers under a plain name.
    """
    if os.path.lexists(into):
        raise ConfigError("into", into, "is there already, and nothing is written over", "name another file: into=...")
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise ConfigError(FIELD, path, found, "name one file that torch.save wrote (.bin, .pth, .pt)")
    data = path.read_bytes()  # read once: what the digest is of is what is loaded
    _check_archive(path, data)
    try:
        with warnings.catch_warnings(action="ignore"):
            held = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error
    tensors = _flat(path, held, part, strip)
    _check_size(path, tensors, len(data))
    apart = {
        name: tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return apart, hashlib.sha256(data).hexdigest()


def write_new(into: Path, tensors: Mapping[str, Tensor], read: str) -> str:
    """Writes a safetensors file under a name that is not there yet, whole or not at all; its SHA-256.

    Args:
        into: absolute; folders above it are made.
        tensors: of ``read_foreign``.
        read: digest of what they came from, noted in the file's metadata.

    Raises:
        ConfigError: the name was taken meanwhile; what has it is as it was.
        OSError: the disk is full or gone.
    """
    make_folder(into.parent)
    temporary = into.with_name(f".{into.stem[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            save_file(dict(tensors), temporary, metadata={"format": "pt", "converted_from": f"sha256:{read}"})
        except SafetensorError as error:  # its writer does not say OSError when the disk is full
            raise OSError(None, str(error), str(into)) from error
        sync(temporary)
        with open(temporary, "rb") as file:
            written = hashlib.file_digest(file, "sha256").hexdigest()
        os.link(temporary, into)  # unlike a rename, never over what another process made meanwhile
    except FileExistsError as error:
        raise ConfigError("into", into, "is there already, and nothing is written over", "name another file") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync(into.parent)
    return written


def _check_archive(path: Path, data: bytes) -> None:
    """Refuses archives that unpack to more than they are; torch.save never packs."""
    if not data:
        raise ConfigError(FIELD, path, "is empty", "fetch it again")
    if data.startswith(b"version https://git-lfs"):
        raise ConfigError(FIELD, path, "is a pointer of Git LFS, not the weights", "fetch them with 'git lfs pull'")
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except Exception as error:
        raise _unreadable(path, error) from error
    if any(member.compress_type for member in members) or sum(member.file_size for member in members) > len(data):
        raise ConfigError(FIELD, path, "unpacks to more than it is, as no file of torch.save does", TENSORS_ONLY)


def _unreadable(path: Path, error: BaseException) -> ConfigError:
    text = one_line(str(error))
    if "weights_only" in text or "Unsupported" in text or "WeightsUnpickler" in text:
        named = [word for word in text.replace("`", " ").split() if "." in word and "(" not in word]
        what = next((text[at : at + 100] for at in [text.find("GLOBAL")] if at >= 0), named[0] if named else text[:100])
        problem = f"holds more than tensors, and could run code when it is read ({what})"
        return ConfigError(FIELD, path, problem, TENSORS_ONLY)
    return ConfigError(FIELD, path, f"is no file of torch.save ({type(error).__name__}: {text[:100]})", TENSORS_ONLY)


def _flat(path: Path, held: Any, part: str | None, strip: str) -> dict[str, Tensor]:
    """The table of tensors, by names without ``strip``; everything else is refused."""
    if part is not None:
        inner = held.get(part) if isinstance(held, dict) else None
        if inner is None:
            names = ", ".join(_tables(held)) or "none"
            raise ConfigError("part", part, f"is no entry of {path.name} (tables in it: {names})", "name one of them")
        held = inner
    if not isinstance(held, dict):
        raise ConfigError(FIELD, path, f"holds one {type(held).__name__} instead of a table", TENSORS_ONLY)
    if not held:
        raise ConfigError(FIELD, path, "holds no tensor", TENSORS_ONLY)
    if len(held) > MOST_TENSORS:
        raise ConfigError(FIELD, path, f"holds more than {MOST_TENSORS:,} tensors", TENSORS_ONLY)
    found: dict[str, Tensor] = {}
    for name, value in held.items():
        problem = _name_problem(name, strip) or _tensor_problem(value)
        if problem:
            tables = _tables(held)
            remedy = f"part={tables[0]} takes the table of that name" if tables and part is None else TENSORS_ONLY
            raise ConfigError(FIELD, path, f"{repr(name)[:100]} {problem}", remedy)
        found[name.removeprefix(strip)] = value
    return found


def _tables(held: Any) -> list[str]:
    """Names of inner tables that hold tensors, for the message."""
    if not isinstance(held, dict):
        return []
    inner = {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, dict)}
    return [name[:50] for name, value in inner.items() if any(isinstance(v, Tensor) for v in value.values())][:5]


def _name_problem(name: Any, strip: str) -> str | None:
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        return "is no name of a tensor"
    if not name.startswith(strip):
        return f"does not begin with '{strip}'"
    if name.removeprefix(strip) in ("", "__metadata__"):
        return "leaves no name that safetensors can hold"
    return None


def _tensor_problem(value: Any) -> str | None:
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f"is no tensor but a {type(value).__name__}"
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        return "is a sparse, nested or quantised tensor"
    if value.device.type != "cpu":
        return "has a shape and no numbers"
    if value.dtype not in DTYPES:
        return f"holds numbers of kind {value.dtype}"
    return None


def _check_size(path: Path, tensors: Mapping[str, Tensor], size: int) -> None:
    """Refuses views that repeat a few numbers into many: a table as large as memory in a file of a kilobyte.

    A tensor under two names (tied weights) is written under both, so a name may cost the storage behind it once.
    """
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > size:
            raise ConfigError(FIELD, path, f"{name[:100]!r} claims more numbers than the file holds", TENSORS_ONLY)
    ties = {(t.data_ptr(), t.shape, t.stride()): t.numel() * t.element_size() for t in tensors.values()}
    if sum(ties.values()) > size or sum(t.numel() * t.element_size() for t in tensors.values()) > 4 * size:
        raise ConfigError(FIELD, path, "claims more numbers than it holds, by tensors that overlap", TENSORS_ONLY)
