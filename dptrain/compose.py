"""From the command line to a typed config: where the shipped configs lie, and how Hydra's refusals are phrased.

Hydra is imported inside functions; OmegaConf's own messages become one line with a suggestion.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dptrain.config import ROOTS as OWN_ROOTS
from dptrain.config_bench import BenchConfig
from dptrain.config_conform import ConformConfig
from dptrain.config_plan import PlanConfig
from dptrain.errors import ConfigError, DptrainError, one_line, suggest

ALLOWED_ENVIRONMENT: tuple[str, ...] = ("HOME", "USER", "TMPDIR", "SLURM_JOB_ID")
"""Environment variables a config may quote with ``${oc.env:NAME}``; resolved configs are stored and logged."""


ROOTS: dict[str, type] = {**OWN_ROOTS, "bench": BenchConfig, "conform": ConformConfig, "plan": PlanConfig}
"""Command -> root dataclass."""


FREE_KEYS = ("model.options", "data.options", "optimizer.options", "data.columns")
"""Tables whose keys are the user's to choose; everywhere else a key must be in the schema."""


def spelled_for_hydra(overrides: Sequence[str]) -> list[str]:
    """Overrides of free tables with the ``++`` that Hydra wants for new keys.

    >>> spelled_for_hydra(["model.options.hidden=[8]", "seed=1", "+model.options.x=1"])
    ['++model.options.hidden=[8]', 'seed=1', '+model.options.x=1']
    """
    return [f"++{o}" if o.startswith(tuple(f"{k}{end}" for k in FREE_KEYS for end in ".=")) else o for o in overrides]


def config_dir() -> Path:
    """Folder of the shipped configs: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "_configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


@cache
def register_schemas() -> None:
    """Tells Hydra the root dataclasses, once a process, so that every key of every group is checked."""
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
            return typed(hydra_compose(command, overrides=[*spelled_for_hydra(overrides), *search]))
        except Exception as error:
            raise readable(error) from error


def typed(config: Any) -> Any:
    """The dataclass tree of a composed config; ranges are checked here, before anything is read or written.

    Raises:
        ConfigError: a value is out of range, missing, or quotes the environment.
    """
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=False)
    refuse_secrets(plain)
    _refuse_unknown(plain, OmegaConf.get_type(config))
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if not missing:
            return OmegaConf.to_object(config)
    except Exception as error:
        raise readable(error) from error
    raise ConfigError(missing[0], "???", "is needed", f"give {missing[0]}=...")


def _refuse_unknown(node: Any, schema: Any, key: str = "") -> None:
    """Refuses keys that a ``+`` added beside the schema's own: OmegaConf would carry them along unread."""
    if not (isinstance(node, dict) and is_dataclass(schema)):
        return
    known = {item.name: item for item in fields(schema)}
    for name, value in node.items():
        if name not in known:
            raise ConfigError(f"{key}{name}", value, "is not a setting", suggest(f"{key}{name}", _all_keys()))
        made = known[name].default_factory
        _refuse_unknown(value, type(made()) if callable(made) else None, f"{key}{name}.")


def refuse_secrets(node: Any, key: str = "") -> None:
    """Refuses ``${oc.env:...}`` outside the named list, names of resolvers that are themselves composed (they could be
    that one), and ``_target_`` anywhere but below ``hydra``, which ``hydra_check`` reads."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "_target_" and not key.startswith("hydra."):
                raise ConfigError(
                    f"{key}{name}", value, "configs name things, never code", "register it: imports=[my_file]"
                )
            refuse_secrets(value, f"{key}{name}.")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            refuse_secrets(value, f"{key}{index}.")
    elif isinstance(node, str):
        if re.search(r"\$\{[^:{}]*\$\{", node):
            remedy = "write the name out"
            raise ConfigError(key.rstrip("."), node, "composes a name that could quote the environment", remedy)
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
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        if isinstance(cause, DptrainError):
            return cause
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if not type(error).__module__.startswith(("hydra", "omegaconf", "yaml")):
        if not _while_composing(error):
            return error
        problem = f"cannot be composed ({type(error).__name__}: {one_line(str(error))[:200]})"
        return ConfigError("config", "", problem, "see 'dptrain configs list'")
    ours = [c for c in causes if type(c).__module__.startswith(("hydra", "omegaconf", "yaml"))]
    # OmegaConf raises templates ("$VALUE ...") that an outer error fills in.
    message = one_line(" ".join(dict.fromkeys(str(c) for c in reversed(ours) if "$" not in str(c))))
    unknown = re.search(r"Could not override '([\w.@/]+)'", message)
    if unknown is not None:
        key = unknown.group(1)
        return ConfigError(key, "", "is not a setting", suggest(key, _all_keys()))
    column = re.search(r"not a subclass of ColumnConfig\..* full_key: (?:data\.columns\.)?(\w[\w.]*)", message)
    if column is not None:
        name = column.group(1)
        remedy = f"declare it whole: 'data.columns={{{name}: {{low: 0, high: 110}}}}' (or categories), or mend its name"
        return ConfigError(f"data.columns.{name}", "", "is no column that was declared", remedy)
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


def _while_composing(error: BaseException) -> bool:
    """Whether an error that is none of Hydra's own came out of its reading: a file that is no text, or no map."""
    trace, last = error.__traceback__, ""
    while trace is not None:
        room = str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0]
        last = room if room.startswith(("dptrain", "hydra", "omegaconf", "yaml", "antlr4")) else last
        trace = trace.tb_next
    return last in ("hydra", "omegaconf", "yaml", "antlr4")


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
