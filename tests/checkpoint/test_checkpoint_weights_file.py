"""Sealed weights of a bundle: the same promise, readable with the key alone, and nothing of them plain on the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from dptrain import cli
from dptrain.bundle_files import file_facts, listed_files, verify_files
from dptrain.checkpoint.bundle import load_bundle, save_bundle
from dptrain.checkpoint.seal import rotate
from dptrain.checkpoint.sealing_key import MasterKey, master_key
from dptrain.checkpoint.weights_file import read_weights, write_weights
from dptrain.errors import ClaimRejected, ConfigError
from dptrain.face import load
from dptrain.models.build import ModelSpec, build_model

SPEC = ModelSpec(
    name="mlp", options={"hidden": [5]}, raw_shape=(4,), input_shape=(4,), num_outputs=3, task="multiclass"
)
KEY, OTHER = master_key(bytes(range(32))), master_key(bytes(32))


def saved(folder: Path, key: MasterKey | None, seed: int = 0) -> tuple[Path, nn.Module]:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    module = build_model(SPEC)
    state = {"schema": "dptrain.statement/2", "sentence": "none"}
    save_bundle(folder / "checkpoint", module, SPEC, lambda files: {**state, "artifact": {"files": files}}, key=key)
    return folder / "checkpoint", module


@pytest.fixture
def source(tmp_path: Path) -> str:
    """The key, as a setting names it."""
    file = tmp_path / "a.key"
    file.write_text(bytes(range(32)).hex())
    file.chmod(0o600)
    return f"file:{file}"


def test_sealed_and_plain_weights_are_the_same_and_have_the_same_statement(tmp_path: Path, source: str) -> None:
    (plain, module), (sealed, _) = saved(tmp_path / "p", None), saved(tmp_path / "s", KEY)
    one, other = load_bundle(plain).model.state_dict(), load_bundle(sealed, source).model.state_dict()
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
    named = [json.loads((folder / "statement.json").read_text())["artifact"]["files"] for folder in (plain, sealed)]
    tensors = save(dict(module.state_dict()))
    assert named[1]["model.safetensors"]["bytes"] == len(tensors)
    assert [sorted(block) for block in named] == [["model.json", "model.safetensors"]] * 2
    assert {file.name for file in sealed.iterdir()} == {*listed_files(True), "manifest.json", "signature.json"}
    for file in sealed.iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_no_weight_is_on_the_disk_as_plain_text(tmp_path: Path) -> None:
    sealed, module = saved(tmp_path, KEY)
    held = b"".join(file.read_bytes() for file in sealed.iterdir())
    for parameter in module.parameters():
        assert parameter.detach().numpy().tobytes()[:12] not in held


def test_tied_weights_are_kept_once_and_come_back_tied(tmp_path: Path) -> None:
    module = nn.Module()
    module.out, module.embed = nn.Linear(3, 7, bias=False), nn.Embedding(7, 3)
    module.out.weight = module.embed.weight
    facts = write_weights(tmp_path, module, KEY)
    assert set(read_weights(tmp_path, facts, {KEY.id: KEY})) == {"embed.weight"}


def test_it_verifies_without_the_key_and_loads_with_it_alone(tmp_path: Path) -> None:
    sealed, _ = saved(tmp_path, OTHER)
    verify_files(sealed)
    with pytest.raises(ConfigError, match=r"model\.sealed: is sealed under key seal:.*name its source"):
        load_bundle(sealed)


def test_a_rotated_key_leaves_the_signature_whole(tmp_path: Path, source: str) -> None:
    sealed, _ = saved(tmp_path, OTHER)
    before = file_facts(sealed / "model.sealed")
    assert rotate(sealed / "model.sealed", {OTHER.id: OTHER}, KEY)
    assert file_facts(sealed / "model.sealed") == before
    verify_files(sealed)
    load_bundle(sealed, source)


@pytest.mark.parametrize("place", [0, 100, 511, 1536, 1600, -1])
def test_any_byte_of_header_and_data_is_signed(place: int, tmp_path: Path) -> None:
    sealed, _ = saved(tmp_path, KEY)
    file = sealed / "model.sealed"
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=r"model\.sealed: does not match its digest"):
        verify_files(sealed)


def test_a_changed_envelope_opens_nothing(tmp_path: Path, source: str) -> None:
    sealed, _ = saved(tmp_path, KEY)
    file = sealed / "model.sealed"
    data = bytearray(file.read_bytes())
    place = data.index(b'"wrapped": "') + 20
    data[place] = ord("A") if data[place] != ord("A") else ord("B")
    file.write_bytes(data)
    with pytest.raises(ConfigError, match="has a header that was changed"):
        load_bundle(sealed, source)


def test_neither_form_passes_for_the_other(tmp_path: Path, source: str) -> None:
    (plain, module), (sealed, _) = saved(tmp_path / "p", None), saved(tmp_path / "s", KEY)
    shutil.copy(plain / "model.safetensors", sealed)
    with pytest.raises(ConfigError, match="not listed"):
        verify_files(sealed)
    (sealed / "model.sealed").unlink()
    with pytest.raises(ConfigError, match=r"manifest\.json: is 'dptrain\.manifest/3'; this release reads"):
        verify_files(sealed)
    assert module is not None


def test_weights_of_another_bundle_do_not_open_here(tmp_path: Path) -> None:
    (one, _), (two, _) = saved(tmp_path / "1", KEY, seed=1), saved(tmp_path / "2", KEY, seed=2)
    shutil.copy(two / "model.sealed", one)
    facts = json.loads((one / "statement.json").read_text())["artifact"]["files"]["model.safetensors"]
    with pytest.raises(ConfigError, match="is sealed as something else"):
        read_weights(one, facts, {KEY.id: KEY})


def test_a_run_seals_verifies_is_audited_exported_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    settings: list[Any] = ["data=digits", "model=linear", "privacy.epochs=2", "tracking=none", "run.id=r"]
    sealing = [f"checkpoint.key={source}", "checkpoint.seal_bundle=true", "run.purpose=final", "ledger.uri=none"]
    assert cli.run(["train", *settings, *sealing]) == 0
    assert cli.run(["verify", "path=runs/r"]) == 0
    assert "the weights are sealed" in capsys.readouterr().out
    assert cli.run(["audit", "run=runs/r"]) == 2
    assert "checkpoint.key, audit.key or sealing_key" in capsys.readouterr().err
    assert cli.run(["audit", "run=runs/r", f"audit.key={source}"]) == 0
    assert cli.run(["export", "run=runs/r", "to=safetensors", "into=out", f"sealing_key={source}"]) == 0
    assert load("runs/r", sealing_key=source).spec.name == "linear"
    (tmp_path / "runs/r/checkpoint/model.sealed").chmod(0o755)
    with pytest.raises(ClaimRejected, match="marked as a program"):
        load("runs/r", sealing_key=source)
