"""How dptrain says no: one line, what was given, what is wrong, what to do.

Exit codes are part of the command line's contract:
2 a user's input is refused, 3 the budget refuses, 4 a claim is rejected.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 60
"""More than these are not listed in a refusal."""


class DptrainError(ValueError):
    """An error the user can act on. The command line prints its message as one line."""

    exit_code = 2


class ConfigError(DptrainError):
    """A setting, a file or a row the user gave is refused.

    Args:
        field: the setting's full key (``privacy.delta``) or the thing refused (``checkpoint``).
        value: what was given.
        problem: what is wrong with it.
        remedy: what to do about it.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field = field
        self.value = value
        self.problem = problem
        self.remedy = remedy
        super().__init__(one_line(f"{field}={value}: {problem}; {remedy}"))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, str, str, str]]:
        """Survives the way back from a sweep's worker process."""
        return type(self), (self.field, str(self.value), self.problem, self.remedy)


class BudgetRefused(ConfigError):
    """The privacy budget does not admit what was asked."""

    exit_code = 3


class ClaimRejected(ConfigError):
    """An audit or a verification contradicts what a checkpoint claims."""

    exit_code = 4


def unwritable(error: OSError) -> ConfigError:
    """A full, vanished or closed disk in the contract's words."""
    reason = error.strerror or str(error)
    remedy = "free space, mend the permissions, or name another run.dir; what was written before is whole"
    return ConfigError("file", error.filename or "the run folder", reason, remedy)


def one_line(text: str) -> str:
    """Folds white space so that a message, whatever it quotes, stays one line."""
    return " ".join(str(text).split())


def suggest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known one, else the list.

    >>> suggest("noise_multiplyer", ["noise_multiplier", "delta"])
    "did you mean 'noise_multiplier'?"
    """
    names = sorted(set(known) - {name})  # known to another command, perhaps, and asked of this one
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    if len(names) > MOST_NAMES:  # a line as long as a page says nothing
        return f"none of the {len(names)} known names is near; --help lists them"
    return "choose one of " + ", ".join(names) if names else "none is known"
