"""``dptrain conform``: every check on one subject, before a private row is read."""

from __future__ import annotations

from collections.abc import Iterator

from dptrain.config_conform import ConformConfig
from dptrain.conformance import draws, engine, fine, laws, places, steps
from dptrain.conformance.price import price
from dptrain.conformance.ranks import two_ranks
from dptrain.conformance.reference import rough_gradients
from dptrain.conformance.stand import Result, Stand, build_stand
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
    yield two_ranks(stand, config.conform.ranks)


def exact_checks(stand: Stand) -> Iterator[Result]:
    """Those that chance has no part in."""
    yield engine.norms(stand)
    yield rough_gradients(stand)
    yield from engine.clipped_sums(stand)
    yield engine.contributions(stand)
    yield fine.just_above(stand)
    yield engine.neighbours(stand)
    yield engine.bad_rows(stand)
    yield engine.layouts(stand)
    yield engine.large_batch(stand)
    yield engine.model_left_alone(stand)
    yield engine.on_grid(stand)
    yield from steps.recorded_steps(stand)
    yield fine.slack_paid(stand)
    yield price(stand.asked)


def chance_checks(stand: Stand, config: ConformConfig) -> Iterator[Result]:
    """Those of noise, key stream and draws, whose false alarms have a rate."""
    yield from laws.noise_law(stand, config.conform.noise_samples)
    yield fine.addresses()
    yield from fine.fine_law(stand, 1_000_000)
    yield from places.noise_places(stand)
    yield places.rounding_law(stand)
    yield from laws.sampling_law(stand, config.conform.draws)
    yield from draws.draws_law(stand)
    yield steps.selfchecked_run(stand, config.conform.selfcheck_steps)


def line(result: Result) -> str:
    """One line of the report."""
    word = {True: "pass", False: "FAIL", None: "n/a "}[result.passed]
    return f"{word}  {result.check:<22}{result.says}"
