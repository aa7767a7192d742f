"""The cases of ``fuzz.py``: each breaks one thing in a room of its own, and gives the function that reads it.

What is signed anew is signed by the trusted key: so that it reaches the code behind the signature.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz_broken import HYDRA, PICKLE, TEXTS, VALUES, broken_bytes, broken_value, broken_weights
from fuzz_folder_cases import foreign_case, quarantine_case, run_folder_case

from dptrain.bundle_files import file_facts, listed_files, manifest_text, signature_text
from dptrain.checkpoint.bundle import load_bundle, save_bundle
from dptrain.compose import compose
from dptrain.config_privacy import PrivacyConfig
from dptrain.errors import ClaimRejected
from dptrain.hydra_check import refuse_code
from dptrain.models.build import ModelSpec, build_model
from dptrain.privacy.chain import START, row_hash, row_text, sign_head, verify_chain
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.plan import compile_plan
from dptrain.privacy.seal import sign_statement
from dptrain.privacy.statement import RunFacts, make_statement
from dptrain.privacy.verify import verified
from dptrain.revoked_keys import revoke
from dptrain.run_folder import read_json
from dptrain.signing import load_signer

SPEC = ModelSpec(
    name="mlp", options={"hidden": [5]}, raw_shape=(4,), input_shape=(4,), num_outputs=3, task="multiclass"
)
DATA = {"name": "ward", "licence": "not stated", "public_size": 1000, "public_split": "test rows", "is_public": False}
CELLS = [("rows", "text"), ("rows", "hash"), ("rows", "sequence"), ("head", "sequence"), ("head", "hash")]
CELLS += [("head", "signature"), ("head", "public_key"), ("head", "ledger_id"), ("secret", "secret")]


class Room:
    """A pristine home, bundle, ledger and config, of which every case gets its own copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "pristine-home"
        os.environ["DPTRAIN_HOME"] = str(self.home)
        os.environ["FUZZ_SECRET"] = "hunter2-in-the-environment"
        plan = compile_plan(
            PrivacyConfig(epsilon=None, noise_multiplier=10.0, epochs=3, expected_batch_size=1000), 1000
        )
        facts: dict[str, Any] = {"run_id": "r", "steps_done": plan.steps, "engine": "vmap", "float_class": "exact"}
        signer = load_signer()

        def state(files: dict[str, Any]) -> dict[str, Any]:
            return sign_statement(make_statement(plan, RunFacts(**facts, data=DATA, files=files)), signer)

        self.bundle = folder / "pristine" / "checkpoint"
        self.bundle.parent.mkdir()
        torch.manual_seed(0)
        save_bundle(self.bundle, build_model(SPEC), SPEC, state)
        with closing(open_ledger(None)) as ledger:
            ledger.create_account("ward", 8, 1e-5)
            assert plan.mechanism is not None and plan.epsilon is not None
            event = plan.mechanism.event()
            for number in range(2):
                held = ledger.reserve(
                    "ward", event=event, run_id=f"r{number}", purpose="trial", delta=1e-5, epsilon=plan.epsilon
                )
                ledger.commit(held, plan.steps)
                ledger.settle(held, plan.steps - number)
            self.rows = [{k: v for k, v in row.items() if k != "hash"} for row in ledger.rows()]
            self.ledger_id = ledger.id
        (self.home / "heads" / f"{self.ledger_id}.json").unlink()
        (self.home / "trusted").mkdir()
        other = load_signer(folder / "other.key")
        (self.home / "trusted" / "other.pub").write_text(other.public_key)
        third = load_signer(folder / "third.key")
        revoke(third.public_key, "lost")
        shipped = Path(__file__).resolve().parent.parent / "configs" / "experiment" / "quickstart.yaml"
        self.config = shipped.read_text(encoding="utf-8")
        self.number = 0

    def fresh(self) -> Path:
        """A new folder with copies of home and bundle; ``DPTRAIN_HOME`` is that copy."""
        self.number += 1
        case = self.folder / f"case-{self.number}"
        shutil.copytree(self.home, case / "home")
        shutil.copytree(self.bundle, case / "checkpoint")
        (case / "evil.pkl").write_bytes(PICKLE)
        os.environ["DPTRAIN_HOME"] = str(case / "home")
        return case


def seal(bundle: Path, restate: bool) -> None:
    """Manifest and signature anew, by the trusted key; with ``restate`` the statement's digests, too."""
    signer = load_signer()
    if restate:
        statement = read_json(bundle / "statement.json")
        statement["artifact"]["files"] = {name: file_facts(bundle / name) for name in listed_files(False)[:2]}
        (bundle / "statement.json").write_text(json.dumps(sign_statement(statement, signer), indent=2))
    text = manifest_text({name: file_facts(bundle / name) for name in listed_files(False)})
    (bundle / "manifest.json").write_text(text)
    (bundle / "signature.json").write_text(signature_text(text.encode(), signer))


Read = Callable[[], object]


def files_case(room: Room, case: Path, draw: random.Random) -> Read:
    """Any file of a bundle, its bytes broken, nothing signed again; or a file too many, or too few."""
    bundle = case / "checkpoint"
    file = bundle / draw.choice([*listed_files(False), "manifest.json", "signature.json"])
    way = draw.randrange(12)
    if way == 0:
        file.unlink()
    elif way == 1:
        (bundle / draw.choice(["x", ".hidden", "model.pth", "conftest.py", "MODEL.json", "a\nb"])).write_bytes(PICKLE)
    else:
        file.write_bytes(broken_bytes(file.read_bytes(), draw))

    whole = way < 2 or draw.random() < 0.3  # pricing an honest statement takes a hundred times as long as the rest

    def read() -> None:
        try:
            load_bundle(bundle)
        finally:
            if whole:
                held = verified(bundle).holds
                assert not held or way > 1, "a bundle with a file too many or too few was believed"

    return read


def weights_case(room: Room, case: Path, draw: random.Random) -> Read:
    """Weights that a trusted key has signed, broken."""
    file = case / "checkpoint" / "model.safetensors"
    file.write_bytes(broken_weights(file.read_bytes(), draw))
    seal(case / "checkpoint", restate=True)
    return lambda: load_bundle(case / "checkpoint")


def model_case(room: Room, case: Path, draw: random.Random) -> Read:
    """A model description that a trusted key has signed, broken."""
    file = case / "checkpoint" / "model.json"
    if draw.random() < 0.3:
        file.write_bytes(broken_bytes(file.read_bytes(), draw))
    else:
        file.write_text(json.dumps(broken_value(read_json(file), draw)))
    seal(case / "checkpoint", restate=True)
    return lambda: load_bundle(case / "checkpoint")


def statement_case(room: Room, case: Path, draw: random.Random) -> Read:
    """A statement with broken bytes, or broken in structure and signed by a trusted key."""
    file = case / "checkpoint" / "statement.json"
    if draw.random() < 0.7:
        file.write_bytes(broken_bytes(file.read_bytes(), draw))
        return lambda: believed(file)
    statement = broken_value(read_json(file), draw)
    if isinstance(statement, dict):
        statement = sign_statement(statement, load_signer())
    file.write_text(json.dumps(statement, indent=2))
    whole = draw.random() < 0.2
    return lambda: believed(case / "checkpoint" if whole else file)


def believed(path: Path) -> None:
    """As ``dptrain verify``: one line where it does not hold."""
    verdict = verified(path)
    verdict.to_json()
    if not verdict.holds:
        raise ClaimRejected("path", path, verdict.problems[0], "do not rely on this statement")


def ledger_case(room: Room, case: Path, draw: random.Random) -> Read:
    """The ledger's file with broken bytes, or rows that only a holder of the key could have written."""
    file = case / "home" / "ledger.db"
    if draw.random() < 0.5:
        file.write_bytes(broken_bytes(file.read_bytes(), draw))
    else:
        _forge(room, file, draw)

    def read() -> None:
        try:
            with closing(open_ledger(None, create=False)) as ledger:
                ledger.totals("ward", pld=False)
        finally:
            with closing(open_ledger(None, create=False, check=False)) as unchecked:
                verify_chain(unchecked)

    return read


def _forge(room: Room, file: Path, draw: random.Random) -> None:
    """Rows broken in structure, chained and signed anew; or cells of kinds that no ledger writes."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for name in ("UPDATE", "DELETE"):
            connection.execute(f"DROP TRIGGER IF EXISTS dptrain_ledger_no_{name}")
        if draw.random() < 0.4:
            table, column = draw.choice(CELLS)
            value = draw.choice([None, -1, 2**62, 0.5, b"\xff\x00", "", "x", "\x00", PICKLE])
            where = f"WHERE sequence={draw.randrange(1, 9)}" if table == "rows" else ""
            with contextlib.suppress(sqlite3.Error):  # the tables have rules of their own
                connection.execute(f"UPDATE dptrain_ledger_{table} SET {column}=? {where}", (value,))
            return
        rows = [dict(row) for row in room.rows]
        place = draw.randrange(len(rows))
        changed = broken_value(rows[place], draw)
        rows[place] = changed if isinstance(changed, dict) else {"kind": changed}
        previous, last = START, 0
        connection.execute("DELETE FROM dptrain_ledger_rows")
        for number, row in enumerate(rows, start=1):
            text = row_text(number, previous, {k: v for k, v in row.items() if k not in ("sequence", "previous")})
            previous, last = row_hash(text), number
            connection.execute("INSERT INTO dptrain_ledger_rows VALUES (?, ?, ?)", (number, text, previous))
        head = sign_head(load_signer(), room.ledger_id, last, previous).to_json()
        names = ", ".join(f"{name}=?" for name in head)
        connection.execute(f"UPDATE dptrain_ledger_head SET {names}", tuple(head.values()))


def config_case(room: Room, case: Path, draw: random.Random) -> Read:
    """An experiment of the user's own, broken as bytes or as structure, or with a hostile part in it."""
    folder = case / "conf" / "experiment"
    folder.mkdir(parents=True)
    text = room.config
    if draw.random() < 0.4:
        value = broken_value(yaml.safe_load(text), draw)
        text = "# @package _global_\n" + yaml.safe_dump(value, allow_unicode=True)
    if draw.random() < 0.3:
        text += draw.choice(HYDRA)
    if draw.random() < 0.4:
        text += f"\n{draw.choice(['seed', 'run', 'model', 'imports', 'x', 'defaults'])}: {draw.choice(TEXTS)}\n"
    data = text.encode("utf-8", "surrogatepass")
    (folder / "mine.yaml").write_bytes(broken_bytes(data, draw) if draw.random() < 0.6 else data)
    return lambda: composed(["experiment=mine"], str(case / "conf"))


KEYS = ["seed", "privacy.epsilon", "model.options.hidden", "data.path", "run.id", "hydra.job.name", "imports", "task"]
KEYS += ["+x", "~seed", "model", "experiment", "hydra/launcher", "optimizer.options", "++hydra.callbacks.x._target_"]
SHAPES = ["{}={}", "+{}={}", "{}=[{}]", "{}={{a:{}}}", "{}='{}'", "~{}={}", "{}", "{}==", "{}={},1", "{}=range({})"]


def override_case(room: Room, case: Path, draw: random.Random) -> Read:
    """Overrides of the command line, well formed and not."""
    given = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        text = draw.choice([*TEXTS, *map(str, VALUES), "os.mkdir", "1,2", "choice(1,2)", "glob(*)"])
        word = draw.choice(SHAPES).replace("{}", draw.choice(KEYS), 1).replace("{}", text, 1)
        given.append(broken_bytes(word.encode("utf-8", "replace"), draw).decode("utf-8", "replace")[:9000])
    return lambda: composed(given, None)


def composed(overrides: list[str], folder: str | None) -> None:
    """What the command line does before a recipe is called."""
    refuse_code("train", [*overrides, *([f"--config-dir={folder}"] if folder else [])])
    config = compose("train", overrides, folder)
    assert "hunter2-in" not in repr(config), "a secret of the environment is in the config"


def keys_case(room: Room, case: Path, draw: random.Random) -> Read:
    """The list of revoked keys, a trusted key, a remembered head or the signing key itself, broken."""
    kept = case / "home"
    (kept / "heads").mkdir(exist_ok=True)
    head = {"place": f"sqlite:///{kept / 'ledger.db'}", "head": {"ledger_id": room.ledger_id}}
    (kept / "heads" / f"{room.ledger_id}.json").write_text(json.dumps(head))
    names = ["revoked.jsonl", "trusted/other.pub", f"heads/{room.ledger_id}.json", "signing.key"]
    file = kept / draw.choice(names)
    file.write_bytes(broken_bytes(file.read_bytes(), draw))

    def read() -> None:
        try:
            verified(case / "checkpoint")
        finally:
            with closing(open_ledger(None, create=False)) as ledger:
                ledger.totals("ward", pld=False)

    return read


KINDS: dict[str, tuple[Callable[[Room, Path, random.Random], Read], int]] = {
    "bundle files": (files_case, 20),
    "signed weights": (weights_case, 16),
    "signed model.json": (model_case, 14),
    "statement": (statement_case, 14),
    "ledger": (ledger_case, 14),
    "config": (config_case, 8),
    "override": (override_case, 8),
    "keys and heads": (keys_case, 6),
    "run to resume": (run_folder_case, 8),
    "quarantine": (quarantine_case, 6),
    "weights of others": (foreign_case, 8),
}
"""Kind -> (maker, share)."""
