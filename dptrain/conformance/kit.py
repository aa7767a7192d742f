"""``dptrain conform``: every check on one subject, before a private row is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from dptrain.config_conform import ConformConfig
from dptrain.conformance import draws, engine, fine, laws, places, steps
from dptrain.conformance.best import best_released
from dptrain.conformance.draws_far import draws_far_apart
from dptrain.conformance.guard import guarded
from dptrain.conformance.keys import keys_differ
from dptrain.conformance.layers import layers
from dptrain.conformance.left_behind import left_behind
from dptrain.conformance.lengths import token_lengths
from dptrain.conformance.long_runs import long_runs
from dptrain.conformance.looks import private_looks
from dptrain.conformance.many_units import many_units
from dptrain.conformance.own_rows import own_rows
from dptrain.conformance.price import prices
from dptrain.conformance.ranks import two_ranks
from dptrain.conformance.reference import rough_gradients
from dptrain.conformance.stand import Result, Stand, build_stand
from dptrain.conformance.wide import wide
from dptrain.training.made_up import prepare_without_rows
from dptrain.training.setup import Setup


def open_conform(config: ConformConfig) -> Setup:
    """Everything of a run but its rows, checked; see ``prepare_without_rows``.

    Raises:
        ConfigError: as there, or a plan without privacy, which has nothing to conform to.
    """
    return prepare_without_rows(config, "promises nothing that could be checked")


def conform(setup: Setup, config: ConformConfig) -> Iterator[Result]:
    """Runs the checks, cheap ones first; yields each result as it comes.

    Raises:
        ConfigError: the engine declines the model.
    """
    if config.conform.subject == "opacus":
        from dptrain.conformance.opacus import opacus_checks

        yield from opacus_checks(build_stand(setup, config), config)
        return
    yield from run_checks(build_stand(setup, config), config)


def run_checks(stand: Stand, config: ConformConfig) -> Iterator[Result]:
    """The checks of dptrain's own parts."""
    yield from exact_checks(stand)
    yield from chance_checks(stand, config)
    yield from guarded("two ranks", lambda: two_ranks(stand, config.conform.ranks))


def exact_checks(stand: Stand) -> Iterator[Result]:
    """Those that chance has no part in, but for a few laws of noise in the long run."""
    checks: dict[str, Callable[[Stand], Result | Iterable[Result]]] = {
        "norms": engine.norms,
        "rough gradients": rough_gradients,
        "sum": engine.clipped_sums,
        "contributions": engine.contributions,
        "just above C": fine.just_above,
        "neighbours": engine.neighbours,
        "bad rows": engine.bad_rows,
        "layouts": engine.layouts,
        "large batch": engine.large_batch,
        "model left alone": engine.model_left_alone,
        "grid": engine.on_grid,
        "layers": layers,
        "token lengths": token_lengths,
        "many units": many_units,
        "rows of one user": lambda stand: own_rows(),
        "recorded steps": steps.recorded_steps,
        "slack paid": fine.slack_paid,
        "price": lambda stand: prices(stand.asked, stand.config),
        "long runs": long_runs,
        "whole run": left_behind,
        "whole run, best": best_released,
    }
    for name, check in checks.items():
        yield from guarded(name, partial(check, stand))


def chance_checks(stand: Stand, config: ConformConfig) -> Iterator[Result]:
    """Those of noise, key stream and draws, whose false alarms have a rate."""
    asked = config.conform
    checks: dict[str, Callable[[], Result | Iterable[Result]]] = {
        "noise": lambda: laws.noise_law(stand, asked.noise_samples),
        "key stream": fine.addresses,
        "keys": keys_differ,
        "noise, fine": lambda: fine.fine_law(stand, 1_000_000),
        "noise, places": lambda: places.noise_places(stand),
        "wide release": lambda: wide(stand),
        "private looks": private_looks,
        "noise, rounding": lambda: places.rounding_law(stand),
        "sampling": lambda: laws.sampling_law(stand, asked.draws),
        "draws": lambda: draws.draws_law(stand),
        "draws, far apart": lambda: draws_far_apart(stand),
        "self-check": lambda: steps.selfchecked_run(stand, asked.selfcheck_steps),
    }
    for name, check in checks.items():
        yield from guarded(name, check)


def line(result: Result) -> str:
    """One line of the report."""
    word = {True: "pass", False: "FAIL", None: "n/a "}[result.passed]
    return f"{word}  {result.check:<22}{result.says}"
