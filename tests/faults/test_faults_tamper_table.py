"""Everything that somebody may do to a bundle, a statement, a ledger or the rows: found, and the thing named.

``pytest -s tests/faults/test_faults_tamper_table.py`` prints the table of docs/results/tamper.md. Bundles are held
against ``dptrain verify`` (exit code 4, one line) and against ``dptrain.load``, which must load nothing.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_faults_ledger_tampered as ledger_tampered
import torch
from bundle_maker import edit, open_room
from tamper_cases import BUNDLE, STATEMENT, Room
from test_faults_ledger_tampered import ledger as ledger_of_eleven_rows  # noqa: F401  (a fixture)

from dptrain import cli
from dptrain.audit.stages import _check_rows
from dptrain.data.manifest import manifest_digest, new_salt
from dptrain.data.source import Rows
from dptrain.errors import ClaimRejected, ConfigError, DptrainError
from dptrain.face import load
from dptrain.privacy import accounting, recompute
from dptrain.privacy.chain import LedgerBroken
from dptrain.privacy.ledger import Ledger, open_ledger
from dptrain.run_folder import RunFolder, write_json

TABLE: list[tuple[str, str, str]] = []
"""(what, case, how it was named) of every case that was caught."""


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    TABLE.clear()
    yield
    print(f"\n\n{len(TABLE)} cases, all caught\n")
    for what, case, said in TABLE:
        print(f"| {what} | {case} | {said} |")


@pytest.fixture(scope="module", autouse=True)
def _priced_once() -> Iterator[None]:
    """Dozens of bundles name the same mechanism: it is priced once, by the real accountants."""
    known: dict[str, Any] = {}

    def remembering(compute: Callable[..., Any]) -> Callable[..., Any]:
        def recall(*given: Any, **named: Any) -> Any:
            key = repr((compute.__name__, given, sorted(named.items())))
            if key not in known:
                known[key] = compute(*given, **named)
            return copy.deepcopy(known[key])

        return recall

    with pytest.MonkeyPatch.context() as patch:
        for module, name in [(accounting, "epsilon"), (accounting, "rdp_epsilon"), (recompute, "guarantee_block")]:
            patch.setattr(module, name, remembering(getattr(module, name)))
        yield


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


CASES = [("bundle", *case) for case in BUNDLE] + [("statement", *case) for case in STATEMENT]


@pytest.mark.parametrize(("what", "case", "attack", "named"), CASES, ids=[f"{w}: {c}" for w, c, _, _ in CASES])
def test_tampered_bundles_are_refused_by_verify_and_never_loaded(
    what: str, case: str, attack: Callable[[Room], object], named: str, room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    attack(room)
    run = room.bundle.parent
    capsys.readouterr()
    code = cli.run(["verify", f"path={run}", *room.settings])
    said = capsys.readouterr().err
    assert code == (2 if case == "missing" else 4), said
    assert said.count("\n") == 1 and said.startswith("dptrain: error: ")
    assert re.search(named, said), said
    after = [setting.removeprefix("after=[").removesuffix("]") for setting in room.settings]
    with pytest.raises(DptrainError) as refused:
        load(run, after=after)
    assert refused.value.exit_code == code and "\n" not in str(refused.value)
    TABLE.append((what, case, re.sub(r"^.*?: (?=\w+: )|; .*$", "", said.strip().split("dptrain: error: ")[1])[:110]))


def test_untouched_bundles_are_loaded(room: Room) -> None:
    """The other half of the table: old and new, with heads that they are not older than."""
    statements = [str(bundle / "statement.json") for bundle in (room.first, room.bundle)]
    assert load(room.first.parent).predict(torch.zeros(2, 4)).shape == (2,)
    assert load(room.bundle, after=statements).statement["identity"]["run_id"] == "second"
    assert load(room.first, after=statements[:1]).statement["identity"]["run_id"] == "first"
    with pytest.raises(ClaimRejected, match="an older bundle"):
        load(room.first, after=statements)
    room.bundle.chmod(0o755)
    for file in room.bundle.iterdir():
        file.chmod(0o664)  # as an archive or a download leaves them
    assert load(room.bundle).statement["private"] is True


@pytest.mark.parametrize(("attack", "named"), ledger_tampered.CASES, ids=[a.__name__ for a, _ in ledger_tampered.CASES])
def test_tampered_ledgers(
    attack: Callable[[Ledger], None],
    named: str,
    ledger_of_eleven_rows: Ledger,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    ledger_of_eleven_rows.close()
    attack(ledger_of_eleven_rows)
    found(["budget", "verify"], named, 4, attack.__name__.replace("_", " "), capsys)


def secret_replaced(ledger: Ledger) -> None:
    ledger_tampered.tamper(ledger, ("UPDATE dptrain_ledger_secret SET secret=?", ("00" * 32,)))


def text_is_no_text(ledger: Ledger) -> None:
    ledger_tampered.tamper(ledger, ("UPDATE dptrain_ledger_rows SET text=? WHERE sequence=4", (b"\xff\x00",)))


def head_of_no_number(ledger: Ledger) -> None:
    ledger_tampered.tamper(ledger, ("UPDATE dptrain_ledger_head SET sequence=?", ("eleven",)))


def head_gone(ledger: Ledger) -> None:
    ledger_tampered.tamper(ledger, ("DELETE FROM dptrain_ledger_head", ()))


def rows_gone(ledger: Ledger) -> None:
    ledger_tampered.tamper(ledger, ("DELETE FROM dptrain_ledger_rows", ()))


def cut_in_half(ledger: Ledger) -> None:
    file = ledger_tampered.file_of(ledger)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def text_file(ledger: Ledger) -> None:
    ledger_tampered.file_of(ledger).write_bytes(b"not a database" * 100)


MORE_LEDGER: list[tuple[Callable[[Ledger], None], str]] = [
    (text_is_no_text, "row 4: "),
    (head_of_no_number, "head"),
    (head_gone, "head: is missing|holds no ledger"),
    (rows_gone, "row 1: is missing"),
    (cut_in_half, "malformed|is missing|not a database"),
    (text_file, "not a database"),
]


@pytest.mark.parametrize(("attack", "named"), MORE_LEDGER, ids=[attack.__name__ for attack, _ in MORE_LEDGER])
def test_ledgers_with_what_no_ledger_writes(
    attack: Callable[[Ledger], None],
    named: str,
    ledger_of_eleven_rows: Ledger,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    ledger_of_eleven_rows.close()
    attack(ledger_of_eleven_rows)
    code = found(["budget", "verify"], named, None, attack.__name__.replace("_", " "), capsys)
    assert code in (2, 3, 4)
    with pytest.raises(DptrainError):
        open_ledger(None)


def test_a_ledgers_secret_that_was_replaced(ledger_of_eleven_rows: Ledger) -> None:  # noqa: F811
    ledger_of_eleven_rows.close()
    secret_replaced(ledger_of_eleven_rows)
    with pytest.raises(LedgerBroken, match="is not the one that row 1 names") as refused:
        _ = open_ledger(None).secret
    TABLE.append(("ledger", "secret replaced", str(refused.value)[:110]))


def found(command: list[str], named: str, code: int | None, case: str, capsys: pytest.CaptureFixture[str]) -> int:
    """Runs a command that must refuse in one line which matches; gives its exit code."""
    capsys.readouterr()
    got = cli.run(command)
    shown = capsys.readouterr()
    assert got == code if code is not None else got in (2, 3, 4), shown.err
    assert shown.err.count("\n") == 1, shown.err
    assert re.search(named, shown.err + shown.out), shown.err
    TABLE.append(("ledger", case, shown.err.split("ledger=")[-1].split(": ", 1)[-1].split("; ")[0].strip()[:110]))
    return got


# --- the rows that a run was trained on, and the digest that names them


def rows() -> Rows:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(12, 4, generator=generator)
    return Rows(inputs, torch.arange(12) % 3, torch.arange(12) // 2)


def changed(what: str) -> Rows:
    made = rows()
    inputs, targets, unit_id = made.inputs.clone(), made.targets.clone(), made.unit_id.clone()
    match what:
        case "a number of one row":
            inputs[3, 1] += 1e-6
        case "a target":
            targets[0] = 2
        case "whose row it is":
            unit_id[1] = 1
        case "two rows in another order":
            inputs[[0, 1]] = inputs[[1, 0]]
        case "a row more":
            inputs, targets = torch.cat([inputs, inputs[:1]]), torch.cat([targets, targets[:1]])
            unit_id = torch.cat([unit_id, unit_id[:1]])
        case "a row less":
            inputs, targets, unit_id = inputs[:-1], targets[:-1], unit_id[:-1]
        case "numbers of another kind":
            inputs = inputs.double()
    return Rows(inputs, targets, unit_id)


ROWS = ["a number of one row", "a target", "whose row it is", "two rows in another order", "a row more", "a row less"]
ROWS += ["numbers of another kind"]
DIGEST: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("another digest", lambda m: m.update(digest="0" * 64)),
    ("another salt", lambda m: m.update(salt="00" * 32)),
    ("no salt", lambda m: m.pop("salt")),
    ("a salt that is none", lambda m: m.update(salt="zz")),
]


@pytest.fixture
def kept(tmp_path: Path) -> RunFolder:
    """A run folder with the salted digest of its rows."""
    folder = RunFolder(tmp_path / "r", "r")
    folder.internal.mkdir(parents=True)
    salt = new_salt()
    write_json(folder.internal_manifest, {"salt": salt.hex(), "digest": manifest_digest(rows(), salt), "rows": 12})
    _check_rows(folder, rows())
    return folder


@pytest.mark.parametrize("what", ROWS)
def test_changed_rows_are_not_those_of_the_run(what: str, kept: RunFolder) -> None:
    with pytest.raises(ConfigError, match="the rows are not those") as refused:
        _check_rows(kept, changed(what))
    TABLE.append(("data digest", what, refused.value.problem[:110]))


@pytest.mark.parametrize(("what", "change"), DIGEST, ids=[what for what, _ in DIGEST])
def test_a_changed_digest_is_noticed(what: str, change: Callable[[dict[str, Any]], object], kept: RunFolder) -> None:
    edit(kept.internal_manifest, lambda m: (change(m), None)[1])
    with pytest.raises(ConfigError, match=r"the rows are not those|manifest\.json: is damaged") as refused:
        _check_rows(kept, rows())
    TABLE.append(("data digest", what, f"{refused.value.problem}"[:110]))


@pytest.mark.parametrize("what", ROWS)
def test_changed_rows_do_not_pass_for_a_data_set_of_the_ledger(what: str, tmp_path: Path) -> None:
    """Under the ledger's key: other rows have another digest, which no account knows."""
    ledger = open_room()
    ledger.link(manifest_digest(rows(), ledger.secret), "ward", "same")
    assert ledger.account_of(manifest_digest(rows(), ledger.secret)) is not None
    assert ledger.account_of(manifest_digest(changed(what), ledger.secret)) is None
    TABLE.append(("data digest", f"{what}, under the ledger's key", "no account knows these rows"))


def test_the_table_is_long_enough() -> None:
    """At least 40 cases over all four, by count of what is parametrised above."""
    counts = {"bundle": len(BUNDLE), "statement": len(STATEMENT)}
    counts |= {"ledger": len(ledger_tampered.CASES) + len(MORE_LEDGER) + 1, "data digest": 2 * len(ROWS) + len(DIGEST)}
    assert sum(counts.values()) >= 60 and min(counts.values()) >= 10, counts


def test_weights_swapped_after_the_check_are_not_loaded(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between verifying and loading: the bytes that are loaded are those whose digest the statement names."""
    from dptrain.checkpoint import bundle as loader

    honest = loader.verified_bundle

    def then_swapped(*given: Any) -> dict[str, Any]:
        statement = honest(*given)
        room.weights.write_bytes((room.first / "model.safetensors").read_bytes())
        return statement

    monkeypatch.setattr(loader, "verified_bundle", then_swapped)
    with pytest.raises(ConfigError, match=r"model\.safetensors: does not match its digest"):
        load(room.bundle)
