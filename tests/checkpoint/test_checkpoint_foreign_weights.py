"""``dptrain convert``: tensors come out as they went in, nothing is run or written over, everything else is refused."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dptrain.checkpoint import foreign_weights
from dptrain.cli import run
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import sources


class Runs:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, ("ran",)


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@sources.register("foreign_ids")
def foreign_ids(config: Any, seed: int) -> Source:
    info = SourceInfo(
        name="foreign_ids", task="binary", input_shape=(8,), num_classes=2, public_size=64, is_public=True,
        vocabulary=60, pad=0,
    )  # fmt: skip
    rows = Rows(torch.arange(64 * 8).reshape(64, 8) % 59 + 1, torch.arange(64) % 2)
    return Source(info, lambda: Splits(rows, rows.take(torch.arange(8))))


def a_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older form"])
def test_what_goes_in_comes_out(zipped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    state = a_model().state_dict() | {"half": torch.ones(2, 2, dtype=torch.bfloat16), "turned": torch.rand(3, 5).T}
    torch.save(state, "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert run(["convert", "weights=pytorch_model.bin"]) == 0
    out, found = capsys.readouterr().out, load_file("model.safetensors")
    assert found.keys() == state.keys() and all(torch.equal(found[n], state[n]) for n in state)
    assert found["0.weight"].dtype == torch.float32 and found["half"].dtype == torch.bfloat16
    for file in ("pytorch_model.bin", "model.safetensors"):
        assert "sha256:" + hashlib.sha256(Path(file).read_bytes()).hexdigest() in out
    with safe_open("model.safetensors", framework="pt") as opened:
        assert opened.metadata()["format"] == "pt", "transformers reads no other"
        assert opened.metadata()["converted_from"] in out
    assert sorted(os.listdir()) == ["model.safetensors", "pytorch_model.bin"]


def test_tied_weights_keep_both_names_and_a_part_its_own() -> None:
    table = torch.rand(6, 4)
    module = {"module.in": table, "module.out": table, "module.row": table[2]}
    torch.save({"epoch": 3, "state_dict": OrderedDict(module), "optimizer": {"state": {}}}, "c.pth")
    assert run(["convert", "weights=c.pth", "part=state_dict", "strip=module.", "into=new/w.safetensors"]) == 0
    found = load_file("new/w.safetensors")
    assert found.keys() == {"in", "out", "row"} and torch.equal(found["out"], table)
    assert torch.equal(found["row"], table[2])


def test_an_adapter_keeps_its_name() -> None:
    torch.save({"a": torch.ones(1)}, "adapter_model.bin")
    assert run(["convert", "weights=adapter_model.bin"]) == 0
    assert Path("adapter_model.safetensors").is_file()


def test_nothing_is_written_over(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(1)}, "w.pt")
    Path("model.safetensors").write_bytes(b"mine")
    Path("link.safetensors").symlink_to("nowhere")
    for into in ([], ["into=link.safetensors"]):
        assert run(["convert", "weights=w.pt", *into]) == 2
        assert "is there already" in capsys.readouterr().err
    real = os.link

    def raced(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"somebody else's")
        real(source, target)

    monkeypatch.setattr(foreign_weights.os, "link", raced)
    assert run(["convert", "weights=w.pt", "into=late.safetensors"]) == 2
    assert Path("late.safetensors").read_bytes() == b"somebody else's"
    assert Path("model.safetensors").read_bytes() == b"mine" and not Path("nowhere").exists()
    assert not list(Path().glob(".*")), "nothing half written stays behind"


def _saved(value: Any, **more: Any) -> bytes:
    held = io.BytesIO()
    torch.save(value, held, **more)
    return held.getvalue()


def _packed(data: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return held.getvalue()


def _script() -> bytes:
    held = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), held)
    return held.getvalue()


ONE = torch.ones(1)
BAD: dict[str, Any] = {
    "pickle that runs code": lambda: pickle.dumps(Runs()),
    "code among tensors": lambda: _saved({"a": ONE, "b": Runs()}),
    "code, older form": lambda: _saved({"a": ONE, "b": Runs()}, _use_new_zipfile_serialization=False),
    "a whole module": lambda: _saved(torch.nn.Linear(2, 2)),
    "TorchScript": _script,
    "nested": lambda: _saved({"state_dict": {"a": ONE}, "epoch": 3}),
    "nested twice": lambda: _saved({"a": ONE, "b": {"c": {"d": ONE}}}),
    "a list": lambda: _saved([ONE]),
    "one tensor": lambda: _saved(ONE),
    "a number": lambda: _saved({"a": ONE, "b": 3}),
    "nothing": lambda: _saved({}),
    "empty": lambda: b"",
    "text": lambda: b"hello there\n" * 9,
    "Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "zip of something else": lambda: _packed(_saved({"a": ONE}))[:40] + b"PK\x05\x06" + bytes(18),
    "cut off": lambda: _saved({"a": torch.rand(1000)})[:-500],
    "cut off, older form": lambda: _saved({"a": torch.rand(1000)}, _use_new_zipfile_serialization=False)[:-500],
    "packed": lambda: _packed(_saved({"a": torch.zeros(1_000_000)})),
    "repeated to a size that no memory has": lambda: _saved({"a": ONE.expand(2**20, 2**20)}),
    "overlaps": lambda: _saved({f"a{n}": torch.zeros(10)[:1].expand(300) for n in range(99)} | {"z": ONE}),
    "many windows on one storage": lambda: _saved((lambda t: {f"a{n}": t[n:] for n in range(500)})(torch.zeros(2000))),
    "sparse": lambda: _saved({"a": torch.eye(3).to_sparse()}),
    "sparse rows": lambda: _saved({"a": torch.eye(3).to_sparse_csr()}),
    "quantised": lambda: _saved({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}),
    "no numbers": lambda: _saved({"a": torch.empty(3, device="meta")}),
    "complex": lambda: _saved({"a": torch.ones(2, dtype=torch.complex64)}),
    "huge name": lambda: _saved({"a" * 5000: ONE}),
    "name of control characters": lambda: _saved({"a\x1b[2J\n": ONE}),
    "number as a name": lambda: _saved({1: ONE}),
    "empty name": lambda: _saved({"": ONE}),
    "name that safetensors keeps": lambda: _saved({"__metadata__": ONE}),
}


@pytest.mark.parametrize("case", BAD)
def test_everything_else_is_refused_in_one_line(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # who set this for another program
    with warnings.catch_warnings(action="ignore"):  # torch's own, on kinds that it gives up
        Path("w.bin").write_bytes(BAD[case]())
    assert run(["convert", "weights=w.bin"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("dptrain: error: weights=") and said.err.count("\n") == 1 and len(said.err) < 700
    assert "\x1b" not in said.err and not said.out
    assert os.listdir() == ["w.bin"], "nothing ran, nothing was written"


def test_refusals_say_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"net": {"a": ONE}, "epoch": 3}, "w.pth")
    Path("d").mkdir()
    for words, told in (
        (["weights=w.pth"], "part=net takes"),
        (["weights=w.pth", "part=model"], "tables in it: net"),
        (["weights=w.pth", "part=net", "strip=module."], "does not begin with 'module.'"),
        (["weights=d"], "is a folder"),
        (["weights=none.pth"], "no such file"),
        (["weights=w.pth", "part=net", "into=w.bin"], "let it end in .safetensors"),
        ([], "weights"),
    ):
        assert run(["convert", *words]) == 2
        assert told in capsys.readouterr().err
    assert sorted(os.listdir()) == ["d", "w.pth"]


def test_a_full_disk_leaves_nothing_behind(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": ONE}, "w.pt")

    def full(_: object) -> None:
        raise OSError(28, "No space left on device", "w")

    monkeypatch.setattr(foreign_weights, "sync", full)
    assert run(["convert", "weights=w.pt"]) == 2
    assert "No space left" in capsys.readouterr().err and os.listdir() == ["w.pt"]


def test_a_library_model_saved_as_bin_is_a_start(capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.BertModel(transformers.BertConfig(**shape, intermediate_size=32, max_position_embeddings=32))
    model.config.save_pretrained("m")
    torch.save(model.state_dict(), "m/pytorch_model.bin")
    plan = ["plan", "data=own", "data.name=foreign_ids", "model=hf", "model.path=m", "optimizer=finetune"]
    assert run([*plan, "finetune.train=head"]) == 2
    said = capsys.readouterr().err
    assert "'dptrain convert weights=m/pytorch_model.bin'" in said
    assert run(["convert", "weights=m/pytorch_model.bin"]) == 0
    assert run([*plan, "finetune.train=head"]) == 0
    again = transformers.AutoModel.from_pretrained("m", use_safetensors=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
