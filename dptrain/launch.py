"""Starts a recipe under Hydra: overrides, groups, ``--multirun``, launchers, ``--help``, completion."""

from __future__ import annotations

import sys
from typing import Any

from dptrain.compose import config_dir, register_schemas, typed
from dptrain.errors import ConfigError

CONFIG_OF = {"plan": "train"}
"""Commands that share another command's primary config."""


class Task:
    """A recipe as the function that Hydra calls once a job; importable, so that sweep workers find it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __call__(self, config: Any) -> float | None:
        """Runs one job; returns the number that a sweeper may optimise."""
        from dptrain.cli import recipe

        return recipe(self.command).run(typed(config)).get("objective")


def launch(command: str, arguments: list[str]) -> None:
    """Composes ``command``'s config from the arguments and runs its recipe, once or once a sweep job."""
    import hydra

    for argument in arguments:
        if argument.startswith("--experimental-rerun"):
            raise ConfigError(
                "command line", argument, "would unpickle a file", "run again from the run's config.yaml values"
            )
    register_schemas()
    held = sys.argv
    sys.argv = ["dptrain", *arguments]
    try:
        name = CONFIG_OF.get(command, command)
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(Task(command))()
    finally:
        sys.argv = held
