"""Settings that change speed or memory, in whole runs as they are by default: secure noise, the self-check on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain.cli import run
from dptrain.run_folder import read_json

RUN = [
    "train",
    *("data=digits", "model=mlp", "model.options.hidden=[32]", "run.purpose=debug", "tracking=none", "run.dir=r"),
    *("privacy.epsilon=4", "privacy.epochs=null", "privacy.steps=6", "evaluation.every=6"),
]
SETTINGS = {
    "checkpoint": ["execution.checkpoint=['1']"],
    "memory": ["execution.memory_limit=0"],
    "memory and checkpoint": ["execution.memory_limit=0", "execution.checkpoint=['1']"],
    "noise on the device": ["execution.noise_device=model"],
    "small batches": ["execution.physical_batch_size=7"],
    "float64": ["execution.dtype=float64"],
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_run_finishes_and_its_promise_is_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The self-check (one honest run in 10,000 is stopped) watches every one of them."""
    found = {}
    for which, more in (("plain", []), (name, SETTINGS[name])):
        (tmp_path / which).mkdir()
        monkeypatch.chdir(tmp_path / which)
        assert run([*RUN, *more]) == 0, capsys.readouterr().err
        found[which] = read_json(Path("r", "statement.json"))
    plain, other = found.values()
    for block in ("sentence", "guarantee", "mechanism", "sampling", "randomness"):
        assert plain[block] == other[block]
    assert other["selfcheck"]["state"] == plain["selfcheck"]["state"] == "passed"
