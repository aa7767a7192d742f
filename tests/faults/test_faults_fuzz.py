"""400 broken or hostile files and lines a run: refused in one line or read, no traceback, no code run, nothing lost.

Most come from scripts/fuzz.py, which also does 20,000 (docs/results/fuzz.md); the rest is hypothesis on the readers of
strangers' text, which shrinks what it finds.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.compose import compose
from dptrain.errors import DptrainError
from dptrain.hydra_check import refuse_code
from dptrain.privacy.statement_schema import faults
from dptrain.untrusted_json import NotReadable, parse_untrusted

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


broken, _, cases, fuzz = (_load(name) for name in ("fuzz_broken", "fuzz_folder_cases", "fuzz_cases", "fuzz"))


@pytest.mark.parametrize("kind", list(cases.KINDS))
def test_broken_files_are_one_line_each(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their shares of 250; of the kinds that price statements, as many as fit a few seconds."""
    monkeypatch.setenv("FUZZ_SECRET", "")
    tally = fuzz.harness(cases.KINDS[kind][1] * 250 // 100, seed=1, folder=tmp_path, only=kind)
    assert tally.cases[kind] >= 15
    assert not tally.bad, "\n".join(tally.bad)
    assert tally.refused[kind] > 0


def test_the_harness_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that runs, a file that is lost, a traceback and two lines: a harness that finds nothing proves nothing."""
    import pickle

    def misbehaving(room: Any, case: Path, draw: Any) -> Any:
        def read() -> None:
            (case / "evil.pkl").write_bytes((case / "evil.pkl").read_bytes())
            pickle.loads(broken.PICKLE)
            (case / "home" / "signing.key").unlink()
            raise {0: KeyError("x"), 1: DptrainError("two\nlines")}[draw.randrange(2)]

        return read

    monkeypatch.setenv("FUZZ_SECRET", "")
    monkeypatch.setitem(cases.KINDS, "misbehaving", (misbehaving, 1))
    tally = fuzz.harness(12, seed=0, folder=tmp_path, only="misbehaving")
    assert len(tally.ran) == len(tally.lost) == 12
    assert len(tally.tracebacks) + len(tally.long_lines) == 12 and tally.tracebacks and tally.long_lines


def one_line(error: Exception) -> None:
    """A refusal is one line, and says something."""
    assert str(error) and "\n" not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=80)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_json_within_bounds_or_refused(data: bytes) -> None:
    try:
        value = parse_untrusted(data)
    except NotReadable as error:
        one_line(error)
    else:
        json.dumps(value, allow_nan=False)
        assert faults(value)  # nothing so small is a statement


@settings(max_examples=40)
@given(
    st.lists(
        st.builds(
            "{}{}={}".format,
            st.sampled_from(["", "+", "++", "~"]),
            st.sampled_from(["seed", "privacy.epsilon", "model", "run.id", "hydra.job", "data.options.x", "imports"]),
            st.text(max_size=20) | JSON.map(json.dumps) | st.sampled_from(broken.TEXTS),
        ),
        max_size=3,
    )
)
def test_any_override_composes_or_is_refused(overrides: list[str]) -> None:
    try:
        refuse_code("train", overrides)
        compose("train", overrides)
    except DptrainError as error:
        one_line(error)


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from(["seed", "run", "model", "hydra", "privacy", "x"]), JSON, max_size=4))
def test_any_experiment_composes_or_is_refused(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    folder = tmp_path_factory.mktemp("conf")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\n" + json.dumps(content))
    try:
        refuse_code("train", ["experiment=mine", f"--config-dir={folder}"])
        compose("train", ["experiment=mine"], str(folder))
    except DptrainError as error:
        one_line(error)
