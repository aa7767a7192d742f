"""The shipped data configs compose, name registered sources, and the documented examples work as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dptrain.compose import compose, config_dir
from dptrain.config import TrainConfig
from dptrain.data.source import Source
from dptrain.errors import ConfigError
from dptrain.registry import sources

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["adult", "csv", "digits", "fashion_mnist", "fertility", "film_dialogue", "image_folder", "mnist",
         "movie_sentences", "parquet", "sms_spam", "spam_assassin", "text"]  # fmt: skip
PATIENTS = "age,sex,ill\n" + "30,f,no\n70,m,yes\n" * 50


def built(overrides: list[str], folder: Path | None = None) -> Source:
    config = compose("train", overrides, None if folder is None else str(folder))
    assert isinstance(config, TrainConfig)
    return sources.build(config.data.name, config.data, config.seed, options=config.data.options)


@pytest.mark.parametrize("name", NAMES)
def test_every_source_has_a_config_whose_settings_it_uses(name: str, tmp_path: Path) -> None:
    assert (config_dir() / "data" / f"{name}.yaml").is_file() and name in sources.names()
    if name == "digits":
        assert built([f"data={name}"]).info.public_size == 1437
        return
    # Nothing is at that path (or nothing is declared yet), which is all that may be said against it.
    with pytest.raises(ConfigError, match=r"no such folder|is not set"):
        built([f"data={name}", f"data.path={tmp_path / 'nothing'}"])


@pytest.mark.parametrize("page", ["docs/data.md", "configs/data/csv.yaml"])
def test_the_documented_command_works(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "patients.csv").write_text(PATIENTS)
    text = (ROOT / page).read_text()
    command = re.search(r"dptrain train (data=csv (?:.|\\\n)*?public_size=\d+)", text)
    assert command is not None
    words = shlex.split(command[1].replace("\\\n", " ").replace(" #", " "))
    splits = built(words).load()
    assert len(splits.train) == 80 and splits.train.inputs.shape[1:] == (3,)


def test_the_documented_file_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "patients.csv").write_text(PATIENTS)
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "patients.yaml").write_text(block[1])
    assert built(["data=patients"], tmp_path / "conf").info.public_size == 8000
