"""A user's room for tests: a ledger, and run folders whose bundles are signed and counted, without any training."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dptrain.bundle_files import MANIFEST, SIGNATURE, file_facts, listed_files, manifest_text, signature_text
from dptrain.checkpoint.bundle import save_bundle
from dptrain.config_privacy import PrivacyConfig
from dptrain.models.build import ModelSpec, build_model
from dptrain.privacy.ledger import Ledger, open_ledger
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.privacy.seal import sign_statement
from dptrain.privacy.statement import RunFacts, make_statement
from dptrain.run_folder import read_json, write_json
from dptrain.signing import Signer, load_signer
from dptrain.training.budget import RULE

SPEC = ModelSpec(
    name="mlp",
    options={"hidden": [5]},
    raw_shape=(4,),
    input_shape=(4,),
    num_outputs=3,
    task="multiclass",
    class_names=("no", "perhaps", "yes"),
)
DATA = {"name": "ward", "licence": "not stated", "public_size": 1000, "public_split": "test rows", "is_public": False}


@cache
def plan() -> Plan:
    """Every record in every step: the cheapest plan to price."""
    settings: dict[str, Any] = {"epsilon": None, "noise_multiplier": 10.0, "epochs": 3, "expected_batch_size": 1000}
    return compile_plan(PrivacyConfig(**settings), 1000)


def open_room() -> Ledger:
    """The ledger of ``DPTRAIN_HOME``, with an account for the ward."""
    ledger = open_ledger(None)
    ledger.create_account("ward", 8, 1e-5)
    return ledger


def release(ledger: Ledger | None, folder: Path, run_id: str, seed: int = 0) -> Path:
    """A run folder with a signed bundle, a copy of its statement, and a result; returns its ``checkpoint``."""
    made = plan()
    composition = None
    if ledger is not None:
        assert made.mechanism is not None and made.epsilon is not None
        event = made.mechanism.event()
        held = ledger.reserve(
            "ward", event=event, run_id=run_id, purpose="trial", delta=made.delta, epsilon=made.epsilon
        )
        ledger.commit(held, made.steps)
        ledger.settle(held, made.steps)
        totals, head = ledger.totals("ward", pld=False), ledger.head()
        composition = {
            "ledger_id": ledger.id,
            "entry": held.entry,
            "account": "ward",
            "prior": held.prior,
            "this_run": made.epsilon,
            "total": totals.epsilon,
            "limit_epsilon": totals.limit_epsilon,
            "limit_delta": totals.limit_delta,
            "remaining": totals.remaining,
            "head": {"sequence": head.sequence, "hash": head.hash},
            "rule": RULE,
        }
    facts: dict[str, Any] = {"run_id": run_id, "steps_done": made.steps, "engine": "vmap", "float_class": "exact"}

    def state(files: dict[str, Any]) -> dict[str, Any]:
        stated = make_statement(made, RunFacts(**facts, data=DATA, files=files, composition=composition))
        return sign_statement(stated, load_signer())

    run = folder / run_id
    run.mkdir(parents=True)
    torch.manual_seed(seed)
    write_json(run / "statement.json", save_bundle(run / "checkpoint", build_model(SPEC), SPEC, state))
    write_json(run / "result.json", {"run_id": run_id, "status": "finished", "mlflow_run_id": None})
    return run / "checkpoint"


def list_anew(bundle: Path) -> None:
    """The manifest that belongs to the files as they lie there, as anyone can write it; its signature is left."""
    (bundle / MANIFEST).write_text(manifest_text({name: file_facts(bundle / name) for name in listed_files(False)}))


def sign_anew(bundle: Path, signer: Signer | None = None) -> None:
    """Manifest and signature of the files as they lie there."""
    list_anew(bundle)
    signed = signature_text((bundle / MANIFEST).read_bytes(), signer or load_signer())
    (bundle / SIGNATURE).write_text(signed)


def restate(bundle: Path, change: Callable[[dict[str, Any]], None], signer: Signer | None = None) -> None:
    """The statement changed and signed again, and the whole bundle with it; the run folder's copy, too."""
    statement = read_json(bundle / "statement.json")
    change(statement)
    statement["artifact"]["files"] = {
        name: file_facts(bundle / name) for name in ("model.safetensors", "model.json")
    } | {name: facts for name, facts in statement["artifact"]["files"].items() if name not in listed_files(False)}
    write_json(bundle / "statement.json", sign_statement(statement, signer or load_signer()))
    if (bundle.parent / "statement.json").is_file():
        (bundle.parent / "statement.json").write_bytes((bundle / "statement.json").read_bytes())
    sign_anew(bundle, signer)


def edit(file: Path, change: Callable[[Any], None]) -> None:
    """Edits a JSON file in place and keeps its spelling."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value, indent=2) + "\n")
