"""What somebody may do to a bundle and its statement, and how it must be named: used by test_faults_tamper_table.py."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bundle_maker import edit, list_anew, open_room, release, restate, sign_anew

from dptrain.bundle_files import MANIFEST, SIGNATURE
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.seal import sign_statement
from dptrain.privacy.statement import internal_statement
from dptrain.revoked_keys import revoke
from dptrain.run_folder import read_json, write_json
from dptrain.signing import home, load_signer


class Room:
    """Two runs of one account, the second after the first, and a stranger's key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = open_room()
        self.first = release(self.ledger, folder, "first", seed=1)
        self.copies = self._copy_of_ledger(folder / "backup")
        self.bundle = release(self.ledger, folder, "second", seed=2)
        self.stranger = load_signer(folder / "stranger.key")
        self.settings: list[str] = []

    def _copy_of_ledger(self, folder: Path) -> list[Path]:
        self.ledger.close()
        folder.mkdir()
        return [Path(shutil.copy(file, folder)) for file in home().glob("ledger.db*")]

    def restore_ledger(self) -> None:
        """As a backup of yesterday does: the ledger, and not the heads that are remembered beside it."""
        self.ledger.close()
        for file in home().glob("ledger.db*"):
            file.unlink()
        for kept in self.copies:
            shutil.copy(kept, home())

    @property
    def weights(self) -> Path:
        return self.bundle / "model.safetensors"


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(bytes(data))


def write(file: Path, data: bytes) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)


def moved(file: Path, name: str) -> None:
    file.rename(file.with_name(name))


def behind_link(file: Path) -> None:
    elsewhere = file.parent.parent / f"elsewhere-{file.name}"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def other_weights(room: Room) -> None:
    room.weights.write_bytes((room.first / "model.safetensors").read_bytes())


def other_weights_listed(room: Room) -> None:
    other_weights(room)
    list_anew(room.bundle)


def other_weights_signed_by_a_stranger(room: Room) -> None:
    other_weights(room)
    sign_anew(room.bundle, room.stranger)


def other_weights_signed_by_the_owner(room: Room) -> None:
    other_weights(room)
    sign_anew(room.bundle)


def classes_renamed(room: Room) -> None:
    edit(room.bundle / "model.json", lambda m: m["class_names"].reverse())


def classes_renamed_and_signed(room: Room) -> None:
    classes_renamed(room)
    sign_anew(room.bundle)


def another_model_named(room: Room) -> None:
    edit(room.bundle / "model.json", lambda m: m.update(name="linear", options={}))
    list_anew(room.bundle)


def whole_stranger(room: Room) -> None:
    restate(room.bundle, lambda s: None, room.stranger)


def manifest_respelled(room: Room) -> None:
    file = room.bundle / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text())))


def manifest_with_a_note(room: Room) -> None:
    edit(room.bundle / MANIFEST, lambda m: m.update(note="approved by the board"))


def name_twice(file: Path) -> None:
    file.write_text(file.read_text().replace("{", '{\n  "schema": "x",', 1))


def spare_bits(text: str) -> str:
    """The same 64 bytes in another spelling: four bits before ``==`` belong to nobody."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    assert text.endswith("==")
    return text[:-3] + letters[letters.index(text[-3]) ^ 1] + "=="


def signature_respelled(room: Room) -> None:
    edit(room.bundle / SIGNATURE, lambda s: s.update(signature=spare_bits(s["signature"])))


def checkpoint_is_a_link(room: Room) -> None:
    shutil.rmtree(room.bundle)
    room.bundle.symlink_to(room.first)


def older_bundle(room: Room) -> None:
    """A rollback: what is put there is whole, honest and signed, and not the newest that is known."""
    later = room.folder / "seen.json"
    shutil.copy(room.bundle / "statement.json", later)
    shutil.rmtree(room.bundle)
    shutil.copytree(room.first, room.bundle)
    shutil.copy(room.first / "statement.json", room.bundle.parent / "statement.json")
    room.settings = [f"after=[{later}]"]


def bundle_of_another_run(room: Room) -> None:
    shutil.rmtree(room.bundle)
    shutil.copytree(room.first, room.bundle)


def revoked(room: Room) -> None:
    revoke(load_signer().key_id, "the laptop was stolen")


def revoked_list_cut(room: Room) -> None:
    revoke(load_signer().key_id, "the laptop was stolen")
    (home() / "revoked.jsonl").unlink()


BUNDLE: list[tuple[str, Callable[[Room], object], str]] = [
    ("a bit of the weights", lambda r: flip(r.weights, -3), "model.safetensors does not match"),
    ("a bit of the weights' header", lambda r: flip(r.weights, 20), "model.safetensors does not match"),
    ("weights truncated", lambda r: write(r.weights, r.weights.read_bytes()[:-8]), "model.safetensors does not match"),
    (
        "bytes after the weights",
        lambda r: write(r.weights, r.weights.read_bytes() + b"0"),
        "model.safetensors does not",
    ),
    ("weights emptied", lambda r: write(r.weights, b""), "model.safetensors does not match"),
    ("weights are a pickle", lambda r: write(r.weights, pickle.dumps({})), "model.safetensors does not match"),
    ("weights missing", lambda r: r.weights.unlink(), "model.safetensors is missing"),
    ("weights of another bundle of the same signer", other_weights, "model.safetensors does not match"),
    ("the same, manifest made to agree", other_weights_listed, "manifest.json or the signature itself was changed"),
    (
        "the same, signed by a stranger",
        other_weights_signed_by_a_stranger,
        "signature.json is by another key",
    ),
    (
        "the same, signed with the owner's key",
        other_weights_signed_by_the_owner,
        "model.safetensors is not the file that",
    ),
    ("classes renamed", classes_renamed, "model.json does not match"),
    ("classes renamed, signed with the owner's key", classes_renamed_and_signed, "model.json is not the file that"),
    ("another model named, manifest made to agree", another_model_named, "manifest.json or the signature itself"),
    ("model description missing", lambda r: (r.bundle / "model.json").unlink(), "model.json is missing"),
    ("a file renamed", lambda r: moved(r.weights, "weights.safetensors"), "weights.safetensors is not listed"),
    ("a name in other case", lambda r: moved(r.bundle / "model.json", "Model.json"), "Model.json is not listed"),
    ("a file more", lambda r: write(r.bundle / "setup.py", b"x"), "setup.py is not listed"),
    ("a hidden file", lambda r: write(r.bundle / ".hidden", b"x"), ".hidden is not listed"),
    ("a file under .git", lambda r: write(r.bundle / ".git" / "config", b"x"), ".git is not listed"),
    ("a .gitattributes file", lambda r: write(r.bundle / ".gitattributes", b"x"), ".gitattributes is not listed"),
    ("an empty folder", lambda r: (r.bundle / "empty").mkdir(), "empty is not listed"),
    (
        "a pickle beside the weights",
        lambda r: write(r.bundle / "model.pth", pickle.dumps({})),
        "model.pth is not listed",
    ),
    ("weights behind a link", lambda r: behind_link(r.weights), "model.safetensors is missing: a link"),
    ("manifest behind a link", lambda r: behind_link(r.bundle / MANIFEST), "manifest.json is missing: a link"),
    ("a pipe instead of the weights", lambda r: pipe(r.weights), "model.safetensors is missing"),
    ("weights of mode 777", lambda r: r.weights.chmod(0o777), "model.safetensors can be written by everybody"),
    ("weights marked as a program", lambda r: r.weights.chmod(0o700), "model.safetensors is marked as a program"),
    ("statement of mode 666", lambda r: (r.bundle / "statement.json").chmod(0o666), "statement.json can be written by"),
    ("a set-user-id bit", lambda r: (r.bundle / "model.json").chmod(0o4600), "model.json is marked as a program"),
    ("the folder of mode 777", lambda r: r.bundle.chmod(0o777), "checkpoint can be written by everybody"),
    ("manifest missing", lambda r: (r.bundle / MANIFEST).unlink(), "manifest.json is missing"),
    ("manifest emptied", lambda r: write(r.bundle / MANIFEST, b""), "manifest.json cannot be read"),
    ("manifest with a note", manifest_with_a_note, "manifest.json holds more than digests"),
    ("manifest spelled otherwise", manifest_respelled, "manifest.json holds more than digests, or spells"),
    ("manifest with a name twice", lambda r: name_twice(r.bundle / MANIFEST), "manifest.json cannot be read"),
    (
        "manifest lists a file more",
        lambda r: edit(r.bundle / MANIFEST, lambda m: m["files"].update(x=m["files"]["model.json"])),
        "manifest.json is not a manifest",
    ),
    ("signature missing", lambda r: (r.bundle / SIGNATURE).unlink(), "signature.json is missing"),
    (
        "signature of another bundle",
        lambda r: shutil.copy(r.first / SIGNATURE, r.bundle),
        "signature.json does not hold",
    ),
    ("signature spelled otherwise", signature_respelled, "signature.json does not hold"),
    ("signature with a field more", lambda r: edit(r.bundle / SIGNATURE, lambda s: s.update(x=1)), "signature.json"),
    ("everything signed by a stranger", whole_stranger, "signer: .* is not trusted here"),
    ("checkpoint is a link to another bundle", checkpoint_is_a_link, "checkpoint is a link"),
    ("the bundle of another run", bundle_of_another_run, "statement.json of the run folder is not that"),
    ("rollback: an older bundle, validly signed", older_bundle, "rollback: statement.json was signed at row"),
    ("signed by a key that was revoked", revoked, "was revoked here on .* stolen"),
    ("the same, and the list of revoked keys is gone", revoked_list_cut, "revoked.jsonl has lost it"),
]


def stated(room: Room, change: Callable[[dict[str, Any]], object]) -> None:
    """The statement edited as anyone can: bundle and copy agree, nothing is signed again."""
    edit(room.bundle / "statement.json", lambda s: (change(s), None)[1])
    shutil.copy(room.bundle / "statement.json", room.bundle.parent / "statement.json")
    list_anew(room.bundle)


def half_claim(statement: dict[str, Any]) -> None:
    statement["guarantee"]["epsilon"] /= 2


def claim_signed_by_a_stranger(room: Room) -> None:
    restate(room.bundle, half_claim, room.stranger)


def claim_of_a_stranger_under_the_owners_name(room: Room) -> None:
    restate(room.bundle, half_claim, room.stranger)
    own = load_signer()
    stated(room, lambda s: s["integrity"].update(key_id=own.key_id, public_key=own.public_key))


def statement_of_another_run(room: Room) -> None:
    shutil.copy(room.first / "statement.json", room.bundle / "statement.json")
    shutil.copy(room.first / "statement.json", room.bundle.parent / "statement.json")
    sign_anew(room.bundle)


def respelled(room: Room) -> None:
    file = room.bundle / "statement.json"
    file.write_text(json.dumps(json.loads(file.read_text())))


def reordered_and_listed(room: Room) -> None:
    file = room.bundle / "statement.json"
    write_json(file, dict(reversed(list(read_json(file).items()))))
    list_anew(room.bundle)


def internal_posing_as_public(room: Room) -> None:
    statement = internal_statement(read_json(room.bundle / "statement.json"), {"manifest": {"digest": "x"}})
    write_json(room.bundle / "statement.json", sign_statement({**statement, "tier": "public"}, load_signer()))
    sign_anew(room.bundle)


def ledger_put_back(room: Room) -> None:
    room.restore_ledger()


def ledger_of_another(room: Room) -> None:
    room.ledger.close()
    for file in home().glob("ledger.db*"):
        file.unlink()
    heads = list((home() / "heads").glob("*.json"))
    kept = [(file, file.read_text()) for file in heads]
    for file in heads:
        file.unlink()
    open_ledger(None).close()
    for file, text in kept:
        file.write_text(text)


STATEMENT: list[tuple[str, Callable[[Room], object], str]] = [
    ("epsilon lowered", lambda r: stated(r, half_claim), "statement was changed after it was signed"),
    ("fewer steps", lambda r: stated(r, lambda s: s["sampling"].update(steps_done=1)), "statement was changed"),
    ("another run's name", lambda r: stated(r, lambda s: s["identity"].update(run_id="x")), "statement was changed"),
    (
        "another ledger head",
        lambda r: stated(r, lambda s: s["composition"]["head"].update(sequence=2)),
        "statement was changed",
    ),
    ("less spent", lambda r: stated(r, lambda s: s["composition"].update(total=0.0)), "statement was changed"),
    (
        "another digest of the weights",
        lambda r: stated(r, lambda s: s["artifact"]["files"]["model.safetensors"].update(sha256="0" * 64)),
        "statement was changed",
    ),
    ("a sentence added", lambda r: stated(r, lambda s: s.update(sentence=s["sentence"] + " And more.")), "was changed"),
    ("a field more", lambda r: stated(r, lambda s: s.update(approved=True)), "schema: .*approved"),
    ("signature taken out", lambda r: stated(r, lambda s: s.update(integrity=None)), "signature: it is not signed"),
    (
        "signature spelled otherwise",
        lambda r: stated(r, lambda s: s["integrity"].update(signature=spare_bits(s["integrity"]["signature"]))),
        "statement was changed",
    ),
    (
        "truncated",
        lambda r: write(r.bundle / "statement.json", b'{"schema": "dptr'),
        "schema: statement.json is not JSON",
    ),
    ("a name twice", lambda r: name_twice(r.bundle / "statement.json"), "schema: statement.json names 'schema' twice"),
    ("spelled otherwise", respelled, "statement.json does not match its digest"),
    ("fields in another order, manifest made to agree", reordered_and_listed, "manifest.json or the signature itself"),
    ("missing", lambda r: (r.bundle / "statement.json").unlink(), "statement.json"),
    ("lower claim, signed by a stranger", claim_signed_by_a_stranger, "signer: .* is not trusted here"),
    ("the same, under the owner's name", claim_of_a_stranger_under_the_owners_name, "signature"),
    ("lower claim, signed with the owner's key", lambda r: restate(r.bundle, half_claim), "epsilon: claimed"),
    (
        "less spent, signed with the owner's key",
        lambda r: restate(r.bundle, lambda s: s["composition"].update(total=0.0)),
        "composition: remaining is",
    ),
    (
        "another entry of the ledger, signed with the owner's key",
        lambda r: restate(r.bundle, lambda s: s["composition"].update(entry=3)),
        "ledger: entry 3 of the ledger is of another run",
    ),
    ("statement of another run of the signer", statement_of_another_run, "model.safetensors is not the file that"),
    ("internal tier posing as public", internal_posing_as_public, "schema: the block 'internal'"),
    ("rollback: the ledger put back to an older copy", ledger_put_back, "ledger: row .* named outside of the ledger"),
    ("the ledger replaced by another", ledger_of_another, "ledger: another ledger lies where this one lay"),
]
