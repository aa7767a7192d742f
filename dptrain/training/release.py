"""The end of a run: its account is settled, and what may leave the building is written with what it promises."""

from __future__ import annotations

import platform
from typing import Any

import torch

from dptrain.checkpoint.bundle import save_bundle
from dptrain.checkpoint.sealing_key import load_key
from dptrain.privacy.seal import sign_statement
from dptrain.privacy.statement import RunFacts, internal_statement, make_statement
from dptrain.privacy.tuning import tuning_block
from dptrain.run_folder import RunFolder, read_json, write_json
from dptrain.signing import load_signer
from dptrain.training.budget import Budget
from dptrain.training.canaries import public_canaries
from dptrain.training.loop import Outcome, Trainer
from dptrain.training.selfcheck import state_of
from dptrain.training.setup import Setup


def release(setup: Setup, trainer: Trainer, outcome: Outcome, folder: RunFolder, budget: Budget) -> dict[str, Any]:
    """Settles the account, writes the release bundle with its signed statement; returns the statement (public tier).

    A copy of the statement lies in the run folder; the internal tier, with the salted digest of the rows, in
    ``internal/``.
    """
    budget.settle(outcome.steps_done)
    signer = load_signer()

    def state(files: dict[str, Any]) -> dict[str, Any]:
        return sign_statement(
            make_statement(setup.plan, _facts(setup, trainer, outcome, folder, budget, files)), signer
        )

    settings = setup.config.checkpoint
    key = load_key(settings.key) if settings.seal_bundle else None
    statement = save_bundle(folder.checkpoint, setup.module, setup.spec, state, key=key)
    write_json(folder.statement, statement)
    inside = internal_statement(statement, {"manifest": read_json(folder.internal_manifest)})
    write_json(folder.internal_statement, sign_statement(inside, signer))
    return statement


def _facts(
    setup: Setup, trainer: Trainer, outcome: Outcome, folder: RunFolder, budget: Budget, files: dict[str, Any]
) -> RunFacts:
    info = setup.source.info
    device = next(setup.module.parameters()).device.type
    composition = budget.composition(setup.plan.epsilon_after(outcome.steps_done))
    return RunFacts(
        run_id=folder.run_id,
        steps_done=outcome.steps_done,
        engine=trainer.engine.name,
        float_class=trainer.engine.float_class if trainer.grid is not None else "floating",
        data={
            "name": info.name,
            "licence": info.licence,
            "public_size": info.public_size,
            "public_split": info.public_split,
            "is_public": info.is_public or setup.config.data.all_public,
        },
        test_randomness=not setup.keystream.is_private,
        nonprivate_metrics=setup.config.allow_nonprivate_metrics,
        composition=composition,
        tuning=tuning_block(setup.plan, setup.config.tuning),
        files=files,
        audit=public_canaries(setup.config.audit) or None,
        selfcheck=state_of(setup.plan, trainer.selfcheck),
        start=None if setup.start is None else setup.start.weighed(composition),
        environment={
            "device": device,
            "dtype": setup.config.execution.dtype,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )
