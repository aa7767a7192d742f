"""Train a model privately: plan, data, draws, clipped sums, noise, bundle, statement.

dptrain train experiment=quickstart
dptrain train resume=runs/RUN
python recipes/train.py data=adult model=linear privacy.epsilon=1
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from dptrain.cli import guarded
from dptrain.config import TrainConfig
from dptrain.launch import launch

if TYPE_CHECKING:
    from dptrain.training.resume import Begun


def run(config: TrainConfig, begun: Begun | None = None) -> dict[str, Any]:
    """One training run, from settings to a finished folder; returns result.json and the sweep's ``objective``.

    Args:
        config: settings; with ``config.resume`` those of the run that goes on count instead.
        begun: the run that goes on, its lock held; None for a new one.

    Raises:
        ConfigError: anything the user can mend; up to the first private row nothing is written.
        ClaimRejected: the bundle that it should start from does not verify.
    """
    from dptrain.training import stages

    if config.resume is not None:
        return go_on(config.resume, [])

    # 1. Everything that can be refused is refused before a private row is read.
    setup = stages.prepare(config, check_folder=begun is None)
    ledger = stages.open_account(setup, begun)

    # 2. Private rows are read and identified; their account admits the whole plan, or nothing happens.
    loaded = stages.read_rows(setup, ledger, begun)
    with stages.reserve(setup, loaded, ledger, begun) as budget:
        folder = stages.open_folder(setup, loaded, begun)

        # 3. Draw, clip, write the intent down, add noise, step; public metrics and a state to resume from on the way.
        #    The rows of a probe go through the frozen body first, once.
        trainer, recorder, tracker = stages.assemble(setup, loaded, folder, budget)
        with stages.resumable(setup, loaded, trainer, recorder, ledger, budget, begun) as keeper:
            outcome = stages.train(setup, trainer, recorder, tracker, folder, keeper)

            # 4. What may leave the building, and what it promises.
            if begun is not None:
                begun.set_bundle_aside()
            statement = stages.release(setup, trainer, outcome, folder, budget)
            result = stages.conclude(setup, outcome, recorder, tracker, folder, statement)
            if keeper is not None and outcome.status == "finished":
                keeper.forget()
    stages.say(result, folder, statement)
    return result


def go_on(path: str, given: list[str]) -> dict[str, Any]:
    """Goes on with a run that was stopped or killed, under its own settings.

    Args:
        path: its folder.
        given: performance settings, tracking or the sealing key's source, as overrides.
    """
    from dptrain.training import stages

    begun = stages.begin(path, given)
    try:
        return run(begun.config, begun)
    finally:
        begun.lock.release()


def main(arguments: list[str], command: str = "train") -> None:
    """Entry of ``dptrain train``, and of ``finetune``, which is the same story on other defaults."""
    runs = [word.partition("=")[2] for word in arguments if word.startswith("resume=")]
    if runs and runs[-1] != "null" and not {"--help", "-h"} & set(arguments):
        go_on(runs[-1], [word for word in arguments if not word.startswith("resume=")])
    else:
        launch(command, arguments)


if __name__ == "__main__":
    sys.exit(guarded("train", sys.argv[1:]))
