"""Fixed, data-independent maps applied once to every row, and the cache that keeps their results.

A user's own map in full:

    from dptrain.registry import features

    class Halves:
        version = "1"
        def __init__(self, input_shape): self.output_shape = input_shape
        def __call__(self, inputs): return inputs / 2

    @features.register("halves")
    def halves(input_shape): return Halves(input_shape)

A map must treat every row alone and learn nothing from rows: what it computes is not charged.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dptrain.errors import ConfigError
from dptrain.registry import features

CHUNK = 256
"""Most rows a map is given at once, which bounds memory."""


class FeatureMap(Protocol):
    """A fixed map of rows."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one mapped row."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the values change; part of the cache's key."""
        ...

    def __call__(self, inputs: Tensor) -> Tensor:
        """(N, *input_shape) -> (N, *output_shape), N at most ``CHUNK``."""
        ...


class Identity:
    """Rows as they are."""

    version = "1"

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.output_shape = input_shape

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs


@features.register("none")
def none(input_shape: tuple[int, ...]) -> FeatureMap:
    """No map."""
    return Identity(tuple(input_shape))


def check_map(name: str, input_shape: tuple[int, ...], options: Mapping[str, Any] | None = None) -> tuple[int, ...]:
    """Refuses a map that looks beyond one row or keeps state, on made-up rows; gives its output shape.

    One of four rows is replaced, by another and by one a thousand times as large: the others must stay; each row
    mapped alone must give what it gave among others; a second call must give what the first gave.

    Raises:
        ConfigError: unknown map or option; rows depend on one another or on earlier calls.
    """
    mapping: FeatureMap = features.build(name, tuple(input_shape), options=dict(options or {}))
    rows = torch.rand(4, *input_shape, generator=torch.Generator().manual_seed(20_213))
    first = _mapped(name, mapping, rows)
    scale = 1e-5 * float(first.abs().max()) + 1e-12

    def same(one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one, other, rtol=0.0, atol=scale)

    apart = all(same(_mapped(name, mapping, rows[i : i + 1])[0], first[i]) for i in range(4))
    for factor in (0.5, 1000.0):
        changed = rows.clone()
        changed[1] = rows[1].flip(-1) * factor
        apart = apart and same(_mapped(name, mapping, changed)[[0, 2, 3]], first[[0, 2, 3]])
    if not apart or not same(_mapped(name, mapping, rows), first):
        raise ConfigError(
            "model.features",
            name,
            "maps a row by looking at other rows or at earlier calls",
            "compute every row from that row and public constants alone",
        )
    return tuple(mapping.output_shape)


def cached_features(
    name: str, inputs: Tensor, cache_dir: Path | None = None, options: Mapping[str, Any] | None = None
) -> Tensor:
    """The mapped rows, from the cache where they lie there.

    The inputs may be private rows: the cache is internal tier. Its folder is made with mode 0700, its files
    with 0600; file names are digests of the rows and so must stay inside as well. A cached file that is torn,
    altered or of another shape is computed anew.

    Args:
        name: a registered map.
        inputs: (N, *input_shape), on the CPU.
        cache_dir: folder of the cache; None computes without one.
        options: keywords of the map's function.

    Returns:
        (N, *output_shape).

    Raises:
        ConfigError: unknown map or option; the map gives another shape than it declares; the cache cannot be
            written.
    """
    options = dict(options or {})
    mapping: FeatureMap = features.build(name, tuple(inputs.shape[1:]), options=options)
    if isinstance(mapping, Identity):
        return inputs
    return cached_map(name, mapping, inputs, cache_dir, options)


def cached_map(
    name: str,
    mapping: FeatureMap,
    inputs: Tensor,
    cache_dir: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """As ``cached_features``, for a map at hand; ``name``, its version and the options name the cached rows.

    Raises:
        ConfigError: as ``cached_features``.
    """
    options = dict(options or {})
    if cache_dir is None:
        return _mapped(name, mapping, inputs)
    path = cache_dir / f"{name}-{_key(name, mapping.version, options, inputs)}.safetensors"
    shape = (len(inputs), *mapping.output_shape)
    held = _read(path, shape)
    if held is None:
        held = _mapped(name, mapping, inputs)
        _write(path, held)
    return held


def _mapped(name: str, mapping: FeatureMap, inputs: Tensor) -> Tensor:
    shape = (len(inputs), *mapping.output_shape)
    result: Tensor | None = None
    say = _Progress(f"features {name}", len(inputs))
    try:
        for start in range(0, len(inputs), CHUNK):
            rows = inputs[start : start + CHUNK]
            with torch.no_grad():
                part = mapping(rows)
            if tuple(part.shape) != (len(rows), *mapping.output_shape):
                problem = f"gave shape {tuple(part.shape)} for {len(rows)} rows, not {mapping.output_shape} a row"
                raise ConfigError("model.features", name, problem, "mend the map's output_shape")
            if result is None:
                result = torch.empty(shape, dtype=part.dtype)
            result[start : start + len(rows)] = part
            say.done(start + len(rows))
    finally:
        say.close()
    return torch.empty(shape) if result is None else result


def _key(name: str, version: str, options: Mapping[str, Any], inputs: Tensor) -> str:
    facts = [name, version, dict(options), str(inputs.dtype), list(inputs.shape)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(_bytes(inputs))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The cached rows if the file is whole, else None."""
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get("sha256")
            held = file.get_tensor("features")
    except (SafetensorError, OSError):
        return None
    if tuple(held.shape) != shape or hashlib.sha256(_bytes(held)).hexdigest() != digest:
        return None
    return held


def _write(path: Path, result: Tensor) -> None:
    """Writes the file whole or not at all, mode 0600."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        digest = hashlib.sha256(_bytes(result)).hexdigest()
        save_file({"features": result}, temporary, metadata={"sha256": digest})
        temporary.chmod(0o600)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            "cache", path.parent, f"cannot be written ({error})", "free the disk or its rights"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


class _Progress:
    """A bar on a terminal; elsewhere a plain line every ten seconds, so short work stays silent."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.said = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=label, unit="row", leave=False)

    def done(self, rows: int) -> None:
        if self.bar is not None:
            self.bar.update(rows - self.bar.n)
        elif time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            print(f"{self.label}: {rows} of {self.total} rows", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
