"""The shipped configs: list them, or copy them to change them.

dptrain configs list [GROUP]
dptrain configs copy experiment/quickstart conf/     then: dptrain train --config-dir conf experiment=quickstart
"""

from __future__ import annotations

import sys
from pathlib import Path

from dptrain.cli import guarded
from dptrain.compose import config_dir
from dptrain.errors import ConfigError, suggest


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain configs``."""
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("list", [])
    if verb in ("-h", "--help"):
        print(__doc__)
    elif verb == "list" and len(rest) <= 1:
        show(rest[0] if rest else None)
    elif verb == "copy" and len(rest) in (1, 2):
        print(copy(rest[0], Path(rest[1] if len(rest) == 2 else "conf")))
    else:
        raise ConfigError(
            "configs", " ".join(arguments), "is not understood", "say 'list [GROUP]' or 'copy NAME [FOLDER]'"
        )


def names() -> list[str]:
    """Every shipped config, as GROUP/NAME or NAME."""
    folder = config_dir()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def show(group: str | None) -> None:
    """Prints each config with the first line of what it says about itself."""
    known = [name for name in names() if group is None or name.startswith(f"{group}/") or name == group]
    if not known:
        groups = {name.split("/")[0] for name in names()}
        raise ConfigError("configs", group, "no such group", suggest(str(group), groups))
    for name in known:
        lines = (config_dir() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        about = next((line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line), "")
        print(f"{name:<28}{about}")


def copy(name: str, folder: Path) -> Path:
    """Copies one config to ``folder/GROUP/NAME.yaml``; an existing file is never overwritten."""
    name = name.removesuffix(".yaml")
    if name not in names():
        raise ConfigError("configs", name, "is not a shipped config", suggest(name, names()))
    target = folder / f"{name}.yaml"
    if target.exists():
        raise ConfigError("configs", target, "exists already", "choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((config_dir() / f"{name}.yaml").read_bytes())
    return target


if __name__ == "__main__":
    sys.exit(guarded("configs", sys.argv[1:]))
