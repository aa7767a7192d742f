"""What a ``--multirun`` sweeps over, read from the command line and the configs without running anything.

Hydra's own grammar is parsed by Hydra; Hydra is imported inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dptrain.compose import compose, config_dir, readable, register_schemas
from dptrain.errors import ConfigError
from dptrain.hydra_check import swept_values

BASIC = ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "hydra._internal.core_plugins.basic_launcher")
VALIDATED = 32
"""Up to this many combinations are composed and checked before a sweep starts; of more, every value once."""


@dataclass(frozen=True)
class Axis:
    """One key and the overrides it is swept over, such as ``optimizer.lr`` and ``["optimizer.lr=0.1", ...]``."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """Candidates of a search: every combination of the axes' values, on top of what is fixed.

    A combination is one index an axis.
    """

    fixed: tuple[str, ...]
    axes: tuple[Axis, ...]
    config_folder: str | None = None
    command: str = "train"
    """Whose primary config they are composed on: train or finetune."""
    _composed: dict[tuple[int, ...], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Number of combinations."""
        return math.prod(len(axis.values) for axis in self.axes)

    def combination(self, number: int) -> tuple[int, ...]:
        """The combination of that number, 0 .. size-1; the last axis changes fastest."""
        picked = []
        for axis in reversed(self.axes):
            number, place = divmod(number, len(axis.values))
            picked.append(place)
        return tuple(reversed(picked))

    def overrides(self, combination: Sequence[int]) -> list[str]:
        """What a combination sets."""
        return [axis.values[place] for axis, place in zip(self.axes, combination, strict=True)]

    def config(self, combination: Sequence[int]) -> Any:
        """The typed config of a combination. Raises ConfigError where it does not compose."""
        key = tuple(combination)
        if key not in self._composed:
            self._composed[key] = compose(self.command, [*self.fixed, *self.overrides(key)], self.config_folder)
        return self._composed[key]

    def to_check(self) -> list[tuple[int, ...]]:
        """Combinations that hold every value of every axis: all of them where they are few."""
        if self.size <= VALIDATED:
            return [self.combination(number) for number in range(self.size)]
        first = (0,) * len(self.axes)
        single = [
            (*first[:place], value, *first[place + 1 :])
            for place, axis in enumerate(self.axes)
            for value in range(len(axis.values))
        ]
        return list(dict.fromkeys(single))


@dataclass(frozen=True)
class Request:
    """A ``--multirun`` as it was asked for."""

    sweep: Sweep
    strategy: str | None
    public: bool
    launcher: str
    sweeper: str


def requested(arguments: Sequence[str], command: str = "train") -> Request | None:
    """The sweep that these arguments ask for, by ``--multirun`` or by a config's ``hydra.mode``; None for one run.

    Args:
        arguments: overrides before flags, spelled for Hydra.
        command: train or finetune.

    Raises:
        ConfigError: the line is not Hydra's grammar, or does not compose.
    """
    flags = {"--multirun", "-m"} & set(arguments)
    start = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    if {"--cfg", "-c", "--info", "-i", "-sc", "--shell-completion"} & set(arguments):
        return None
    folder = _value_after(arguments, ("--config-dir", "-cd"))
    try:
        parsed = _parsed(arguments[:start])
        fixed = tuple(str(o.input_line) for o in parsed if not o.is_sweep_override())
        hydra = _hydra_settings(command, fixed, folder)
    except Exception as error:
        raise readable(error) from error
    if not flags and str(hydra.mode).rsplit(".", 1)[-1] != "MULTIRUN":
        return None
    named = {o.get_key_element() for o in parsed}
    params = hydra.sweeper.get("params") or {}
    parsed += [o for o in _parsed([f"{key}={value}" for key, value in params.items()]) if _key(o) not in named]
    own = tuple(o for o in fixed if not o.lstrip("+~").startswith(("hydra.", "hydra/")))
    extra = tuple(str(o.input_line) for o in parsed if not o.is_sweep_override() and str(o.input_line) not in fixed)
    sweep = Sweep((*own, *extra), tuple(_axis(o) for o in parsed if o.is_sweep_override()), folder, command)
    first = sweep.config((0,) * len(sweep.axes)) if all(axis.values for axis in sweep.axes) else None
    tuning = getattr(first, "tuning", None)
    return Request(
        sweep,
        getattr(tuning, "strategy", None),
        bool(getattr(tuning, "public", False)),
        str(hydra.launcher.get("_target_")),
        str(hydra.sweeper.get("_target_")),
    )


def _parsed(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(list(overrides))


def _key(override: Any) -> str:
    return override.get_key_element()


def _axis(override: Any) -> Axis:
    key = _key(override)
    if not override.is_discrete_sweep():
        raise ConfigError(key.lstrip("+"), override.input_line, "is no list of values", "write them out: a,b,c")
    return Axis(key.lstrip("+~"), tuple(f"{key}={value}" for value in swept_values(override)))


def _hydra_settings(command: str, fixed: Sequence[str], folder: str | None) -> Any:
    from pathlib import Path

    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register_schemas()
    search = [f"hydra.searchpath=[file://{Path(folder).absolute()}]"] if folder else []
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        return hydra_compose(command, overrides=[*fixed, *search], return_hydra_config=True).hydra


def _value_after(arguments: Sequence[str], flags: Sequence[str]) -> str | None:
    for word, value in zip(arguments, [*arguments[1:], None], strict=True):
        if word in flags:
            return value
        if word.startswith(tuple(f"{flag}=" for flag in flags)):
            return word.split("=", 1)[1]
    return None
