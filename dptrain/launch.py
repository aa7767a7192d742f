"""Starts a recipe under Hydra: overrides, groups, ``--multirun``, launchers, ``--help``, completion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dptrain.compose import config_dir, register_schemas, spelled_for_hydra, typed
from dptrain.errors import ConfigError, DptrainError, unwritable
from dptrain.hydra_check import refuse_code
from dptrain.sweep import requested
from dptrain.teach import command_help

TRAINING = ("train", "finetune")
"""Commands that spend: a sweep over private rows is charged, and its jobs share a name."""

WITH_VALUE = (
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--package",
    "-p",
)
"""Hydra's flags that take the next word as their value."""


def overrides_first(arguments: list[str]) -> list[str]:
    """Overrides before flags, since Hydra refuses overrides on both sides of a flag.

    >>> overrides_first(["a=1", "--multirun", "b=2", "--config-dir", "conf"])
    ['a=1', 'b=2', '--multirun', '--config-dir', 'conf']
    """
    flags: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("-sc", "--shell-completion"):
            return arguments
        if word.startswith("-"):
            flags.append(word)
            if word in WITH_VALUE:
                flags += [value for value in [next(words, None)] if value is not None]
        else:
            overrides.append(word)
    return spelled_for_hydra(overrides) + flags


class Task:
    """A recipe as the function that Hydra calls once a job; importable, so that sweep workers find it."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.refusal: DptrainError | OSError | None = None

    def __call__(self, config: Any) -> float | None:
        """Runs one job; returns the number that a sweeper may optimise.

        A refusal of a single run is kept for ``launch`` to raise, since Hydra would print a line of its own about it.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from dptrain.cli import recipe

        try:
            settings = typed(config)
            if self.command in TRAINING and HydraConfig.get().mode == RunMode.MULTIRUN:
                launched = Path(HydraConfig.get().sweep.dir).name  # its jobs share a name, and a bar of the report
                settings.tuning.label = settings.tuning.label or f"sweep {launched}"[:80]
            return recipe(self.command).run(settings).get("objective")
        except (DptrainError, OSError) as error:
            refusal = error  # a broken pipe stays one: ``| head`` had enough
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                refusal = unwritable(error)
            if HydraConfig.get().mode != RunMode.RUN:
                raise refusal from error
            self.refusal = refusal
            return None


def swept(command: str, arguments: list[str]) -> bool:
    """Carries out a sweep that is charged as one; False where there is none, or where Hydra runs its jobs."""
    if not any(word.startswith(("-", "experiment=", "hydra.mode=", "tuning.")) for word in arguments):
        return False
    from dptrain.cli import recipe

    request = requested(arguments, command)
    return request is not None and recipe("tune").run(request)


def launch(command: str, arguments: list[str]) -> None:
    """Composes ``command``'s config from the arguments and runs its recipe, once or once a sweep job."""
    for argument in arguments:
        if argument.startswith("--experimental-rerun"):
            raise ConfigError(
                "command line", argument, "would unpickle a file", "run again from the run's config.yaml values"
            )
    if "--help" in arguments or "-h" in arguments:
        print(command_help(command), end="")
        return
    register_schemas()
    ordered = overrides_first(arguments)
    refuse_code(command, ordered)
    if command in TRAINING and swept(command, ordered):
        return
    held = sys.argv
    sys.argv = ["dptrain", *ordered]
    try:
        import hydra

        task = Task(command)
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(task)()
    finally:
        sys.argv = held
    if task.refusal is not None:
        raise task.refusal
