"""Train a model privately: plan, data, draws, clipped sums, noise, bundle, statement.

dptrain train experiment=quickstart
python recipes/train.py data=adult model=linear privacy.epsilon=1
"""

from __future__ import annotations

import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config import TrainConfig
from dptrain.launch import launch


def run(config: TrainConfig) -> dict[str, Any]:
    """One training run, from settings to a finished folder; returns result.json and the sweep's ``objective``.

    Raises:
        ConfigError: anything the user can mend; up to the first private row nothing is written.
    """
    from dptrain.training import stages

    # 1. Everything that can be refused is refused before a private row is read.
    setup = stages.prepare(config)
    ledger = stages.open_account(setup)

    # 2. Private rows are read and identified; their account admits the whole plan, or nothing happens.
    loaded = stages.read_rows(setup, ledger)
    with stages.reserve(setup, loaded, ledger) as budget:
        folder = stages.open_folder(setup, loaded)

        # 3. Draw, clip, write the intent down, add noise, step; public metrics on the way.
        trainer, recorder, tracker = stages.assemble(setup, loaded, folder, budget)
        outcome = stages.train(setup, trainer, recorder, tracker, folder)

        # 4. What may leave the building, and what it promises.
        statement = stages.release(setup, trainer, outcome, folder, budget)
    result = stages.conclude(setup, outcome, recorder, tracker, folder, statement)
    stages.say(result, folder, statement)
    return result


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain train``."""
    launch("train", arguments)


if __name__ == "__main__":
    sys.exit(guarded("train", sys.argv[1:]))
