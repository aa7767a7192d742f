"""What the documents tell people to type is typed here: the tutorial from top to bottom, and the page on own parts."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dptrain.compose import compose
from dptrain.launch import overrides_first
from dptrain.sweep import requested
from dptrain.training.setup import prepare
from dptrain.training.tuning import check_request, prepare_search

DOCS = Path(__file__).resolve().parent.parent / "docs"


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def shell(script: str, folder: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_tutorial_from_top_to_bottom(tmp_path: Path) -> None:
    commands = blocks("tutorial.md", "bash")
    assert len(commands) >= 6
    for script in commands:
        shell(script, tmp_path)
    (script,) = blocks("tutorial.md", "python")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "differentially private" in done.stdout
    assert (tmp_path / "runs" / "first" / "report.public.html").is_file()


def test_own_parts_as_written(tmp_path: Path) -> None:
    code, _ = blocks("your_own.md", "python")
    for part in code.strip().split("\n\n")[1:]:
        assert len(part.splitlines()) < 20
    (tmp_path / "my_parts.py").write_text(code)
    command, configs = blocks("your_own.md", "bash")
    shell(command.strip() + " tracking=none privacy.epochs=2", tmp_path)
    shell(configs.replace("privacy.epsilon=1", "privacy.epsilon=1 privacy.epochs=1"), tmp_path)


def test_own_training_loop_as_written(tmp_path: Path) -> None:
    _, loop = blocks("your_own.md", "python")
    code = loop + "\nassert all(bool(p.isfinite().all()) for p in model.parameters())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = re.fullmatch(r"epsilon (\d+\.\d+)\n", done.stdout)
    assert said is not None and 1 < float(said[1]) < 5, done.stdout
    assert list(tmp_path.iterdir()) == []


def test_readme_names_only_files_that_exist() -> None:
    root = DOCS.parent
    for link in re.findall(r"\]\(([^)#]+)\)", (root / "README.md").read_text(encoding="utf-8")):
        assert (root / link).exists(), link
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (DOCS / link).exists(), f"{page.name}: {link}"


def test_tuning_page_asks_for_sweeps_that_can_be_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sweep of the page is checked up to its first private row; running them all takes minutes."""
    monkeypatch.chdir(tmp_path)
    setup, *commands = blocks("tuning.md", "bash")
    shell(setup.rsplit("dptrain budget", 1)[0], tmp_path)
    strategies = []
    for line in commands:
        arguments = overrides_first(shlex.split(line.strip())[2:])
        request = requested(arguments)
        if request is None:
            prepare(compose("train", [a for a in arguments if "=" in a], "conf"))
            continue
        if check_request(request):
            prepare_search(request.sweep, str(request.strategy))
        strategies.append(request.strategy)
    assert strategies == ["random", "grid", "composed", None]
