"""A run folder that anyone may have touched: its config is read within bounds and held against the signed bundle."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dptrain.cli import run
from dptrain.run_folder import open_run

QUICK = ["data=digits", "model=mlp", "run.purpose=debug", "tracking=none", "privacy.expected_batch_size=64"]
QUICK += ["privacy.steps=4", "privacy.epochs=null"]
Refused = Callable[..., str]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["train", *QUICK, "run.dir=run"]) == 0
    return tmp_path / "run"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def audit(*more: str, code: int = 2) -> str:
        capsys.readouterr()
        assert run(["audit", "run=run", "audit.fpr=[0.05]", *more]) == code
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith("dptrain: error: "), said
        return said

    return audit


def edit(folder: Path, old: str, new: str) -> None:
    config = folder / "config.yaml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("steps: 4", "steps: 9", "steps 9, the statement 4"),
        ("epsilon: 3.0", "epsilon: 30.0", "noise_multiplier"),
        ("clipping_norm: 1.0", "clipping_norm: 2.0", "clipping_norm 2.0"),
        ("expected_batch_size: 64", "expected_batch_size: 128", "noise_multiplier|expected_batch_size"),
        ("mechanism: dpsgd", "mechanism: none", "private False, the statement True"),
        ("- 128", "- 64", r"options {'hidden': \[64\]"),
        ("- 128", "- 100000000000", "options"),  # refused before it takes memory
        ("name: mlp", "name: linear", "name linear, the bundle mlp"),
    ],
)
def test_references_by_another_recipe_are_refused(
    trained: Path, refused: Refused, old: str, new: str, why: str
) -> None:
    """They would say little about the checkpoint, in numbers that look like any others; none is trained."""
    edit(trained, old, new)
    said = refused("audit.budget=20s")
    assert "is not this checkpoint's" in said
    assert re.search(why, said), said
    assert not list((trained / "internal").glob("references/*.safetensors"))
    assert not (trained / "internal" / "audit.json").exists()


def test_a_huge_physical_batch_takes_no_more_than_the_pool(trained: Path) -> None:
    edit(trained, "physical_batch_size: 256", "physical_batch_size: 1000000000000")
    assert run(["audit", "run=run", "audit.fpr=[0.05]", "audit.budget=30s", "audit.narrow=1.0"]) == 0
    assert json.loads((trained / "internal" / "audit.json").read_text())["references"]["count"] >= 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &a [1, 2]\nb: [*a, *a]\n", "aliases"),
        ("[" * 5000, "cannot be read"),
        ("x: " + "9" * 5000, "cannot be read"),
        ("# " + "x" * (2 << 20), "larger than 2097152 bytes"),
        ("a: !!python/name:os.system", "cannot be read"),
        ("execution: {threads: 100000000}", "execution.threads"),
        ("evaluation: {batch_size: 99999999999999999999999}", "evaluation.batch_size"),
        ("tracking: {experiment: '${oc.env:SECRET}'}", "copy the environment"),
    ],
)
def test_a_config_out_of_bounds_is_one_line(trained: Path, refused: Refused, text: str, why: str) -> None:
    (trained / "config.yaml").write_text(text)
    said = refused()
    assert why in said and len(said) < 700


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "internal/manifest.json"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused(trained: Path, refused: Refused, name: str) -> None:
    """Reading one would never end."""
    (trained / name).unlink()
    os.mkfifo(trained / name)
    refused()
    (trained / name).unlink()
    (trained / name).symlink_to("/dev/zero")
    refused()


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "[" * 100_000, '{"run_id": 3}', '{"run_id": "../x"}', '{"run_id": null}']
)
def test_a_result_that_is_none_is_refused(trained: Path, refused: Refused, text: str) -> None:
    assert open_run(str(trained)).run_id
    (trained / "result.json").write_text(text)
    assert "result.json" in refused()


def test_somebody_elses_run_is_audited_where_their_key_is_given(
    trained: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the refusal says: the key into a file, and key=FILE."""
    monkeypatch.setenv("DPTRAIN_HOME", str(tmp_path / "auditor"))
    said = refused(code=4)
    assert "is not trusted here" in said and "key=FILE.pub" in said
    (tmp_path / "them.pub").write_text(said.split("write ")[1].split(" ")[0])
    assert run(["audit", "run=run", "audit.fpr=[0.05]", "key=them.pub"]) == 0


def test_a_checkpoint_of_another_run_is_refused(trained: Path, refused: Refused) -> None:
    result = json.loads((trained / "result.json").read_text())
    (trained / "result.json").write_text(json.dumps(result | {"run_id": "another"}))
    assert "its result.json is of run another" in refused()


@pytest.mark.parametrize("steps", ["x", None, [1], 1e400])
def test_a_folder_makes_no_store_where_it_says(
    trained: Path, steps: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an audit found comes from members: it goes into a store that is there, or that the user named."""
    result = json.loads((trained / "result.json").read_text())
    elsewhere = trained.parent / "shared.db"
    changed = {"mlflow_run_id": "x", "tracking_uri": f"sqlite:///{elsewhere}", "steps": steps}
    (trained / "result.json").write_text(json.dumps(result | changed))
    assert run(["audit", "run=run", "audit.fpr=[0.05]"]) == 0
    assert "there is no such file" in capsys.readouterr().err
    assert not elsewhere.exists()


def test_canaries_and_references_that_are_pipes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", *QUICK, "run.dir=run", "audit.canaries=20"]) == 0
    assert run(["audit", "run=run", "audit.fpr=[0.05]", "audit.budget=30s", "audit.narrow=1.0"]) == 0
    reference = sorted(Path("run/internal/references").glob("*.safetensors"))[0]
    for file, more in ((reference, ["audit.budget=5s"]), (Path("run/internal/canaries.sealed"), [])):
        file.unlink()
        os.mkfifo(file)
        assert "it is no file" in refused(*more)


@pytest.mark.parametrize("name", ["internal", "internal/references"])
def test_a_room_that_is_a_link_is_refused(trained: Path, refused: Refused, name: str) -> None:
    """Findings and references come from members; a link would carry them to where the folder says."""
    elsewhere = trained.parent / "elsewhere"
    if name == "internal":
        (trained / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (trained / name).symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    assert "is a link" in refused("audit.budget=20s")
    assert sorted(elsewhere.iterdir()) == before
