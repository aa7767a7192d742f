"""A sweep that is charged: ``dptrain train --multirun`` with a strategy, as one entry of the ledger.

dptrain train data=adult optimizer.lr=0.1,0.3,1 model=linear,mlp --multirun tuning.strategy=random tuning.mean_trials=20
"""

from __future__ import annotations

import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.launch import launch
from dptrain.sweep import Request, Sweep


def run(request: Request) -> bool:
    """Carries a sweep out, where it is dptrain's to carry out; False hands it on to Hydra, job by job.

    Raises:
        ConfigError: anything the user can mend; up to the first private row nothing is written.
        BudgetRefused: the account cannot bear the whole sweep.
    """
    from dptrain.training.tuning import check_request

    runs_here = check_request(request)
    if runs_here and request.strategy == "random":
        search(request.sweep)
    elif runs_here:
        grid(request.sweep)
    return runs_here


def search(sweep: Sweep) -> dict[str, Any]:
    """The best of a secret number of trials; returns result.json of the winner."""
    from dptrain.privacy.tuning import best_of, told_before
    from dptrain.tracking.console import summary
    from dptrain.training import stages, tuning
    from dptrain.training.search import begin, conclude_search

    # 1. Everything that can be refused is refused, and the price is told, before a private row is read.
    plan_of, _ = tuning.prepare_search(sweep, "random")
    setup, folder = plan_of.setup, plan_of.setup.folder
    goes_on = tuning.room_of(folder).is_file()
    summary(told_before(setup.plan, "random", None, folder.path, goes_on), sys.stderr)
    ledger = stages.open_account(setup)
    try:
        # 2. Rows are identified; the account admits the whole search; K and the candidates are drawn, once, and sealed.
        rows = tuning.Rows(setup, ledger)
        budget, draws = begin(plan_of, rows, ledger)

        # 3. Trials, one after another, unseen. A finished one is never run again, not even after a crash.
        with tuning.only_one(folder):
            done = [
                tuning.finished(folder, number) or tuning.run_trial(plan_of, rows, folder, number, combination)
                for number, combination in enumerate(draws.candidates)
            ]

            # 4. The winner, and nothing but the winner, with the price of the whole search on its statement.
            best = best_of([made["score"] for made in done]) if done else None
            return conclude_search(plan_of, rows, budget, draws.candidates, done, best)
    except KeyboardInterrupt:
        print(f"dptrain: the same command with run.dir={folder.path} goes on; nothing is drawn anew", file=sys.stderr)
        raise
    finally:
        if ledger is not None:
            ledger.close()


def grid(sweep: Sweep) -> dict[str, Any]:
    """Every combination once, all of them charged, so that all may be seen; returns result.json of the best."""
    from dptrain.privacy.tuning import best_of, grid_plan, told_before
    from dptrain.tracking.console import summary
    from dptrain.training import stages, tuning
    from dptrain.training.search import begin_grid, conclude_grid

    # 1. Every combination is checked, and the price of all together told, before a private row is read.
    plan_of, plans = tuning.prepare_search(sweep, "grid")
    setup, folder, combinations = plan_of.setup, plan_of.setup.folder, tuning.all_of(sweep)
    summary(told_before(grid_plan(plans, 0), "grid", len(plans), folder.path), sys.stderr)
    folder.check_free()
    ledger = stages.open_account(setup)

    # 2. The account admits all of them together; what an interrupted grid did not begin goes back.
    rows = tuning.Rows(setup, ledger)
    with begin_grid(plan_of, plans, rows, ledger) as budget:
        # 3. Runs, one after another, each committed before it starts and told as it ends.
        done = []
        for number, combination in enumerate(combinations):
            budget.intend(sum(plan.steps for plan in plans[: number + 1]))
            made = tuning.run_trial(plan_of, rows, folder, number, combination)
            done.append(made)
            text = " ".join(sweep.overrides(combination))
            print(
                f"run {number + 1}/{len(combinations)}  {text}  {plan_of.score} {tuning.shown(made)}", file=sys.stderr
            )

        # 4. The best of them, with the price of all of them on its statement.
        return conclude_grid(plan_of, plans, rows, budget, done, best_of([made["score"] for made in done]))


def main(arguments: list[str]) -> None:
    """Entry of ``python recipes/tune.py``: ``dptrain train`` with ``--multirun``."""
    launch("train", [*arguments, "--multirun"])


if __name__ == "__main__":
    sys.exit(guarded("train", [*sys.argv[1:], "--multirun"]))
