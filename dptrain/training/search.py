"""The two ends of a search: its entry in the ledger with what is drawn once, and the winner's release."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dptrain.errors import BudgetRefused
from dptrain.keystream import Keystream
from dptrain.privacy.accounting import Event
from dptrain.privacy.grid import grid_step
from dptrain.privacy.ledger import Ledger
from dptrain.privacy.plan import Plan
from dptrain.privacy.privacy_filter import steps_of
from dptrain.privacy.tuning import Draws, draw_candidates, fingerprint, grid_plan, seal, unseal
from dptrain.run_folder import RunFolder, write_json
from dptrain.tracking.budget import budget_metrics
from dptrain.training import stages, tuning
from dptrain.training.assemble import build_noise
from dptrain.training.budget import Budget
from dptrain.training.budget import reserve as reserve_plan
from dptrain.training.loop import Outcome
from dptrain.training.setup import Setup, prepare
from dptrain.training.tuning import Rows, Search


def begin(search: Search, rows: Rows, ledger: Ledger | None) -> tuple[Budget, Draws]:
    """Reserves the whole search, draws it and seals the draws; or goes on with the draws of a search that was begun.

    Guarantee: K and the candidates are on disk, and the price of the whole search is committed in the ledger, before
    the first trial reads a row for training. They are drawn once, whatever happens afterwards.

    Raises:
        BudgetRefused: the account cannot bear it, or the search begun here was another one, or was given up.
        ConfigError: the run folder holds something else.
    """
    setup, folder = search.setup, search.setup.folder
    assert setup.plan.mechanism is not None and setup.plan.mechanism.trials is not None
    event = setup.plan.mechanism.event()
    name = fingerprint(tuning.settings_of(setup.config), [axis.values for axis in search.sweep.axes], event)
    path = tuning.room_of(folder)
    if path.is_file():
        return _go_on(setup, unseal(path, name), rows, ledger, event)
    folder.check_free()
    budget = _reserve(setup, setup.plan, rows, ledger)
    with _else_returned(budget, path):
        folder.create()
        stages.describe(setup, rows.first, folder)
        sizes = [len(axis.values) for axis in search.sweep.axes]
        candidates = draw_candidates(setup.plan.mechanism.trials, sizes, Keystream())
        draws = Draws(candidates, name, folder.run_id, budget.entry, rows.name)
        seal(path, draws)
    budget.intend(1)
    return budget, draws


@contextmanager
def _else_returned(budget: Budget, sealed: Path | None = None) -> Iterator[None]:
    """Gives a reservation back where its folder cannot be made; what has sealed draws keeps it, and goes on."""
    try:
        yield
    except BaseException:
        if sealed is None or not sealed.is_file():
            budget.settle()
        raise


def _go_on(setup: Setup, draws: Draws, rows: Rows, ledger: Ledger | None, event: Event) -> tuple[Budget, Draws]:
    if draws.rows != rows.name:
        remedy = "restore the rows or the ledger, or name a new run.dir and pay anew"
        raise BudgetRefused("data", setup.source.info.name, "is not what the search was begun on", remedy)
    if ledger is None or draws.entry is None:
        return Budget(), draws
    budget = Budget(ledger, ledger.resume(draws.entry), event, setup.config.ledger.lease_steps)
    budget.intend(1)
    return budget, draws


def begin_grid(search: Search, plans: Sequence[Plan], rows: Rows, ledger: Ledger | None) -> Budget:
    """Reserves all runs of a grid together, and makes the folder.

    Each run is committed before it starts (``Budget.intend`` of all steps up to its last); where runs differ in their
    steps, the first commits the whole.
    """
    setup, whole = search.setup, grid_plan(plans, 0)
    assert whole.mechanism is not None
    if setup.plan.noise == "secure":
        reach = replace(whole, steps=max(plan.steps for plan in plans) * len(plans))
        grid = grid_step(whole.mechanism.clipping_norm, whole.mechanism.sensitivity_slack, setup.num_parameters)
        build_noise(reach, Keystream(), setup.num_parameters, grid, torch.device("cpu"))
    budget = _reserve(setup, whole, rows, ledger)
    with _else_returned(budget):
        setup.folder.create()
        stages.describe(setup, rows.first, setup.folder)
    return budget


def _reserve(setup: Setup, plan: Plan, rows: Rows, ledger: Ledger | None) -> Budget:
    info, digest, run_id = setup.source.info, rows.first.digest, setup.folder.run_id
    named = run_id if run_id.startswith("search-") else f"{setup.config.tuning.strategy} {run_id}"
    label = setup.config.tuning.label or named
    return reserve_plan(ledger, setup.config, info, plan, digest, run_id, setup.purpose, label)


def conclude_search(
    search: Search,
    rows: Rows,
    budget: Budget,
    candidates: Sequence[Sequence[int]],
    done: Sequence[dict[str, Any]],
    best: int | None,
) -> dict[str, Any]:
    """Releases the winner of a random search under the price of the search, or says that nothing was selected."""
    setup, folder = search.setup, search.setup.folder
    if best is None:
        budget.settle(1)
        result = {
            "run_id": folder.run_id,
            "status": "nothing_selected",
            "private": True,
            "epsilon": setup.plan.epsilon,
            "delta": setup.plan.delta,
            "metrics": {},
        }
        write_json(folder.result, result)
        print(
            f"search      nothing was selected, as a Poisson law may have it; charged epsilon {setup.plan.epsilon:.4f}"
        )
        return result
    tuning.keep_best(folder, [made["score"] for made in done], best)
    return _release(search, setup.plan, rows, budget, best, candidates[best], done[best])


def conclude_grid(
    search: Search, plans: Sequence[Plan], rows: Rows, budget: Budget, done: Sequence[dict[str, Any]], best: int
) -> dict[str, Any]:
    """Releases the best run of a grid under the price of all runs; every run's score stands in trials.json."""
    folder = search.setup.folder
    told = [
        {"score": made["score"], "seconds": made["seconds"], "settings": search.sweep.overrides(made["combination"])}
        for made in done
    ]
    write_json(folder.path / "trials.json", {"score": search.score, "runs": told})
    tuning.keep_best(folder, [made["score"] for made in done], best)
    made = done[best]
    return _release(search, grid_plan(plans, best), rows, budget, best, made["combination"], made)


def _release(
    search: Search,
    plan: Plan,
    rows: Rows,
    budget: Budget,
    number: int,
    combination: Sequence[int],
    made: dict[str, Any],
) -> dict[str, Any]:
    """The winner as a run of its own: its settings, its curve, its weights, and the price of everything tried."""
    folder: RunFolder = search.setup.folder
    config = search.sweep.config(combination)
    trial = prepare(search.config(combination), check_folder=False)
    setup = replace(trial, config=config, plan=plan, folder=folder)
    tuning.load_winner(setup, folder, number)
    stages.describe(setup, rows.of(setup), folder)
    trainer, recorder, tracker = stages.assemble(setup, rows.of(setup), folder, budget)
    assert plan.epsilon is not None and plan.mechanism is not None
    spent = budget.standing(steps_of(plan.mechanism.event())[0]) or (plan.epsilon, plan.epsilon)
    for record in tuning.curve(folder, number):
        shown = record | {"epsilon": plan.epsilon, **budget_metrics(*spent)}
        for listener in [*recorder.listeners, stages.to(tracker)]:
            listener(json.loads(json.dumps(shown)))
    recorder.last = made["record"]
    outcome = Outcome(plan.steps, "finished", float(made["seconds"]))
    statement = stages.release(setup, trainer, outcome, folder, budget)
    result = stages.conclude(setup, outcome, recorder, tracker, folder, statement)
    stages.say(result, folder, statement)
    return result
