"""The house has floors: a module imports only from floors below its own, and the ground floor stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dptrain"
FLOOR = {
    "cli": 6,
    "launch": 6,
    "face": 6,
    "mlflow_loader": 6,
    "teach": 6,
    "conformance": 6,
    "training": 5,
    "audit": 5,
    "gradients": 4,
    "noise": 4,
    "checkpoint": 4,
    "selfcheck": 4,
    "data": 3,
    "models": 3,
    "tracking": 2,
    "report": 2,
    "privacy": 1,
    "config": 0,
    "config_bench": 0,
    "config_budget": 0,
    "config_checkpoint": 0,
    "config_compare": 0,
    "config_conform": 0,
    "config_convert": 0,
    "config_finetune": 0,
    "config_export": 0,
    "config_gate": 0,
    "config_generate": 0,
    "config_audit": 0,
    "config_canaries": 0,
    "config_certify": 0,
    "config_data": 0,
    "config_text": 0,
    "config_plan": 0,
    "config_privacy": 0,
    "config_report": 0,
    "config_selfcheck": 0,
    "config_tracking": 0,
    "config_tuning": 0,
    "sweep": 0,
    "config_verify": 0,
    "untrusted_json": 0,
    "bundle_files": 0,
    "revoked_keys": 0,
    "hydra_check": 0,
    "ranges": 0,
    "errors": 0,
    "registry": 0,
    "distributed": 0,
    "durable": 0,
    "file_lock": 0,
    "keystream": 0,
    "compiling": 0,
    "run_folder": 0,
    "compose": 0,
    "signing": 0,
}
ONLY_IN = {
    "mlflow": {"tracking/mlflow.py"},
    "opacus": {
        "gradients/opacus_ghost.py",
        "gradients/opacus_hooks.py",
        "gradients/opacus_pipeline.py",
        "models/validate.py",
    },
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "dptrain" and len(parts) > 1 and parts[1] in FLOOR else None


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in FLOOR, f"{own} has no floor"
    for name in imported(path):
        other = room(name)
        if other is None or other == own:
            continue
        same_floor_at_ground = FLOOR[own] == FLOOR[other] == 0
        same_at_top = FLOOR[own] == FLOOR[other] == 6
        assert FLOOR[other] < FLOOR[own] or same_floor_at_ground or same_at_top, f"{path.name} imports {name}"


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_met_in_its_own_room_only(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users <= ONLY_IN[library]


def test_files_stay_readable() -> None:
    for path in modules():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
    for path in (ROOT / "recipes").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 120, path


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["plan", "--help"], ["configs", "list"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    program = (
        "import sys\n"
        "from dptrain.cli import run\n"
        "try:\n    code = run(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code or 0\n"
        "heavy = {'torch', 'opacus', 'mlflow', 'numpy', 'scipy', 'pandas', 'dp_accounting'} & set(sys.modules)\n"
        "sys.stderr.write(repr(sorted(heavy)))\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "[]"
    assert len(done.stdout) > 200


def test_core_modules_import_without_hydra_and_mlflow() -> None:
    """A bare machine with torch and opacus alone can use engines, noise, sampler and plan."""
    program = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'hydra', 'omegaconf', 'mlflow', 'sklearn', 'pandas', 'matplotlib'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import dptrain.gradients, dptrain.noise.secure, dptrain.data.sampler, dptrain.data.batches\n"
        "import dptrain.training.loop, dptrain.training.assemble, dptrain.privacy.plan, dptrain.models.validate\n"
        "from dptrain.registry import engines, models\n"
        "print(engines.names(), models.names())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vmap" in done.stdout
