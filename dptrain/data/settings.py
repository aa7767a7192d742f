"""What can be said about a source's settings before anything is read: unused ones, missing ones, missing files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from dptrain.config_data import DataConfig
from dptrain.errors import ConfigError

Setting = TypeVar("Setting")


def only_uses(config: DataConfig, used: Collection[str]) -> None:
    """Refuses settings that the source would silently ignore. ``name``, ``options`` and ``all_public``
    (a declaration that the account reads) always pass.

    Raises:
        ConfigError: naming the first setting that is set and not among ``used``.
    """
    blank = DataConfig()
    for item in fields(DataConfig):
        if item.name in ("name", "options", "all_public", *used):
            continue
        value = getattr(config, item.name)
        if value != getattr(blank, item.name):
            raise ConfigError(
                f"data.{item.name}", value, f"data '{config.name}' makes no use of it", f"leave data.{item.name} out"
            )


def needed(field: str, value: Setting | None, why: str) -> Setting:
    """The value of a setting that the source cannot do without.

    Raises:
        ConfigError: it is None or empty.
    """
    if value is None or value in ("", [], {}):
        raise ConfigError(field, value, f"is not set, {why}", f"set {field}")
    return value


def existing(field: str, value: str | Path, kind: str, remedy: str = "check the path") -> Path:
    """The path of a file (``kind="file"``) or folder (``kind="folder"``) that must be there.

    Raises:
        ConfigError: there is no such file or folder.
    """
    path = Path(value).expanduser()
    found = path.is_file() if kind == "file" else path.is_dir()
    if not found:
        raise ConfigError(field, value, f"there is no such {kind}", remedy)
    return path


def flag(source: str, option: str, value: object) -> bool:
    """An option that must be true or false.

    Raises:
        ConfigError: it is anything else.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"data.options.{option}", value, f"data '{source}' wants true or false", "set true or false")
    return value


def check_split(config: DataConfig) -> None:
    """Exactly one of ``data.public_path`` and ``data.public_fraction`` must say which rows are public.

    Raises:
        ConfigError: neither or both are set, or the public rows would be the private ones.
    """
    if (config.public_path is None) == (config.public_fraction is None):
        raise ConfigError(
            "data.public_path",
            config.public_path,
            f"exactly one of it and data.public_fraction ({config.public_fraction}) says which rows are public",
            "set one and leave the other null",
        )
    if config.public_path is not None and config.path is not None:
        private, public = Path(config.path).expanduser(), Path(config.public_path).expanduser()
        if private.exists() and public.exists() and private.samefile(public):
            raise ConfigError(
                "data.public_path",
                config.public_path,
                "is data.path itself, so private rows would count as public",
                "name other rows",
            )
