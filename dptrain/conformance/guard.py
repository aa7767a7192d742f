"""A check that ends in an error is a failed check; a setting that is declined stays a refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from dptrain.conformance.stand import Result
from dptrain.errors import ClaimRejected, ConfigError, one_line
from dptrain.gradients.bookkeeping.refusals import out_of_memory

Check = Callable[[], Result | Iterable[Result]]


def guarded(name: str, check: Check) -> Iterator[Result]:
    """What a check finds, or that it fell over.

    Made-up rows are sound and the model runs on them (``prepare`` tried it), so that an exception out of an engine or
    a loop is a fault of its own, and no reason to leave the other checks out.

    Args:
        name: of the check that speaks where none of it came to an end.
        check: gives one result or several.

    Raises:
        ConfigError: the engine declines the model, in one line: nothing is trained then, and nothing failed.
        MemoryError, RuntimeError: the machine has no memory left.
    """
    try:
        found = check()
        yield from [found] if isinstance(found, Result) else found
    except ClaimRejected as error:
        yield Result(name, False, str(error))
    except (ConfigError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        yield Result(name, False, one_line(f"ends in {type(error).__name__}: {error}")[:160])
