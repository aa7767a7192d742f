"""The files of the data sets that ``scripts/fetch_data.sh`` brings: where they lie, and their published bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NotRequired, TypedDict

from dptrain.config_data import DataConfig
from dptrain.data.settings import existing
from dptrain.errors import ConfigError

LIMIT = 1 << 30
"""Most bytes a file may unpack to where its published size is not asked for."""


class ShippedFile(TypedDict):
    """Size and SHA-256 of a file's unpacked content."""

    bytes: int
    sha256: str


class ShippedSet(TypedDict):
    """A data set: its title, licence, files by name (without .gz), and rows a unit -> units where people repeat."""

    title: str
    licence: str
    files: Mapping[str, ShippedFile]
    unit_rows: NotRequired[Mapping[str, int]]


@cache
def shipped(name: str) -> ShippedSet:
    """The published facts about one data set, from ``shipped.json`` (which the fetch script reads too)."""
    return json.loads(Path(__file__).with_name("shipped.json").read_text("utf-8"))[name]


def locate(config: DataConfig, name: str) -> dict[str, Path]:
    """Where each file of the set lies, as it is or with .gz, in ``data.path`` (default ``data/<name>``).

    Raises:
        ConfigError: the folder or a file is missing; says how to fetch it.
    """
    remedy = f"run: bash scripts/fetch_data.sh {name}"
    folder = existing("data.path", config.path or f"data/{name}", "folder", remedy)
    found = {}
    for file in shipped(name)["files"]:
        plain, packed = folder / file, folder / f"{file}.gz"
        if not plain.is_file() and not packed.is_file():
            raise ConfigError("data.path", folder, f"holds neither {file} nor {file}.gz", remedy)
        found[file] = plain if plain.is_file() else packed
    return found


def read_shipped(path: Path, name: str, verify: bool) -> bytes:
    """The unpacked content of one file of a set.

    Args:
        path: the file as ``locate`` found it.
        name: the data set's name.
        verify: whether size and SHA-256 must be the published ones.

    Raises:
        ConfigError: the file cannot be read or unpacked, is too large, or is not the published one.
    """
    fact = shipped(name)["files"][path.name.removesuffix(".gz")]
    limit = fact["bytes"] if verify else LIMIT
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError("data.path", path, f"cannot be read ({type(error).__name__})", _again(name)) from error
    if len(content) > limit:
        raise ConfigError("data.path", path, f"holds more than {limit} bytes", _again(name))
    if verify and hashlib.sha256(content).hexdigest() != fact["sha256"]:
        raise ConfigError(
            "data.path",
            path,
            "is not the published file (its SHA-256 differs)",
            f"{_again(name)}, or set data.options.verify=false to use your own",
        )
    return content


def _again(name: str) -> str:
    return f"delete it and run: bash scripts/fetch_data.sh {name}"
