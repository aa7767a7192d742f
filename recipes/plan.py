"""What a budget buys, before it is spent: a dry run that reads no private row; or advice on batch, steps and noise.

dptrain plan experiment=quickstart
dptrain plan experiment=quickstart advise=true advice.compute=10m
python recipes/plan.py data=fashion_mnist privacy.epsilon=1 privacy.expected_batch_size=4096
"""

from __future__ import annotations

import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config_plan import PlanConfig
from dptrain.launch import launch


def run(config: PlanConfig) -> dict[str, Any]:
    """Compiles the plan and prints it with its cost, or with ``advise=true`` a table of what else epsilon could buy.

    Returns plan.json's content, or the table as plain data. Writes nothing.
    """
    if config.advise:
        from dptrain.training.advice import advise
        from dptrain.training.advice_text import advice_text
        from dptrain.training.made_up import prepare_without_rows

        setup = prepare_without_rows(config, "has no noise to weigh up")
        found = advise(setup, config.advice)
        print(advice_text(found))
        return found | {"objective": found["rows"][found["recommended"]]["bound"]}

    from dptrain.training.estimate import estimate_cost, plan_text
    from dptrain.training.setup import prepare

    setup = prepare(config, check_folder=False)
    cost = estimate_cost(setup)
    print(plan_text(setup, cost))
    return setup.plan.to_json(setup.num_parameters) | {"cost": cost, "objective": setup.plan.epsilon}


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain plan``."""
    launch("plan", arguments)


if __name__ == "__main__":
    sys.exit(guarded("plan", sys.argv[1:]))
