"""``dptrain plan`` names the engine and what it has no rule for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dptrain.cli import recipe
from dptrain.compose import compose
from dptrain.training.estimate import engine_text

SOON = ["privacy.epsilon=null", "privacy.noise_multiplier=1", "privacy.epochs=null", "privacy.steps=4"]
MODEL = """
import torch
from dptrain.registry import models


@models.register("bent")
def bent(input_shape, num_outputs):
    layers = [torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.PReLU(), torch.nn.Linear(8, num_outputs)]
    return torch.nn.Sequential(*layers)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bent.py").write_text(MODEL)


@pytest.mark.parametrize(
    ("settings", "engine", "without", "said"),
    [
        ([], "bookkeeping", {}, "every function that reads a parameter has a rule of its own"),
        (
            ["imports=[bent]", "model=own", "model.name=bent"],
            "bookkeeping",
            {"prelu": "2.weight"},
            "without a rule, by a copy of the parameter a row under vmap: prelu (2.weight)",
        ),
        (["clipping.engine=vmap"], "vmap", None, "engine      vmap"),
        (["privacy=off", "privacy.steps=4", "privacy.epochs=null"], "plain", None, "engine      plain"),
    ],
)
def test_a_plan_names_the_engine_and_functions_without_a_rule(
    settings: list[str], engine: str, without: dict | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [] if "privacy=off" in settings else SOON
    found = recipe("plan").run(compose("plan", [*plan, "execution.physical_batch_size=16", *settings]))
    assert (found["cost"]["engine"], found["cost"]["without_rule"]) == (engine, without)
    assert json.loads(json.dumps(found["cost"])) == found["cost"]
    assert said in capsys.readouterr().out


def test_several_functions_are_listed() -> None:
    assert engine_text("bookkeeping", {"einsum": "a", "mul": "b"}).endswith(": einsum (a), mul (b)")
