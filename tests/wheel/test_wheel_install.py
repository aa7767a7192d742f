"""The wheel, installed apart and run from another directory: configs and recipes come along, nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the unpacked wheel, built through an sdist as a release would be."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
        text=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder / "site")
    return folder / "site"


def dptrain(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    program = "import dptrain, sys; from dptrain.cli import main; print(dptrain.__file__); main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_nothing_but_dptrain_lands_in_site_packages(site: Path) -> None:
    names = {path.name for path in site.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"dptrain"}
    assert (site / "dptrain" / "_configs" / "experiment" / "quickstart.yaml").is_file()
    assert (site / "dptrain" / "_recipes" / "train.py").is_file()
    assert (site / "dptrain" / "py.typed").is_file()


def test_the_installed_command_works_from_elsewhere(site: Path, tmp_path: Path) -> None:
    arguments = ["experiment=quickstart", "privacy.epochs=1", "tracking=none", "run.dir=out"]
    done = dptrain(site, tmp_path, "train", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site)), "the wheel's own package must have run"
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").is_file()
    report = dptrain(site, tmp_path, "report", "run=out")
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_users_own_config_folder(site: Path, tmp_path: Path) -> None:
    assert dptrain(site, tmp_path, "configs", "copy", "experiment/quickstart", "conf").returncode == 0
    mine = tmp_path / "conf" / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\ndefaults:\n  - quickstart\nprivacy:\n  epochs: 1\n")
    arguments = ["--config-dir", "conf", "experiment=mine", "tracking=none", "run.dir=own"]
    done = dptrain(site, tmp_path, "train", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "own" / "result.json").is_file()
