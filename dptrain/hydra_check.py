"""What a config says to Hydra itself, read before Hydra acts on it.

Hydra builds whatever a config names below ``hydra``: callbacks, a launcher, a sweeper, loggers. Its own list of refused
targets leaves out functions that load pickles. A config names things, never code, so here only Hydra's launchers and
sweepers pass, by where they lie; and no config sets environment variables, which could move ledger and keys elsewhere.
Hydra is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dptrain.compose import config_dir, readable, refuse_secrets, register_schemas
from dptrain.errors import ConfigError

PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")
LOGGERS = ("logging.StreamHandler", "logging.NullHandler", "logging.Formatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
ELSEWHERE = ("--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun")
FOLDER = ("--config-dir", "-cd")
REMEDY = "leave it out: configs name things, never code"
MOST_VALUES = 10_000
"""Of one key of a sweep. A range is written in a few letters, and its values may fill any memory."""


def refuse_code(config_name: str, arguments: Sequence[str]) -> None:
    """Refuses a command line whose configs would have Hydra run code, write logs, or set the environment.

    Composes only where the words or folders given could say anything to Hydra; the shipped configs alone do not.

    Args:
        config_name: the primary config.
        arguments: overrides before flags, spelled for Hydra.

    Raises:
        ConfigError: naming the key; or the configs do not compose.
    """
    for word in arguments:
        if word.split("=", 1)[0] in ELSEWHERE:
            raise ConfigError("command line", word, "would replace the shipped config", "use --config-dir=FOLDER")
    if {"-sc", "--shell-completion"} & set(arguments):
        return
    folders = _folders(arguments)
    end = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    if any("range" in word for word in arguments[:end]):
        _refuse_endless(arguments[:end])
    if not folders and not any("hydra" in word for word in arguments):
        return
    try:
        for overrides in _compositions(arguments[:end], folders):
            _check(_composed(config_name, overrides, folders))
    except Exception as error:
        raise readable(error) from error


def _compositions(overrides: Sequence[str], folders: Sequence[str]) -> list[list[str]]:
    """Lists of overrides that together choose every config a sweep would: each group's every choice, once."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    axes = []
    for override in parsed:
        if override.is_discrete_sweep() and _is_group(override.get_key_element(), folders):
            key = override.get_key_element()
            axes.append([f"{key}={value}" for value in swept_values(override)])
    first = [axis[0] for axis in axes]
    found = [fixed + first]
    for place, axis in enumerate(axes):
        found += [[*fixed, *first[:place], choice, *first[place + 1 :]] for choice in axis[1:]]
    return found


def swept_values(override: Any) -> list[str]:
    """The values of one key of a sweep, spelled out.

    Raises:
        ConfigError: there are more than ``MOST_VALUES``.
    """
    from hydra.core.override_parser.types import RangeSweep

    given = override.value()
    bounds: Any = (given.start, given.stop, given.step) if isinstance(given, RangeSweep) else (0, 0, 0)
    steps = (bounds[1] - bounds[0]) / bounds[2] if bounds[2] else 0
    values = [] if steps > MOST_VALUES else list(islice(override.sweep_string_iterator(), MOST_VALUES + 1))
    if max(steps, len(values)) > MOST_VALUES:  # a shuffled range is spelled out at once: it is measured first
        spelled = str(override.input_line).partition("=")[2]
        problem = f"is more than {MOST_VALUES:,} values"
        raise ConfigError(override.get_key_element(), spelled, problem, "sweep over fewer")
    return values


def _refuse_endless(overrides: Sequence[str]) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.is_discrete_sweep():
                swept_values(override)
    except Exception as error:
        raise readable(error) from error


def _is_group(key: str, folders: Sequence[str]) -> bool:
    name = key.lstrip("+~").split("@")[0]
    return "hydra" in name or any((Path(folder) / name).is_dir() for folder in (config_dir(), *folders))


def _composed(config_name: str, overrides: Sequence[str], folders: Sequence[str]) -> Any:
    """The node ``hydra``, unresolved, as plain data."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    register_schemas()
    search = ",".join(f"file://{Path(folder).absolute()}" for folder in folders)
    more = [f"hydra.searchpath=[{search}]"] if search else []
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        composed = compose(config_name, overrides=[*overrides, *more], return_hydra_config=True)
    return OmegaConf.to_container(composed.hydra, resolve=False)


def _check(hydra: dict[str, Any]) -> None:
    for key in ("callbacks", "job.env_set"):
        node: Any = hydra
        for name in key.split("."):
            node = node.get(name) or {}
        if node:
            raise ConfigError(f"hydra.{key}", sorted(node), "is not for configs to set", REMEDY)
    _refuse_targets(hydra, "hydra")
    for name in ("job_logging", "hydra_logging"):
        _refuse_handlers(hydra.get(name), f"hydra.{name}")
    refuse_secrets({name: hydra.get(name) for name in ("run", "sweep", "job", "launcher", "sweeper")}, "hydra.")


def _refuse_targets(node: Any, key: str) -> None:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "()" or (name == "_target_" and not str(value).startswith(PLUGINS)):
                raise ConfigError(f"{key}.{name}", value, "names code", REMEDY)
            _refuse_targets(value, f"{key}.{name}")
    elif isinstance(node, list):
        for item in node:
            _refuse_targets(item, key)


def _refuse_handlers(node: Any, key: str) -> None:
    for name, value in node.items() if isinstance(node, dict) else []:
        if name in ("class", "factory") and value not in LOGGERS:
            raise ConfigError(f"{key}.{name}", value, "writes or runs something of its own", REMEDY)
        if isinstance(value, str) and value.startswith(("ext://", "cfg://")) and value not in STREAMS:
            raise ConfigError(f"{key}.{name}", value, "names code", REMEDY)
        _refuse_handlers(value, f"{key}.{name}")


def _folders(arguments: Sequence[str]) -> list[str]:
    found = []
    for place, word in enumerate(arguments):
        name, _, given = word.partition("=")
        if name in FOLDER:
            found += [given] if given else arguments[place + 1 : place + 2]
    return found
