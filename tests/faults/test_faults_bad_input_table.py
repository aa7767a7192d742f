"""The table of bad inputs, row by row: one line, the right exit code, nothing read, spent, written, lost or run.

Numbers are those of the table in docs/results/fuzz.md. Codes: 2 for input, 3 where the ledger refuses, 4 for a claim.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
from bundle_maker import open_room, release, restate
from test_faults_bad_input import BASE, PARTS

from dptrain.cli import run
from dptrain.errors import ConfigError
from dptrain.face import load
from dptrain.privacy.ledger import open_ledger
from dptrain.run_folder import read_json
from dptrain.signing import home

SIGMA = ["privacy.epsilon=null", "privacy.epochs=1"]
SETTINGS: list[tuple[str, list[str], str]] = [
    ("1 delta of one", ["privacy.delta=1"], "(0, 1)"),
    ("2 delta above one", ["privacy.delta=1.5"], "(0, 1)"),
    ("3 delta of zero", ["privacy.delta=0"], "(0, 1)"),
    ("3 delta negative", ["privacy.delta=-1"], "(0, 1)"),
    ("3 delta not a number", ["privacy.delta=nan"], "finite"),
    ("4 delta above 1/n", ["privacy.delta=0.01"], "allow_large_delta"),
    ("5 sigma infinite", [*SIGMA, "privacy.noise_multiplier=inf"], "finite"),
    ("6 sigma not a number", [*SIGMA, "privacy.noise_multiplier=nan"], "finite"),
    ("6 sigma negative", [*SIGMA, "privacy.noise_multiplier=-1"], "finite number in (0"),
    ("7 sigma of zero", [*SIGMA, "privacy.noise_multiplier=0"], "privacy=off"),
    ("8 clipping norm of zero", ["privacy.clipping_norm=0"], "[1e-09"),
    ("9 clipping norm not a number", ["privacy.clipping_norm=nan"], "finite"),
    ("9 clipping norm negative", ["privacy.clipping_norm=-1"], "[1e-09"),
    ("10 target epsilon not a number", ["privacy.epsilon=nan"], "finite"),
    ("11 target epsilon of zero", ["privacy.epsilon=0"], "(0, inf)"),
    ("11 target epsilon negative", ["privacy.epsilon=-2"], "(0, inf)"),
    ("12 Poisson sampling off", ["privacy.poisson=false"], "is not a setting"),
    ("12 another sampler", ["+privacy.sampler=shuffle"], "is not a setting"),
    ("19 unknown key", ["privacy.noise_multiplyer=1"], "did you mean 'privacy.noise_multiplier'?"),
    ("21 a target that runs", ["+model.options._target_=os.system"], "never code"),
    ("22 torch.load", ["+model.options.x={_target_:torch.load,f:evil.pkl,weights_only:false}"], "never code"),
    ("23 numpy.load", ["+data.options.x={_target_:numpy.load,file:evil.pkl,allow_pickle:true}"], "never code"),
    (
        "24 pandas.read_pickle",
        ["+data.options.x={_target_:pandas.read_pickle,filepath_or_buffer:evil.pkl}"],
        "never code",
    ),
    ("26 a secret", ["tracking.experiment=${oc.env:AWS_SECRET}"], "environment"),
    ("26 a secret in a list", ["imports=['${oc.env:AWS_SECRET}']"], "environment"),
    ("26 a secret with a default", ["run.id=${oc.env:AWS_SECRET,x}"], "environment"),
    ("26 a secret in another", ["run.id='${oc.decode:${oc.env:AWS_SECRET}}'"], "environment"),
    (
        "26 a resolver named by a value",
        ["run.id=env", "tracking.experiment='${oc.${run.id}:AWS_SECRET}'"],
        "environment",
    ),
    ("26 a resolver named by a string", ["tracking.experiment='${oc.${oc.decode:env}:AWS_SECRET}'"], "environment"),
]


class Canary:
    """What a pickle runs when it is loaded: makes a file named ``ran`` in the working directory."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, ("ran",)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a hostile pickle in it, and a secret in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET", "hunter2")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Canary()))
    return tmp_path


def files(folder: Path) -> dict[str, str]:
    """Everything in a folder: path -> digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Expects one line, the exit code, and the working directory as it was; gives the line."""
    before = files(Path())
    capsys.readouterr()
    assert run(arguments) == code
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and shown.err.startswith("dptrain: error: "), shown.err
    assert "Traceback" not in shown.err and "hunter2" not in shown.out + shown.err
    assert files(Path()) == before
    assert not Path("ran").exists()
    return shown.err


@pytest.mark.parametrize(("row", "overrides", "word"), SETTINGS, ids=[row for row, _, _ in SETTINGS])
def test_settings(row: str, overrides: list[str], word: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = files(home()) if home().exists() else {}
    assert word in refused(["train", *overrides], capsys)
    assert (files(home()) if home().exists() else {}) == kept


def user_config(text: str) -> list[str]:
    """Arguments that use an experiment of the user's own."""
    Path("conf/experiment").mkdir(parents=True, exist_ok=True)
    Path("conf/experiment/mine.yaml").write_text(f"# @package _global_\n{text}")
    return ["--config-dir", "conf", "experiment=mine"]


def test_18_a_duplicate_key_names_both_lines(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["train", *user_config("seed: 1\nrun:\n  id: a\nseed: 2\n")], capsys)
    assert "duplicate key" in said and "line 2" in said and "line 5" in said


LOADER = "    _target_: pandas.read_pickle\n    filepath_or_buffer: evil.pkl\n"
HOSTILE_CONFIGS = {
    "21 a target": "model:\n  options:\n    _target_: os.mkdir\n    path: ran\n",
    "24 a callback of Hydra's": (
        "hydra:\n  callbacks:\n    x:\n      _target_: pandas.read_pickle\n      filepath_or_buffer: evil.pkl\n"
    ),
    "24 a launcher of Hydra's": f"hydra:\n  launcher:\n{LOADER}",
    "24 a sweeper of Hydra's": f"hydra:\n  sweeper:\n{LOADER}",
    "21 the environment": "hydra:\n  job:\n    env_set:\n      DPTRAIN_HOME: elsewhere\n",
    "24 a formatter of the log": (
        "hydra:\n  job_logging:\n    version: 1\n    formatters:\n      x:\n        (): pandas.read_pickle\n"
        "        filepath_or_buffer: evil.pkl\n    root:\n      level: INFO\n"
    ),
    "24 a handler of the log": (
        "hydra:\n  hydra_logging:\n    version: 1\n    handlers:\n      x:\n        class: logging.FileHandler\n"
        "        filename: ran\n    root:\n      level: INFO\n      handlers: [x]\n"
    ),
    "24 a YAML tag": "seed: !!python/object/apply:os.mkdir [ran]\n",
    "24 a YAML tag of a module": "seed: !!python/module:antigravity\n",
    "26 a secret": "tracking:\n  experiment: ${oc.env:AWS_SECRET}\n",
    "26 a secret as a folder": "hydra:\n  sweep:\n    dir: ${oc.env:AWS_SECRET}\n",
    "not YAML": "seed: [1, 2\n",
    "not text": "seed: \x00\x01\n",
    "a list": "- 1\n- 2\n",
    "templates": "run:\n  id: '{{ 7*7 }}'\n",
}


SWEPT = [(name, ["--multirun", "seed=1,2"]) for name in sorted(HOSTILE_CONFIGS) if name.startswith("24 a")]


@pytest.mark.parametrize(("name", "mode"), [*((name, []) for name in sorted(HOSTILE_CONFIGS)), *SWEPT])
def test_configs_of_strangers_name_no_code(
    name: str, mode: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["train", *user_config(HOSTILE_CONFIGS[name]), *mode], capsys)


def test_14_a_batch_larger_than_the_data_shows_q(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "experiment=quickstart", "privacy.expected_batch_size=9000", "privacy.epochs=1"]) == 0
    assert "q=1" in capsys.readouterr().out


def test_15_negative_steps_in_the_history(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import test_faults_ledger_tampered as tampered

    ledger = open_room()
    release(ledger, here / "runs", "one")
    ledger.close()
    for sequence in range(1, 6):
        text = tampered.text_of(ledger, sequence).replace('"steps":3', '"steps":-5')
        change = "UPDATE dptrain_ledger_rows SET text=?, hash=? WHERE sequence=?"
        tampered.tamper(ledger, (change, (text, tampered.row_hash(text), sequence)))
    assert "row" in refused(["budget", "show", "dataset=ward"], capsys, code=3)
    assert "row" in refused(["budget", "forecast", "dataset=ward"], capsys, code=3)


# --- checkpoints


@pytest.fixture
def bundle(here: Path) -> Path:
    return release(open_room(), here / "runs", "one")


def test_27_a_pickle_from_a_stranger(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        "verify path=evil.pkl",
        "register path=evil.pkl name=m",
        "audit run=evil.pkl",
        "report run=evil.pkl",
    ):
        refused([str(word) for word in command.split()], capsys, code=4 if command.startswith("verify") else 2)
    (bundle / "model.safetensors").write_bytes(pickle.dumps(Canary()))
    refused(["verify", f"path={bundle}"], capsys, code=4)
    restate(bundle, lambda statement: None)  # and even if a trusted key had signed it
    for path in (bundle, "evil.pkl"):
        with pytest.raises(ConfigError) as error:
            load(path)
        assert error.value.exit_code == 2 and not Path("ran").exists()


def test_28_a_truncated_checkpoint_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = (bundle / "model.safetensors").read_bytes()
    (bundle / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "model.safetensors does not match" in refused(["verify", f"path={bundle.parent}"], capsys, code=4)
    with pytest.raises(ConfigError, match=r"model\.safetensors does not match"):
        load(bundle)


def test_29_a_bit_flip_in_tensors(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((bundle / "model.safetensors").read_bytes())
    data[-5] ^= 4
    (bundle / "model.safetensors").write_bytes(bytes(data))
    assert "model.safetensors does not match" in refused(["verify", f"path={bundle}"], capsys, code=4)
    assert "model.safetensors" in refused(["register", f"path={bundle}", "name=m"], capsys, code=4)


@pytest.mark.parametrize("size", [1 << 40, (1 << 64) - 1, 1 << 20])
def test_30_a_header_of_a_terabyte(size: int, bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
    restate(bundle, lambda statement: None)
    with pytest.raises(ConfigError, match=r"model\.safetensors: does not hold weights"):
        load(bundle)


# --- models and rows


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of the other module of bad input under names of their own, and a layer that no engine knows."""
    more = "\n@models.register('with_scale')\ndef with_scale(input_shape, num_outputs):\n"
    more += (
        "    return torch.nn.Sequential(torch.nn.Linear(4, num_outputs), Scale())\n\nclass Scale(torch.nn.Module):\n"
    )
    more += (
        "    def __init__(self):\n        super().__init__()\n        self.scale = torch.nn.Parameter(torch.ones(1))\n"
    )
    more += "    def forward(self, x):\n        return x * self.scale\n"
    ours = (PARTS + more).replace('register("', 'register("table_').replace("register('", "register('table_")
    file = tmp_path_factory.mktemp("parts") / "faulty_table_parts.py"
    file.write_text(ours)
    return file


@pytest.fixture
def base(here: Path, parts: Path) -> list[str]:
    priced = ["privacy.epsilon=null", "privacy.noise_multiplier=2", "privacy.delta=1e-3"]  # nothing to calibrate
    return [f"imports=[{parts}]", *BASE[1:], "data.name=table_faulty", *priced]


def test_33_batchnorm_is_named_and_groupnorm_offered(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["train", *base, "model=own", "model.name=table_with_batchnorm"], capsys)
    assert "'1' (BatchNorm1d)" in said and "model.replace_batchnorm=true" in said


def test_34_a_layer_without_a_rule_is_named(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", *base, "model=own", "model.name=table_with_scale", "clipping.engine=opacus_ghost"]
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "layer 1 (Scale)" in said.rstrip().splitlines()[-1]
    assert not open_ledger(None).state.entries  # before a row is read or an account made
    assert not Path("runs").exists()


TABLE = ["data=own", "data.name=csv", "data.path=people.csv", "data.label=ill", "data.task=binary"]
TABLE += ["data.classes=[no,yes]", "data.public_fraction=0.2", "data.public_size=8", "model=linear", "tracking=none"]
TABLE += ["privacy.epsilon=null", "privacy.noise_multiplier=2", "privacy.expected_batch_size=4", "privacy.epochs=1"]
TABLE += ["run.purpose=trial"]
TABLE += ["ledger.epsilon_limit=1000", "privacy.delta=0.01"]
GOOD = "age,ill,who\n" + "".join(f"{n},{'yes' if n % 2 else 'no'},p{n}\n" for n in range(10))
TABLES: list[tuple[str, str, list[str], str]] = [
    ("35 a column dropped", GOOD.replace("age", "agee"), [], "has no column 'age'"),
    ("35 a column retyped", GOOD.replace("\n7,", "\nseven,"), [], "row 8: is not a number"),
    ("37 empty", "", [], "is empty"),
    ("37 header only", "age,ill,who\n", [], "has 0 rows"),
    ("37 one row", GOOD.split("0,no")[0] + "0,no,p0\n", [], "has 1 rows"),
    ("38 one person in two rows", GOOD.replace("p7", "p8"), ["data.unit_column=who"], "privacy.unit=user"),
]


@pytest.mark.parametrize(("row", "text", "more", "word"), TABLES, ids=[row for row, _, _, _ in TABLES])
def test_rows_that_do_not_fit(
    row: str, text: str, more: list[str], word: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "people.csv").write_text(text)
    columns = user_config("data:\n  columns:\n    age:\n      low: 0\n      high: 60\n")
    assert word in refused(["train", *columns, *TABLE, *more], capsys)
    assert open_ledger(None).accounts() == []


@pytest.mark.parametrize("poison", ["inf", "1e38"])
def test_36_one_poisoned_row_weighs_nothing(poison: str, base: list[str]) -> None:
    assert run(["train", *base, f"data.options.poison='{poison}'", "privacy.epochs=2", "run.dir=p"]) == 0
    result = read_json(Path("p/result.json"))
    assert result["status"] == "finished" and result["metrics"]["public_loss"] < 5


@pytest.mark.parametrize("fault", ["full", "vanished", "read-only"])
def test_40_a_disk_that_fails_at_the_end_keeps_the_last_good_bundle(
    fault: str, base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = release(None, Path.cwd(), "good").parent
    before = files(good)
    from dptrain.checkpoint import weights_file as room

    def failing(*_: object) -> None:
        if fault == "vanished":
            shutil.rmtree("bad")
        errors = {"full": (28, "No space left on device"), "read-only": (30, "Read-only file system")}
        raise OSError(*errors.get(fault, (2, "No such file or directory")))

    monkeypatch.setattr(room, "save_model", failing)
    capsys.readouterr()
    assert run(["train", *base, "run.dir=bad"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.rstrip().splitlines()[-1].startswith("dptrain: error: ")
    assert not Path("bad/checkpoint").exists() and not list(Path().rglob("*.tmp"))
    assert files(good) == before and load(good).statement["private"]
    assert all(not entry.is_open for entry in open_ledger(None).state.entries.values())
