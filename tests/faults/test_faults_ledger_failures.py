"""Kills, full disks, read-only files, locks, clocks: the ledger says no in one line, or goes on, and loses nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dptrain.errors import ConfigError
from dptrain.privacy import accounting, ledger_log, witness
from dptrain.privacy.chain import verify_chain
from dptrain.privacy.ledger import Ledger, Reservation, open_ledger

EVENT = accounting.self_composed(1_000_000, accounting.poisson_sampled(0.001, accounting.gaussian(200.0)))
WRITER = Path(__file__).parent / "ledger_writer.py"


def held(ledger: Ledger, run_id: str = "r1") -> Reservation:
    return ledger.reserve("adult", event=EVENT, run_id=run_id, purpose="trial", delta=1e-6, epsilon=0.1)


@pytest.fixture
def ledger() -> Ledger:
    opened = open_ledger(None)
    opened.create_account("adult", 8, 1e-5)
    return opened


def kill_writers(ledger: Ledger, folder: Path, kills: int, lease: int, seed: int) -> tuple[int, int]:
    """(releases seen outside, steps charged) after so many kills at random moments, each resumed by the next."""
    releases, draw, entry = folder / "releases", random.Random(seed), held(ledger).entry
    releases.touch()
    for n in range(kills):
        seen = releases.stat().st_size
        words = [str(WRITER), ledger.store.place, str(releases), str(entry), str(lease)]
        writer = subprocess.Popen([sys.executable, *words])
        end = time.monotonic() + 60
        while releases.stat().st_size <= seen and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        charged = ledger.totals("adult", pld=False).entries[-1]["committed_steps"]
        assert releases.stat().st_size <= charged, "a release that nobody counted"
        assert charged <= releases.stat().st_size + lease * (n + 1), "more than one lease too many a kill"
    ledger.abandon("r1", "killed for good")
    return releases.stat().st_size, ledger.totals("adult", pld=False).entries[-1]["steps_done"]


@pytest.mark.parametrize("lease", [1, 20])
def test_kill_nine_never_undercounts(ledger: Ledger, tmp_path: Path, lease: int) -> None:
    """Ten kills each; ``scripts/bench_ledger.py kill 1000`` does a thousand."""
    released, charged = kill_writers(ledger, tmp_path, 10, lease, seed=lease)
    assert 0 < released <= charged
    assert verify_chain(ledger).holds


def test_a_clock_set_back_changes_nothing_and_is_noted(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    first = held(ledger)
    ledger.commit(first, 5)

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz or UTC) - timedelta(days=1)

    monkeypatch.setattr(ledger_log, "datetime", Yesterday)
    ledger.commit(first, 9)
    ledger.settle(first, 7)
    again = open_ledger(None)
    assert again.totals("adult", pld=False).entries[0]["steps_done"] == 7
    assert again.state == ledger.state
    verdict = verify_chain(again)
    assert verdict.holds and verdict.notes == ["row 5: is dated before the one before it (a clock was set back)"]


def test_a_full_disk_is_one_line_and_nothing_is_lost(ledger: Ledger) -> None:
    first = held(ledger)
    ledger.commit(first, 1)
    engine = ledger.store._connect()
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    acknowledged, said = 1, ""
    while not said and acknowledged < 500:
        try:
            ledger.commit(first, acknowledged + 1)
            acknowledged += 1
        except ConfigError as error:
            said = str(error)
    assert re.search(r"cannot be written .*free space; what was written before is whole", said) and "\n" not in said
    other = open_ledger(None)
    assert other.state.entries[first.entry].committed_steps == acknowledged
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=100000")
    ledger.commit(first, acknowledged + 1)
    assert verify_chain(open_ledger(None)).holds


def test_a_file_that_may_not_grow(ledger: Ledger, tmp_path: Path) -> None:
    """The operating system's own refusal (a limit on file size), in a process of its own."""
    held(ledger)
    ledger.close()
    program = (
        "import resource, signal, sys\n"
        "from dptrain.privacy.ledger import open_ledger\n"
        "ledger = open_ledger(None)\n"
        "held = ledger.resume(3)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "for steps in range(1, 1000):\n"
        "    try:\n"
        "        ledger.commit(held, steps)\n"
        "    except Exception as error:\n"
        "        print(steps - 1, error)\n"
        "        break\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stdout + done.stderr
    assert "cannot be written" in done.stdout
    acknowledged = int(done.stdout.split()[0])
    assert acknowledged > 1
    assert open_ledger(None).state.entries[3].committed_steps == acknowledged


def test_a_read_only_ledger_can_be_read_and_not_spent(ledger: Ledger, tmp_path: Path) -> None:
    """By another user where the tests run as root, whom no permission stops."""
    held(ledger)
    ledger.close()
    shared = tmp_path / "shared"
    shared.mkdir()
    assert ledger.store.file is not None
    file = Path(shutil.copy(ledger.store.file, shared / "ledger.db"))
    os.chmod(file, 0o444)
    os.chmod(shared, 0o555)
    for folder in shared.parents:
        if folder.owner() == shared.owner() and len(folder.parts) > 2:
            os.chmod(folder, folder.stat().st_mode | 0o055)
    program = (
        "import os, sys\n"
        "from dptrain.privacy.ledger import open_ledger\n"
        "from dptrain.signing import load_signer\n"
        "import sqlalchemy.dialects.sqlite, dp_accounting.rdp\n"
        "signer = load_signer()\n"
        "os.getuid() == 0 and os.setuid(65534)\n"
        "try:\n"
        "    open_ledger(sys.argv[1], signer).freeze('adult', 'why')\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, f"sqlite:///{file}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout and done.stdout.count("\n") == 1, done.stdout
    os.chmod(shared, 0o700)
    unreadable = subprocess.run([sys.executable, "-c", program, f"sqlite:///{file}"], capture_output=True, text=True)
    if os.getuid() == 0:
        assert "cannot be read" in unreadable.stdout and unreadable.stdout.count("\n") == 1, unreadable.stdout
    os.chmod(file, 0o644)


def test_a_locked_ledger_waits_and_then_says_so(ledger: Ledger) -> None:
    first = held(ledger)
    assert ledger.store.file is not None
    hasty = open_ledger(None, wait=0.3)
    with closing(sqlite3.connect(ledger.store.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        with pytest.raises(ConfigError, match=r"was held by another process for 0\.3 s; wait for it to end"):
            hasty.commit(first, 1)
        assert 0.25 < time.monotonic() - begin < 10
        assert hasty.totals("adult", pld=False).entries[0]["committed_steps"] == 0, "reading needs no lock"
        other.execute("ROLLBACK")
    hasty.commit(first, 1)
    ledger.settle(first, 1)


def test_heads_remembered_here_may_be_lost_but_not_torn(ledger: Ledger) -> None:
    first = held(ledger)
    shutil.rmtree(witness.folder())
    ledger.commit(first, 3)
    (remembered,) = witness.folder().glob("*.json")
    assert json.loads(remembered.read_text())["head"]["sequence"] == 4
    remembered.write_text('{"place"')
    with pytest.raises(ConfigError, match="cannot be read; remove it"):
        open_ledger(None)
    for lost in (b"", bytes(700)):  # what a power cut leaves of a file that was not synced
        remembered.write_bytes(lost)
        assert open_ledger(None).state == ledger.state
    remembered.unlink()
    assert open_ledger(None).state == ledger.state
