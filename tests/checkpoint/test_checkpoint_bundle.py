"""The release bundle: whatever is wrong with it is refused by name, and loading it runs no code."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch

from dptrain.bundle_files import file_facts, listed_files, manifest_text, signature_text, verify_files
from dptrain.checkpoint.bundle import load_bundle, save_bundle
from dptrain.errors import ConfigError
from dptrain.models.build import ModelSpec, build_model
from dptrain.signing import load_signer

SPEC = ModelSpec(
    name="mlp", options={"hidden": [5]}, raw_shape=(4,), input_shape=(4,), num_outputs=3, task="multiclass"
)
STATEMENT = {"schema": "dptrain.statement/2", "sentence": "none"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_bundle(tmp_path / "checkpoint", build_model(SPEC), SPEC, lambda files: STATEMENT)
    return tmp_path / "checkpoint"


def reseal(bundle: Path) -> None:
    """Rewrites and signs the manifest so that only what lies behind it can catch a change."""
    text = manifest_text({name: file_facts(bundle / name) for name in listed_files(False)})
    (bundle / "manifest.json").write_text(text)
    (bundle / "signature.json").write_text(signature_text(text.encode(), load_signer()))


def test_what_is_saved_is_loaded(bundle: Path) -> None:
    torch.manual_seed(0)
    original = build_model(SPEC).eval()
    loaded = load_bundle(bundle)
    inputs = torch.randn(6, 4)
    assert torch.equal(original(inputs), loaded.model(inputs))
    assert loaded.spec == SPEC
    assert loaded.statement == STATEMENT
    assert not loaded.model.training
    assert load_bundle(bundle.parent).spec == SPEC  # the run folder does as well


def test_loading_leaves_the_random_state_alone(bundle: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_bundle(bundle)
    assert torch.equal(torch.rand(1), expected)


def test_nothing_in_a_bundle_is_readable_by_others(bundle: Path) -> None:
    assert bundle.stat().st_mode & 0o777 == 0o700
    for file in bundle.iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_a_bundle_is_never_overwritten(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        save_bundle(bundle, build_model(SPEC), SPEC, lambda files: STATEMENT)
    verify_files(bundle)


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dptrain.checkpoint.weights_file.save_model", full)
    with pytest.raises(OSError, match="No space"):
        save_bundle(tmp_path / "checkpoint", build_model(SPEC), SPEC, lambda files: STATEMENT)
    assert list(tmp_path.iterdir()) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "bit flip in the weights": (lambda b: flip(b / "model.safetensors"), "model.safetensors"),
    "bit flip in the statement": (lambda b: flip(b / "statement.json"), "statement.json"),
    "truncated weights": (
        lambda b: (b / "model.safetensors").write_bytes((b / "model.safetensors").read_bytes()[:100]),
        "model.safetensors",
    ),
    "missing weights": (lambda b: (b / "model.safetensors").unlink(), "model.safetensors"),
    "missing signature": (lambda b: (b / "signature.json").unlink(), "signature.json"),
    "signature of junk": (lambda b: (b / "signature.json").write_bytes(b"\x80\x04junk"), "signature.json"),
    "missing manifest": (lambda b: (b / "manifest.json").unlink(), "manifest.json"),
    "manifest of junk": (lambda b: (b / "manifest.json").write_bytes(b"\x80\x04junk"), "manifest.json"),
    "manifest of another shape": (lambda b: (b / "manifest.json").write_text("[1, 2]"), "manifest.json"),
    "foreign file": (lambda b: (b / "extra.bin").write_bytes(b"x"), "extra.bin"),
    "hidden file": (lambda b: (b / ".hidden").write_bytes(b"x"), ".hidden"),
    "empty folder": (lambda b: (b / "folder").mkdir(), "folder"),
    "pickle beside the weights": (lambda b: (b / "model.pth").write_bytes(pickle.dumps({})), "model.pth"),
    "weights behind a link": (lambda b: relink(b), "model.safetensors"),
}


def relink(bundle: Path) -> None:
    weights = bundle / "model.safetensors"
    weights.rename(bundle.parent / "elsewhere")
    weights.symlink_to(bundle.parent / "elsewhere")


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_damage_is_refused_and_the_file_named(bundle: Path, name: str) -> None:
    damage, file = DAMAGE[name]
    damage(bundle)
    with pytest.raises(ConfigError) as refused:
        load_bundle(bundle)
    assert file in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "no_such_model"},
        {"name": "os.system"},
        {"options": {"hidden": [5], "_target_": "os.system"}},
        {"surprise": 1},
        {"input_shape": [9]},
        {"schema": "other/1"},
        {"options": {"hidden": [2_000_000_000]}},
        {"options": {"hidden": [3] * 1000}},
        {"num_outputs": -1},
        {"num_outputs": "3"},
        {"input_shape": [2**31 - 1, 2**31 - 1]},
        {"raw_shape": "4"},
        {"class_names": [1]},
        {"features": "no_such_map"},
        {"replace_batchnorm": 1},
        {"task": None},
    ],
    ids=str,
)
def test_a_resealed_description_cannot_name_code_or_another_model(bundle: Path, change: dict) -> None:
    described = json.loads((bundle / "model.json").read_text())
    (bundle / "model.json").write_text(json.dumps(described | change))
    reseal(bundle)
    with pytest.raises(ConfigError):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "weights",
    [
        struct.pack("<Q", 1 << 40) + b"{}",
        pickle.dumps({"a": 1}),
        b"",
        struct.pack("<Q", 2) + b"{}",
    ],
    ids=["header of a terabyte", "pickle", "empty", "no tensors"],
)
def test_resealed_weights_of_another_kind_are_refused(bundle: Path, weights: bytes) -> None:
    (bundle / "model.safetensors").write_bytes(weights)
    reseal(bundle)
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        load_bundle(bundle)


def test_tied_parameters_survive(tmp_path: Path) -> None:
    from torch import nn

    from dptrain.registry import models

    @models.register("test_tied")
    def tied(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        module[1].weight = module[0].weight
        return module

    spec = ModelSpec(name="test_tied", raw_shape=(4,), input_shape=(4,), num_outputs=4, task="multiclass")
    module = build_model(spec).eval()
    save_bundle(tmp_path / "checkpoint", module, spec, lambda files: STATEMENT)
    inputs = torch.randn(3, 4)
    assert torch.equal(load_bundle(tmp_path / "checkpoint").model(inputs), module(inputs))
