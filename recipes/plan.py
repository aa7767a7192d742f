"""What a budget buys, before it is spent: a dry run that reads no private row.

dptrain plan experiment=quickstart
python recipes/plan.py data=fashion_mnist privacy.epsilon=1 privacy.expected_batch_size=4096
"""

from __future__ import annotations

import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config import TrainConfig
from dptrain.launch import launch


def run(config: TrainConfig) -> dict[str, Any]:
    """Compiles the plan and prints it with its cost; returns plan.json's content. Writes nothing."""
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
