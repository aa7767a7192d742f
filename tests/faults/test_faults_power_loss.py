"""Power cut behind fifty calls of recorded runs; what was not synced is lost (scripts/power_loss.py: more).

The model of the disk is held against a disk here; that the harness sees what it is for, by taking syncs away.
"""

from __future__ import annotations

import importlib
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="records with strace")


def figures_of(command: list[str], folder: Path, before: str = "") -> tuple[int, dict[str, int], str]:
    """(exit code, figures, all that was printed) of the script, after a line of Python that may spoil something."""
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); {before}\nimport power_loss; sys.exit(power_loss.main())"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], cwd=folder, capture_output=True, text=True)
    if "strace may not trace here" in done.stderr:
        pytest.skip("strace may not trace here")
    found = re.findall(r"^([^\d\n]+?) +(\d+)", done.stdout, flags=re.MULTILINE)
    return done.returncode, {name: int(number) for name, number in found}, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("points", [50, pytest.param(400, marks=pytest.mark.slow)])
def test_a_power_loss_under_counts_nothing_and_leaves_what_can_be_used(points: int, tmp_path: Path) -> None:
    code, figures, said = figures_of(["--points", str(points), "--seed", "5"], tmp_path)
    assert code == 0, said
    assert figures["power losses"] == points
    assert figures["noise releases seen by the witness"] > points
    for name in (
        "counts below what was released",
        "disks that cannot be used",
        "keystream addresses opened twice",
        "runs beyond their plan or statement",
    ):
        assert figures[name] == 0, said
    assert figures["most steps counted too many by a strike"] <= 3


def test_a_ledger_that_does_not_sync_is_found_out(tmp_path: Path) -> None:
    spoilt = (
        "import sqlite3; from dptrain.privacy import ledger_store; honest = ledger_store._set_up_sqlite; "
        "ledger_store._set_up_sqlite = lambda c, _: (honest(c, _), c.execute('PRAGMA synchronous=OFF'))"
    )
    code, figures, said = figures_of(["--points", "12", "--seed", "1"], tmp_path, spoilt)
    assert code == 1 and figures["counts below what was released"] > 0, said


def test_the_model_of_a_disk(tmp_path: Path) -> None:
    sys.path.insert(0, str(SCRIPTS))
    try:
        Disk = importlib.import_module("disk_model").Disk  # noqa: N806
    finally:
        sys.path.remove(str(SCRIPTS))
    root, left = tmp_path / "root", tmp_path / "left"
    root.mkdir()
    left.mkdir()
    (root / "kept").write_bytes(b"old")
    disk = Disk(root)
    kept, new = disk.find(f"{root}/kept"), disk.make(f"{root}/new", False, 0o600)
    assert kept is not None
    kept.data[:] = b"newer"
    new.data[:] = b"x" * 10
    new.sync()
    disk.image(left, None)
    assert {file.name: file.read_bytes() for file in left.iterdir()} == {"kept": b"old"}, "its name was not synced"
    disk.find(str(root)).sync()  # type: ignore[union-attr]
    disk.rename(f"{root}/new", f"{root}/kept")
    disk.image(left, None)
    assert {file.name: file.read_bytes() for file in left.iterdir()} == {"kept": b"old", "new": b"x" * 10}
    seen = set()
    for seed in range(40):
        disk.image(left, random.Random(seed))
        seen.add(tuple(sorted((file.name, file.read_bytes()) for file in left.iterdir())))
    before = {(("kept", content), ("new", b"x" * 10)) for content in (b"old", b"new", b"newer", b"old\0\0")}
    assert (("kept", b"x" * 10),) in seen and seen <= {(("kept", b"x" * 10),), *before}
