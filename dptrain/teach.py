"""``dptrain COMMAND --help``: the groups, and every key with its comment, straight from the shipped YAML.

Hydra's own help composes every group first and takes seconds; the files themselves say more. What a line of
overrides composes to is shown by ``--cfg job``.
"""

from __future__ import annotations

import re
from pathlib import Path

from dptrain.cli import COMMANDS
from dptrain.compose import config_dir

USAGE = """usage: dptrain {command} [key=value ...] [group=option ...] [flags]

flags
  --cfg job            show what the line composes to, run nothing
  --multirun           run every combination of comma-separated values; hydra/launcher=joblib runs them in parallel
  --config-dir FOLDER  add a folder of your own configs
"""
LIKE = {"plan": "train"}
"""Commands that take another command's keys beside their own."""


def command_help(command: str) -> str:
    """The help of a command that takes settings."""
    folder = config_dir()
    text = (folder / f"{command}.yaml").read_text(encoding="utf-8")
    defaults = re.findall(r'^  - (\w+): "?(\w+)"?$', text, flags=re.MULTILINE)
    parts = [f"dptrain {command}: {COMMANDS[command]}\n", USAGE.format(command=command)]
    if defaults:
        parts.append("groups (the default is starred)")
        parts += [_group(folder / group, chosen) for group, chosen in defaults]
        parts.append("")
    parts.append("keys")
    parts += [_keys(folder / group / f"{chosen}.yaml", group) for group, chosen in defaults if chosen != "null"]
    parts.append(_own(text))
    if command in LIKE:
        parts += [f"and those of dptrain {LIKE[command]}", _own((folder / f"{LIKE[command]}.yaml").read_text("utf-8"))]
    return "\n".join(parts).rstrip() + "\n"


def _own(text: str) -> str:
    """The keys of a primary config that are in no group."""
    return _indented(text.split("_self_\n", 1)[-1].removeprefix("  - experiment: null\n"))


def _group(folder: Path, chosen: str) -> str:
    names = [f"{p.stem}*" if p.stem == chosen else p.stem for p in sorted(folder.glob("*.yaml"))]
    return f"  {folder.name:<12}{'  '.join(names)}"


def _keys(path: Path, group: str) -> str:
    return f"  {group}:\n" + _indented(path.read_text(encoding="utf-8"), "    ")


def _indented(text: str, by: str = "  ") -> str:
    return "\n".join(f"{by}{line}".rstrip() for line in text.strip().splitlines()) + "\n"
