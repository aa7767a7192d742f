"""Keys that are no longer believed: the list, what it refuses, and what happens to somebody who edits it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dptrain.cli import run
from dptrain.errors import ConfigError
from dptrain.privacy.ledger import open_ledger
from dptrain.revoked_keys import list_file, refusal, revoke, revoked_keys
from dptrain.signing import KEY_VARIABLE, Signer, home, load_signer, trusted_keys


def colleague(folder: Path, name: str = "ann") -> Signer:
    """A signer that is trusted here."""
    signer = load_signer(folder / f"{name}.key")
    (home() / "trusted").mkdir(parents=True, exist_ok=True)
    (home() / "trusted" / f"{name}.pub").write_text(signer.public_key + "\n")
    return signer


def test_a_colleagues_key_is_revoked_by_any_of_its_names(tmp_path: Path) -> None:
    for number, name in enumerate(("id", "text", "file", "trusted name")):
        signer = colleague(tmp_path, f"ann{number}")
        file = tmp_path / "ann.pub"
        file.write_text(signer.public_key)
        given = [signer.key_id, signer.public_key, str(file), f"ann{number}"][number]
        assert refusal(signer.key_id) is None
        made = revoke(given, f"left the team\n({name})")
        assert made.key_id == signer.key_id and made.reason == f"left the team ({name})"
        assert "left the team" in str(refusal(signer.key_id))
        assert signer.key_id not in trusted_keys()
        assert revoke(given if number != 3 else signer.key_id) == made, "the same again changes nothing"
    assert len(revoked_keys()) == 4 == list_file().read_bytes().count(b"\n")
    assert list_file().stat().st_mode & 0o077 == 0


def test_ones_own_key_is_replaced_and_the_ledger_stays_readable() -> None:
    ledger = open_ledger(None)
    ledger.create_account("ward", 8, 1e-5)
    ledger.close()
    old = load_signer()
    revoke(old.key_id, "stolen")
    new = load_signer()
    assert new.key_id != old.key_id and refusal(new.key_id) is None and "stolen" in str(refusal(old.key_id))
    again = open_ledger(None)
    assert [account.name for account in again.accounts()] == ["ward"]
    again.freeze("ward", "a row by the new key")
    assert open_ledger(None).head().key_id == new.key_id
    revoke(new.key_id)
    assert len(revoked_keys()) == 2 and load_signer().key_id not in revoked_keys()
    assert len(list(home().glob("signing.key.revoked-*"))) == 2


def test_the_key_that_signs_elsewhere_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "team.key"))
    with pytest.raises(ConfigError, match="name another file there"):
        revoke(load_signer().key_id)
    assert not list_file().exists()


@pytest.mark.parametrize("given", ["", "nobody", "ed25519:12", "ed25519:" + "g" * 32, "../../etc/passwd", "A" * 44])
def test_what_names_no_key_is_refused(given: str) -> None:
    with pytest.raises(ConfigError) as refused:
        revoke(given)
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)
    assert not list_file().exists()


def _edit(change: Callable[[list[str]], list[str]]) -> None:
    lines = list_file().read_text().splitlines()
    list_file().write_text("\n".join(change(lines)) + "\n")


EDITS: dict[str, Callable[[list[str]], list[str]]] = {
    "a reason": lambda rows: [rows[0].replace("one", "two"), *rows[1:]],
    "a row dropped": lambda rows: [rows[0], rows[2]],
    "the first row dropped": lambda rows: rows[1:],
    "rows in another order": lambda rows: [rows[1], rows[0], rows[2]],
    "a row twice": lambda rows: [*rows, rows[2]],
    "another key": lambda rows: [rows[0].replace('"key_id":"ed25519:', '"key_id":"ed25519:0'), *rows[1:]],
    "spaces": lambda rows: [json.dumps(json.loads(rows[0])), *rows[1:]],
    "half a row": lambda rows: [*rows[:2], rows[2][:50]],
    "junk": lambda rows: ["\x00"],
}


@pytest.mark.parametrize("name", list(EDITS))
def test_an_edited_list_is_noticed_and_nothing_is_believed(name: str, tmp_path: Path) -> None:
    for number in ("one", "two", "three"):
        revoke(colleague(tmp_path, number).key_id, number)
    _edit(EDITS[name])
    with pytest.raises(ConfigError, match=r"revoked keys=.*no key is believed"):
        refusal(load_signer().key_id)
    with pytest.raises(ConfigError, match="revoked keys"):
        revoke(colleague(tmp_path, "four").key_id)


def test_a_strangers_row_is_noticed(tmp_path: Path) -> None:
    from dptrain.revoked_keys import _signed
    from dptrain.signing import canonical

    stranger = load_signer(tmp_path / "stranger.key")
    list_file().write_bytes(canonical(_signed(stranger, [], load_signer().key_id, "")) + b"\n")
    with pytest.raises(ConfigError, match="is not trusted here"):
        revoked_keys()


def test_a_list_that_is_gone_does_not_bring_keys_back(tmp_path: Path) -> None:
    ann, own = colleague(tmp_path), load_signer()
    revoke(ann.key_id)
    revoke(own.key_id)
    list_file().unlink()
    assert "has lost it" in str(refusal(ann.key_id)) and "has lost it" in str(refusal(own.key_id))
    assert refusal(load_signer().key_id) is None


def test_revocations_at_once_make_one_chain(tmp_path: Path) -> None:
    signers = [colleague(tmp_path, f"n{number}") for number in range(6)]
    load_signer()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda signer: revoke(signer.key_id), signers))
    assert set(revoked_keys()) == {signer.key_id for signer in signers}


def test_the_command_revokes_and_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signer = colleague(tmp_path)
    assert run(["keys", "revoke", signer.public_key, "reason=left the team"]) == 0
    assert json.loads(capsys.readouterr().out)["key_id"] == signer.key_id
    assert "left the team" in str(refusal(signer.key_id))
    for words in ([], ["nobody"], ["a", "b"]):
        assert run(["keys", "revoke", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("left", [1, 30, 60, 200, -1])
def test_a_last_row_cut_off_while_it_was_written(left: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A power cut or a kill: nobody was told that the row is there. The other rows still count."""
    ann, ben, carl = (colleague(tmp_path, name) for name in ("ann", "ben", "carl"))
    revoke(ann.key_id, "first")
    whole = list_file().read_bytes()
    revoke(ben.key_id, "second")
    (home() / "trusted" / "ben.pub.revoked").rename(home() / "trusted" / "ben.pub")  # comes after the row
    list_file().write_bytes(list_file().read_bytes()[: len(whole) + left if left > 0 else -1])
    torn = list_file().read_bytes()
    assert "first" in str(refusal(ann.key_id)) and refusal(carl.key_id) is None
    said = capsys.readouterr().err
    if left == -1:
        assert "second" in str(refusal(ben.key_id)) and not said, "whole but for its line end: it counts"
    else:
        assert said.count("\n") == 1 and "cut off" in said and "dptrain keys revoke" in said
        assert (refusal(ben.key_id) is not None) == (ben.key_id.encode() in torn), "what still names a key refuses it"
    assert list_file().read_bytes() == torn, "reading mends nothing"
    revoke(ben.key_id, "again")
    revoke(carl.key_id, "third")
    assert set(revoked_keys()) == {ann.key_id, ben.key_id, carl.key_id}
    assert list_file().read_bytes().startswith(whole) and list_file().read_bytes().count(b"\n") == 3
