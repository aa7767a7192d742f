"""A finished run's bundle as a version of a registered model; refused unless its statement verifies.

dptrain register path=runs/RUN name=MODEL
python recipes/register.py path=runs/RUN/checkpoint name=MODEL uri=sqlite:///mlflow.db
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dptrain.cli import guarded
from dptrain.config_compare import RegisterConfig
from dptrain.launch import launch


def run(config: RegisterConfig) -> dict[str, Any]:
    """Verifies the bundle's statement, then registers it.

    Raises:
        ClaimRejected: the statement does not verify (exit code 4); nothing is sent.
        ConfigError: there is no bundle, or the store did not take it.
    """
    from dptrain.tracking.console import summary
    from dptrain.tracking.register import register_model

    path = Path(config.path).expanduser()
    made = register_model(path, config.name, config.uri, config.experiment, config.allow_http)
    if config.format == "json":
        print(json.dumps(made, indent=2))
    else:
        summary([("registered", f"{made['name']} version {made['version']}"), ("store", str(made["uri"]))])
    return made


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain register``."""
    launch("register", arguments)


if __name__ == "__main__":
    sys.exit(guarded("register", sys.argv[1:]))
