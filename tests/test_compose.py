"""Settings from the command line: what is refused, in which words, and that nothing is written on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain.cli import run
from dptrain.compose import compose, config_dir
from dptrain.config import TrainConfig
from dptrain.errors import ConfigError


def test_the_default_config_composes_to_the_typed_tree() -> None:
    config = compose("train")
    assert isinstance(config, TrainConfig)
    assert config.privacy.epsilon == 3.0
    assert config.privacy.noise == "secure"


def test_yaml_defaults_equal_the_schema_defaults() -> None:
    """A default that lives in two places must be the same in both."""
    composed, typed = compose("train"), TrainConfig()
    assert composed.privacy == typed.privacy
    assert composed.execution == typed.execution
    assert composed.clipping == typed.clipping
    assert composed.evaluation == typed.evaluation
    assert composed.tracking == typed.tracking
    assert composed.task == typed.task


REFUSED = [
    (["privacy.delta=1"], "privacy.delta=1.0:", "(0, 1)"),
    (["privacy.delta=nan"], "privacy.delta=nan:", "finite"),
    (["privacy.epsilon=-1"], "privacy.epsilon=-1.0:", "(0, inf)"),
    (["privacy.epsilon=nan"], "privacy.epsilon=nan:", "finite"),
    (["privacy.epsilon=null", "privacy.noise_multiplier=inf"], "privacy.noise_multiplier=inf:", "finite"),
    (["privacy.epsilon=null", "privacy.noise_multiplier=0"], "privacy.noise_multiplier=0.0:", "privacy=off"),
    (["privacy.clipping_norm=0"], "privacy.clipping_norm=0.0:", "[1e-09, 1e+09]"),
    (["privacy.clipping_norm=abc"], "privacy.clipping_norm=abc:", "Float"),
    (["privacy.noise_multiplyer=1"], "privacy.noise_multiplyer", "did you mean 'privacy.noise_multiplier'?"),
    (["+privacy.noise_multiplyer=1"], "privacy.noise_multiplyer", "did you mean 'privacy.noise_multiplier'?"),
    (["privacy.noise_multiplier=1"], "privacy.noise_multiplier=1.0:", "privacy.epsilon=null"),
    (["data=digit"], "data=digit:", "did you mean 'digits'?"),
    (["experiment=quikstart"], "experiment=quikstart:", "did you mean 'quickstart'?"),
    (["modle=mlp"], "modle", "did you mean 'model'?"),
    (["execution.device=tpu"], "execution.device=tpu:", "auto"),
    (["execution.physical_batch_size=0"], "execution.physical_batch_size=0:", "[1, inf)"),
    (["execution.physical_batch_size=2.5"], "execution.physical_batch_size=2.5:", "Integer"),
    (["seed=-1"], "seed=-1:", "["),
    (["run.id=../../etc"], "run.id=../../etc:", "plain name"),
    (["task.metrics=[acuracy]"], "metric=acuracy:", "did you mean 'accuracy'?"),
    (["task.loss=cross_entrpy"], "loss=cross_entrpy:", "did you mean 'cross_entropy'?"),
    (["model.name=mpl"], "model=mpl:", "did you mean 'mlp'?"),
    (["clipping.engine=ghost"], "clipping.engine=ghost:", "vmap"),
    (["optimizer.name=sdg"], "optimizer=sdg:", "did you mean 'sgd'?"),
    (["+optimizer.options.momentm=0.1"], "optimizer.options.momentm=0.1:", "did you mean 'momentum'?"),
    (["optimizer.options.momentum=-3"], "optimizer.options=", "momentum"),
    (["+model.options.hiden=[3]"], "model.options.hiden", "did you mean 'hidden'?"),
    (["+model.options._target_=os.system"], "_target_=os.system:", "never code"),
    (["+model.options.x={_target_:torch.load,f:x.pt,weights_only:false}"], "_target_=torch.load:", "never code"),
    (["+data.options.x={_target_:numpy.load,file:x.npy,allow_pickle:true}"], "_target_=numpy.load:", "never code"),
    (["+data.options.x={_target_:pandas.read_pickle,path:x}"], "_target_=pandas.read_pickle:", "never code"),
    (["data=csv", "data.columns.age.low=0"], "data.columns.age=: is no column", "'data.columns={age: {low: 0, high"),
    (["run.id=${oc.env:AWS_SECRET}"], "run.id=${oc.env:AWS_SECRET}:", "environment"),
    (["imports=[no_such_module_anywhere]"], "imports=no_such_module_anywhere:", "cannot be imported"),
    (["imports=[missing.py]"], "imports=missing.py:", "no such file"),
    (["privacy.unit=user"], "privacy.unit=user:", "data.unit_column"),
    (["privacy.adjacency=add_remove"], "privacy.adjacency=add_remove:", "data.public_size"),
    (["optimizer.warmup_steps=100000"], "optimizer.warmup_steps=100000:", "steps"),
    (["privacy.delta=0.01"], "privacy.delta=0.01:", "allow_large_delta"),
    (["task.class_weights=[1,2]"], "task.class_weights=[1.0, 2.0]:", "10 classes"),
    (["--experimental-rerun=x.pickle"], "command line", "unpickle"),
]


@pytest.mark.parametrize(("overrides", "start", "word"), REFUSED, ids=[" ".join(r[0]) for r in REFUSED])
def test_bad_input_gets_one_line_and_leaves_nothing(
    overrides: list[str],
    start: str,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET", "hunter2")
    code = run(["train", *overrides])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.count("\n") == 1
    assert said.err.startswith("dptrain: error: ")
    assert start in said.err
    assert word in said.err
    assert "Traceback" not in said.err
    assert "hunter2" not in said.err + said.out
    assert list(tmp_path.iterdir()) == []


def test_a_duplicate_key_in_a_user_config_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "twice.yaml").write_text("# @package _global_\nseed: 1\nseed: 2\n")
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--config-dir", "conf", "experiment=twice"]) == 2
    said = capsys.readouterr().err
    assert "duplicate key" in said
    assert said.count("\n") == 1


def test_unknown_commands_get_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_configs_are_listed_and_copied_never_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["configs", "list"]) == 0
    assert "experiment/quickstart" in capsys.readouterr().out
    assert run(["configs", "copy", "experiment/quickstart", "conf"]) == 0
    copied = tmp_path / "conf" / "experiment" / "quickstart.yaml"
    assert copied.read_bytes() == (config_dir() / "experiment" / "quickstart.yaml").read_bytes()
    assert run(["configs", "copy", "experiment/quickstart", "conf"]) == 2
    assert run(["configs", "copy", "experiment/quickstrat"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_errors_survive_the_way_from_a_worker() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ConfigError("a.b", 1, "is wrong", "mend it")))
    assert str(error) == "a.b=1: is wrong; mend it"
    assert error.exit_code == 2


@pytest.mark.parametrize("command", ["train", "plan", "audit", "report"])
def test_help_names_every_key(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    import dataclasses

    from dptrain.config import ROOTS

    assert run([command, "--help"]) == 0
    said = capsys.readouterr().out
    for item in dataclasses.fields(ROOTS[command]):
        assert f"  {item.name}:" in said, item.name


def test_every_setting_is_read_somewhere() -> None:
    """A key that nothing reads would be a promise that nothing keeps."""
    import dataclasses

    package = Path(__file__).resolve().parent.parent / "dptrain"
    code = "".join(p.read_text(encoding="utf-8") for p in package.rglob("*.py") if not p.name.startswith("config"))

    def names(kind: type) -> list[str]:
        found = []
        for item in dataclasses.fields(kind):
            made = item.default_factory() if callable(item.default_factory) else None
            found += names(type(made)) if dataclasses.is_dataclass(made) else [item.name]
        return found

    for name in names(TrainConfig):
        assert f".{name}" in code, name


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cfg", "job", "experiment=quickstart"],
        ["experiment=quickstart", "--cfg", "job"],
        ["seed=3", "--cfg", "job", "experiment=quickstart"],
    ],
    ids=" ".join,
)
def test_flags_and_overrides_mix_in_any_order(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *arguments]) == 0
    assert "expected_batch_size: 512" in capsys.readouterr().out


def test_the_examples_in_docstrings_are_true() -> None:
    import doctest

    import dptrain.compose
    import dptrain.errors
    import dptrain.launch

    for module in (dptrain.compose, dptrain.errors, dptrain.launch):
        outcome = doctest.testmod(module)
        assert outcome.attempted > 0
        assert outcome.failed == 0
