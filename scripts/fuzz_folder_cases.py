"""Cases of ``fuzz.py`` over folders that are gone on with: a run to resume, the quarantine, weights of others."""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fuzz_broken import PICKLE, TEXTS, broken_bytes
from omegaconf import OmegaConf

from dptrain.checkpoint.foreign_weights import read_foreign, write_new
from dptrain.checkpoint.resume_state import ResumeState, write_state
from dptrain.checkpoint.sealing_key import load_key
from dptrain.checkpoint.step_journal import StepJournal
from dptrain.compose import compose
from dptrain.data.quarantine import entries_of, quarantine
from dptrain.data.quarantine_file import read_chain
from dptrain.run_folder import write_json, write_text
from dptrain.tracking.metrics_log import MetricsLog
from dptrain.tracking.state import State, read_state
from dptrain.tracking.state import write_state as write_tracking
from dptrain.training.resume import begin

Read = Callable[[], object]


@cache
def _pristine(folder: Path) -> Path:
    """A run that was killed after its second step and a quarantine, with a home of their own: made once a room."""
    place, held = folder / "pristine-folders", os.environ["DPTRAIN_HOME"]
    (place / "home").mkdir(parents=True)
    os.environ["DPTRAIN_HOME"] = str(place / "home")
    run = place / "run"
    (run / "internal").mkdir(parents=True)
    (run / "resume").mkdir()
    config = compose("train", ["experiment=quickstart", "run.id=r"])
    settings: Any = OmegaConf.to_container(OmegaConf.structured(config))
    facts = {"run_id": "r", "config": settings, "steps": 2, "seconds": 0.5, "ledger": None, "data": {"salt": "00" * 32}}
    write_state(run / "resume", ResumeState(facts, {"model.w": torch.ones(2)}), load_key(None, create=True), 2)
    journal = StepJournal(run / "resume" / "journal")
    journal.commit(2)
    journal.release()
    write_text(run / "config.yaml", OmegaConf.to_yaml(settings))
    write_json(run / "result.json", {"run_id": "r", "status": "stopped", "metrics": {}})
    write_tracking(run / "internal" / "tracking.json", State("sqlite:///x.db", "e", "ab12", 17, "id", 3))
    MetricsLog(run / "metrics.jsonl").append({"step": 1, "seconds": 0.2, "public_loss": 0.7})
    quarantine([{"ab" * 32: "given"}], "the consent form was wrong")
    os.environ["DPTRAIN_HOME"] = held
    return place


def _taken(room: Any, case: Path) -> Path:
    """The pristine folders in place of the case's own home."""
    shutil.rmtree(case / "home")
    shutil.copytree(_pristine(room.folder), case, dirs_exist_ok=True)
    return case / "run"


def run_folder_case(room: Any, case: Path, draw: random.Random) -> Read:
    """A killed run's folder with one file broken, taken up again; its count must not be read below its state."""
    run = _taken(room, case)
    files = sorted(file for file in run.rglob("*") if file.is_file())
    file = draw.choice(files)
    if draw.random() < 0.15:
        file.unlink()
    else:
        file.write_bytes(broken_bytes(file.read_bytes(), draw))

    given = draw.choice([[], ["checkpoint.every=9"], [f"tracking.experiment={draw.choice(TEXTS)}"]])

    def read() -> None:
        try:
            begun = begin(str(run), given)
            try:
                journal = StepJournal(run / "resume" / "journal", must_exist=True)
                journal.release()
                begun.check_counted(journal.executed)
                assert journal.executed >= begun.state.facts["steps"], "a count behind the weights was believed"
            finally:
                begun.lock.release()
        finally:
            read_state(run / "internal" / "tracking.json")

    return read


def quarantine_case(room: Any, case: Path, draw: random.Random) -> Read:
    """The quarantine's file or remembered head, broken; what is quarantined must not go unnoticed."""
    _taken(room, case)
    files = [case / "home" / "quarantine.jsonl", *(case / "home" / "heads").iterdir()]
    file = draw.choice(files)
    whole = file.read_bytes()
    file.write_bytes(broken_bytes(whole, draw))

    def read() -> None:
        assert "ab" * 32 in entries_of(read_chain()), "a quarantined digest was let go"

    return read


def foreign_case(room: Any, case: Path, draw: random.Random) -> Read:
    """A file of ``torch.save``, broken, hostile, or neither: tensors come out, or nothing."""
    held, kind = io.BytesIO(), draw.randrange(6)
    table: Any = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int64)}
    if kind == 0:
        table = {draw.choice(TEXTS): draw.choice([torch.ones(1), 3, None, table, [table], "x"]), **table}
    torch.save(table, held, _use_new_zipfile_serialization=draw.random() < 0.5)
    data = held.getvalue() if kind else held.getvalue() + draw.choice([b"", PICKLE])
    if kind == 1:
        data = data.replace(b"torch._utils", draw.choice([b"os", b"builtins", b"posix", b"torch.hub"]))
        data = data.replace(b"_rebuild_tensor_v2", draw.choice([b"mkdir", b"eval", b"system", b"load"]))
    file = case / "w.bin"
    if kind == 2 and draw.random() < 0.2:
        data = PICKLE
    file.write_bytes(data if kind in (0, 5) else broken_bytes(data, draw))

    def read() -> None:
        into = case / "out.safetensors"
        tensors, digest = read_foreign(file, draw.choice([None, None, "a", "x"]), draw.choice(["", "", "a"]), into)
        write_new(into, tensors, digest)

    return read
