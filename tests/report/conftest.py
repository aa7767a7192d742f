from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dptrain.run_folder import RunFolder, new_run, write_json, write_text

SETTINGS = """
data: {name: digits, path: /secret/rows.csv}
model: {name: mlp, features: none}
optimizer: {name: sgd, lr: 2.0, options: {momentum: 0.9}, schedule: cosine}
tracking: {uri: http://tracking.internal.example:5000}
seed: 3
"""


def _epsilon(step: int, delta: float = 1e-5) -> float:
    return 2.9972 * math.sqrt(step / 1170) * math.log(1 / delta) / math.log(1e5)


def _statement(private: bool) -> dict[str, Any]:
    head = {
        "schema": "dptrain.statement/2",
        "tier": "public",
        "identity": {"run_id": "r1", "created": "2030-01-02T03:04:05+00:00", "software": "dptrain", "supersedes": None},
        "private": private,
        "unit": {"kind": "record", "max_rows": 1},
        "adjacency": {"relation": "zero_out", "size_is_public": True, "meaning": "one contribution"},
        "dataset": {
            "name": "digits",
            "licence": "CC BY 4.0",
            "public_size": 1437,
            "public_split": "the last fifth of the rows, by seed",
        },
        "scope": {"covered": [], "uncovered": [], "nonprivate_metrics": []},
    }
    if not private:
        return head | {"sentence": "This model promises no privacy: it was trained without privacy.", "guarantee": None}
    return head | {
        "sentence": "Training was (2.998, 1e-05)-differentially private for each record of digits: whoever sees the "
        "model can tell whether one record took part only as well as that allows, under one record's contribution "
        "replaced by nothing, the number of records being public.",
        "guarantee": {
            "epsilon": _epsilon(1170),
            "delta": 1e-5,
            "claim": "planned",
            "epsilon_at": [{"delta": d, "epsilon": _epsilon(1170, d)} for d in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)],
        },
        "mechanism": {
            "name": "dpsgd",
            "noise_multiplier": 1.8342,
            "clipping_norm": 1.0,
            "sensitivity": 1.001,
            "float_class": "exact",
            "event": {},
        },
        "sampling": {
            "name": "poisson",
            "rate": 0.1781,
            "expected_batch_size": 256.0,
            "steps_planned": 1170,
            "steps_done": 1170,
        },
        "randomness": {
            "noise": "secure",
            "source": "AES-256 counter-mode keystream keyed by the operating system; Gaussian on an integer grid",
        },
        "accounting": {
            "method": "PLD",
            "library": "dp-accounting",
            "version": "0.6.0",
            "assumptions": [
                {
                    "claim": "each unit is in each draw independently with probability q",
                    "assumed": False,
                    "implemented": "own Poisson sampler on the keystream",
                    "verified_by": "tests/data/test_data_sampler.py",
                },
                {
                    "claim": "a unit moves a clipped sum by at most C(1+s)",
                    "assumed": False,
                    "implemented": "engine 'vmap', float class 'exact'",
                    "verified_by": None,
                },
                {
                    "claim": "AES-256 is a pseudo-random permutation",
                    "assumed": True,
                    "implemented": None,
                    "verified_by": None,
                },
            ],
        },
        "limits": {
            "not_covered": [
                "rows of the split declared public, and anything published about them",
                "facts about groups: what holds for the population whether or not a unit took part",
                "other runs on the same units: their epsilons add up",
            ],
        },
    }


def _plan(private: bool) -> dict[str, Any]:
    shared = {"private": private, "steps": 1170, "public_size": 1437, "unit": "record", "warnings": []}
    if not private:
        return shared | {"mechanism": "none"}
    return shared | {"target_epsilon": 3.0, "epsilon": _epsilon(1170), "delta": 1e-5, "signal_to_noise": 0.8665}


def _roc(lift: float) -> dict[str, list[float]]:
    fpr = [i / 400 for i in range(401)]
    return {"fpr": fpr, "tpr": [min(1.0, x + lift * x**0.5 * (1 - x)) for x in fpr]}


def audit(private: bool) -> dict[str, Any]:
    """An audit.json as ``dptrain audit`` writes it."""
    lift = 0.04 if private else 0.6
    attacks = [
        {
            "name": name,
            "auc": {"value": 0.5 + lift / 2 + extra, "low": 0.45 + lift / 2 + extra, "high": 0.54 + lift / 2 + extra},
            "auc_together": {"low": 0.45 + lift / 2 + extra, "high": 0.54 + lift / 2 + extra},
            "tpr": [
                {"fpr": 0.01, "tpr": 0.014, "low": 0.004, "high": 0.036},
                {"fpr": 0.001, "refused": "360 non-members support no rate below 0.28 %"},
            ],
            "roc": _roc(lift + extra),
        }
        for name, extra in (("loss", 0.0), ("logit difference", 0.011))
    ]
    return {
        "schema": "dptrain.audit/1",
        "run_id": "r1",
        "members": 1437,
        "non_members": 360,
        "confidence": 0.95,
        "epsilon_claimed": _epsilon(1170) if private else None,
        "delta": 1e-5 if private else None,
        "verdict": "No attack tried tells members from non-members better than guessing, at 95 % confidence."
        if private
        else "The attack 'logit difference' tells members from non-members better than guessing.",
        "attacks": attacks,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Writes a run folder of the contract's shape: a private or a non-private run, audited or not."""

    def make(private: bool = True, audited: bool = True, name: str = "r1") -> RunFolder:
        folder = new_run(name, str(tmp_path / name)).create()
        write_text(folder.config, SETTINGS)
        write_json(folder.plan, _plan(private))
        write_json(folder.statement, _statement(private))
        lines, inside = [], []
        for index in range(1, 21):
            step = index * 1170 // 20
            line: dict[str, Any] = {"step": step, "seconds": step / 40}
            if private:
                line |= {"epsilon": _epsilon(step), "budget_remaining": 3.0 - _epsilon(step)}
            good = 0.93 * (1 - math.exp(-index / 3)) + 0.008 * math.sin(3 * index)
            line |= {"public_loss": 2.3 * math.exp(-index / 5) + 0.3, "test_accuracy": good}
            lines.append(json.dumps(line))
            inside.append(
                json.dumps({"step": step, "batch_size": 250 + index, "clipped_share": 0.61, "member_loss": 0.4})
            )
        write_text(folder.metrics, "\n".join(lines) + "\n")
        write_text(folder.internal_metrics, "\n".join(inside) + "\n")
        last = json.loads(lines[-1])
        result = {
            "run_id": name,
            "status": "finished",
            "private": private,
            "epsilon": _epsilon(1170) if private else None,
            "delta": 1e-5 if private else None,
            "steps": 1170,
            "planned_steps": 1170,
            "metrics": {
                "test_accuracy": last["test_accuracy"],
                "public_loss": last["public_loss"],
                "test_auroc": 0.9941,
            },
            "mlflow_run_id": "0123456789abcdef0123456789abcdef",
            "tracking_uri": "sqlite:////home/somebody/mlflow.db",
            "seconds": 31.4,
            "device": "cpu",
            "parameters": 26010,
            "data": "digits",
            "model": "mlp",
            "experiment": "dptrain",
        }
        write_json(folder.result, result)
        if audited:
            write_json(folder.internal_audit, audit(private))
        return folder

    return make
