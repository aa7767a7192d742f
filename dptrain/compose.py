"""From the command line to a typed config: where the shipped configs lie, and how Hydra's refusals are phrased.

Hydra is imported inside functions; OmegaConf's own messages become one line with a suggestion.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dptrain.config import ROOTS
from dptrain.errors import ConfigError, DptrainError, one_line, suggest

ALLOWED_ENVIRONMENT: tuple[str, ...] = ("HOME", "USER", "TMPDIR", "SLURM_JOB_ID")
"""Environment variables a config may quote with ``${oc.env:NAME}``; resolved configs are stored and logged."""


def config_dir() -> Path:
    """Folder of the shipped configs: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "_configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def register_schemas() -> None:
    """Tells Hydra the root dataclasses, so that every key of every group is checked."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for command, root in ROOTS.items():
        store.store(name=f"{command}_schema", node=root)


def compose(command: str, overrides: Sequence[str] = (), config_folder: str | None = None) -> Any:
    """Composes ``command``'s config outside of Hydra's own main, for notebooks and tests; returns the dataclass.

    Args:
        command: train, plan, audit or report.
        overrides: as on the command line (``["experiment=quickstart", "seed=1"]``).
        config_folder: a further folder of the user's own configs (``--config-dir``).
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register_schemas()
    search = [f"hydra.searchpath=[file://{Path(config_folder).absolute()}]"] if config_folder else []
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        try:
            return typed(hydra_compose(command, overrides=[*overrides, *search]))
        except Exception as error:
            raise readable(error) from error


def typed(config: Any) -> Any:
    """The dataclass tree of a composed config; ranges are checked here, before anything is read or written.

    Raises:
        ConfigError: a value is out of range, missing, or quotes the environment.
    """
    from omegaconf import OmegaConf

    _refuse_secrets(OmegaConf.to_container(config, resolve=False))
    try:
        return OmegaConf.to_object(config)
    except Exception as error:
        raise readable(error) from error


def _refuse_secrets(node: Any, key: str = "") -> None:
    """Refuses ``${oc.env:...}`` outside the named list, and ``_target_`` anywhere."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "_target_":
                raise ConfigError(
                    f"{key}{name}", value, "configs name things, never code", "register it: imports=[my_file]"
                )
            _refuse_secrets(value, f"{key}{name}.")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _refuse_secrets(value, f"{key}{index}.")
    elif isinstance(node, str):
        for name in re.findall(r"\$\{\s*oc\.env\s*:\s*([^,}\s]*)", node):
            if name not in ALLOWED_ENVIRONMENT:
                raise ConfigError(
                    key.rstrip("."),
                    f"${{oc.env:{name}}}",
                    "would copy the environment into a stored config",
                    "secrets belong in the tool's own environment variables; allowed here: "
                    + ", ".join(ALLOWED_ENVIRONMENT),
                )


def readable(error: Exception) -> Exception:
    """Hydra's and OmegaConf's errors as a ConfigError of one line; anything else is returned as it is."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DptrainError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if not type(error).__module__.startswith(("hydra", "omegaconf", "yaml")):
        return error
    message = one_line(str(error))
    unknown = re.search(r"[Kk]ey '?([\w.]+)'? (?:is not in struct|not in '(\w+)')", message)
    if unknown is None:
        unknown = re.search(r"Could not override '([\w.@/]+)'", message)
    if unknown is not None:
        full = re.search(r"full_key: ([\w.]+)", message)
        override = re.search(r"Could not override '([\w.@/]+)'", message)
        key = (full or override or unknown).group(1)
        return ConfigError(key, _value_of(message), "is not a setting", suggest(key, _all_keys()))
    missing = re.search(r"Missing mandatory value: ([\w.]+)", message)
    if missing is not None:
        return ConfigError(missing.group(1), "???", "is needed", f"give {missing.group(1)}=...")
    option = re.search(r"Could not find '([^']+)'(?: Available options in '([^']+)':(.*))?", message)
    if option is not None:
        name, group = option.group(1), option.group(2)
        options = re.findall(r"[\w./-]+", (option.group(3) or "").split("Config search path")[0])
        if group:
            return ConfigError(
                group, name.rsplit("/", 1)[-1], "is not a shipped config", suggest(name.rsplit("/", 1)[-1], options)
            )
        return ConfigError("config", name, "cannot be found", "see 'dptrain configs list'")
    full = re.search(r"full_key: ([\w.]+)", message)
    text = message.split(" full_key:")[0].split(" See https")[0]
    return ConfigError(
        full.group(1) if full else "command line", _value_of(message), text, "see 'dptrain configs list'"
    )


def _value_of(message: str) -> str:
    value = re.search(r"[Vv]alue '([^']*)'", message)
    return value.group(1) if value else ""


def _all_keys() -> list[str]:
    keys: list[str] = []

    def walk(kind: type, prefix: str) -> None:
        for item in fields(kind):
            keys.append(prefix + item.name)
            made = item.default_factory() if callable(item.default_factory) else None
            if is_dataclass(made):
                walk(type(made), f"{prefix}{item.name}.")

    for root in dict.fromkeys(ROOTS.values()):
        walk(root, "")
    return keys
