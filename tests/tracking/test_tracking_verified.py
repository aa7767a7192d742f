"""dptrain register held to dptrain verify itself: a bundle enters whose statement verifies, and no other."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from dptrain.checkpoint.bundle import save_bundle
from dptrain.cli import run
from dptrain.config_privacy import PrivacyConfig
from dptrain.models.build import ModelSpec
from dptrain.privacy.plan import compile_plan
from dptrain.privacy.seal import sign_statement
from dptrain.privacy.statement import RunFacts, make_statement
from dptrain.run_folder import read_json, write_json
from dptrain.signing import load_signer

DATA = {"name": "ward", "licence": "not stated", "public_size": 1000, "public_split": "test rows", "is_public": False}

SPEC = ModelSpec(name="linear", raw_shape=(3,), input_shape=(3,), num_outputs=2, task="classification")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a real bundle, signed by this test's own key."""
    plan = compile_plan(PrivacyConfig(epsilon=None, noise_multiplier=3.0, epochs=5, expected_batch_size=50), 1000)
    facts: dict[str, Any] = {"run_id": "r", "steps_done": plan.steps, "engine": "vmap", "float_class": "exact"}

    def state(files: dict[str, Any]) -> dict[str, Any]:
        return sign_statement(make_statement(plan, RunFacts(**facts, data=DATA, files=files)), load_signer())

    (tmp_path / "run").mkdir()
    save_bundle(tmp_path / "run" / "checkpoint", nn.Linear(3, 2), SPEC, state)
    return tmp_path / "run"


def _lower(statement: dict[str, Any]) -> dict[str, Any]:
    return statement | {"guarantee": statement["guarantee"] | {"epsilon": statement["guarantee"]["epsilon"] / 2}}


def weights(bundle: Path) -> None:
    data = bytearray((bundle / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (bundle / "model.safetensors").write_bytes(bytes(data))


def claim(bundle: Path) -> None:
    write_json(bundle / "statement.json", _lower(read_json(bundle / "statement.json")))


def claim_and_manifest(bundle: Path) -> None:
    from dptrain.bundle_files import file_facts

    claim(bundle)
    manifest = read_json(bundle / "manifest.json")
    manifest["files"]["statement.json"] = file_facts(bundle / "statement.json")
    write_json(bundle / "manifest.json", manifest)


def claim_signed_by_a_stranger(bundle: Path) -> None:
    stranger = load_signer(bundle.parent / "stranger.key")
    lower = _lower(read_json(bundle / "statement.json"))
    write_json(bundle / "statement.json", sign_statement(lower, stranger))


def claim_signed_by_the_owner(bundle: Path) -> None:
    write_json(bundle / "statement.json", sign_statement(_lower(read_json(bundle / "statement.json")), load_signer()))


def a_file_more(bundle: Path) -> None:
    (bundle / "more.py").write_text("raise SystemExit")


def no_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


def test_a_good_bundle_enters(folder: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["register", f"path={folder}", "name=scorer", f"uri=sqlite:///{store}"]) == 0, capsys.readouterr().err
    with sqlite3.connect(store) as opened:
        assert opened.execute("select name, version from model_versions").fetchall() == [("scorer", 1)]


def no_manifest_and_other_weights(bundle: Path) -> None:
    no_manifest(bundle)
    weights(bundle)


def only_a_statement(bundle: Path) -> None:
    for name in ("model.safetensors", "model.json", "manifest.json"):
        (bundle / name).unlink()


TAMPERED: list[Callable[[Path], None]] = [weights, claim, claim_and_manifest, claim_signed_by_a_stranger]
TAMPERED += [claim_signed_by_the_owner, a_file_more, no_manifest, no_manifest_and_other_weights, only_a_statement]


@pytest.mark.parametrize("tamper", TAMPERED)
def test_a_tampered_bundle_does_not_and_nothing_is_sent(
    tamper: Callable[[Path], None], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(folder / "checkpoint")
    assert run(["register", f"path={folder}", "name=scorer", f"uri=sqlite:///{tmp_path}/fresh.db"]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "only a bundle whose statement verifies" in error
    assert not (tmp_path / "fresh.db").exists()
