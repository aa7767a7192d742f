"""Signatures hold for what was signed and nothing else; the key stays private."""

from __future__ import annotations

import base64

import pytest

from dptrain.errors import ConfigError
from dptrain.signing import canonical, key_id, load_signer, signature_holds, trusted_keys


def test_a_signature_holds_for_its_message_and_key_alone(tmp_path):
    signer, other = load_signer(tmp_path / "a.key"), load_signer(tmp_path / "b.key")
    signature = signer.sign(b"message")
    assert signature_holds(signer.public_key, signature, b"message")
    assert not signature_holds(signer.public_key, signature, b"massage")
    assert not signature_holds(other.public_key, signature, b"message")
    for wrong in ("", "AAAA", signature[:-4], "not base64!"):
        assert not signature_holds(signer.public_key, wrong, b"message")
        assert not signature_holds(wrong, signature, b"message")


def test_the_key_is_made_once_private_and_comes_back(tmp_path):
    file = tmp_path / "room" / "signing.key"
    first = load_signer(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert load_signer(file).public_key == first.public_key
    assert first.public_key not in file.read_text()
    assert repr(first) == f"Signer({first.key_id})"


def test_a_key_that_others_can_read_is_refused(tmp_path):
    load_signer(tmp_path / "k")
    (tmp_path / "k").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_signer(tmp_path / "k")


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "k").write_text("hello")
    (tmp_path / "k").chmod(0o600)
    with pytest.raises(ConfigError, match="not a PEM private key"):
        load_signer(tmp_path / "k")


def test_a_key_of_an_unknown_kind_is_refused(tmp_path):
    """PKCS #8 in order but for the object identifier of its algorithm, as a flipped bit leaves it."""
    load_signer(tmp_path / "k")
    begin, body, end = (tmp_path / "k").read_bytes().strip().split(b"\n")
    known = base64.b64decode(body)
    assert known.count(bytes.fromhex("2b6570")) == 1  # 1.3.101.112, Ed25519
    damaged = base64.b64encode(known.replace(bytes.fromhex("2b6570"), bytes.fromhex("336570")))
    (tmp_path / "k").write_bytes(b"\n".join([begin, damaged, end, b""]))
    with pytest.raises(ConfigError, match="not a PEM private key"):
        load_signer(tmp_path / "k")


def test_trust_is_what_lies_in_the_room(tmp_path, monkeypatch):
    monkeypatch.setenv("DPTRAIN_HOME", str(tmp_path))
    monkeypatch.delenv("DPTRAIN_SIGNING_KEY", raising=False)
    assert trusted_keys() == {}
    own, friend = load_signer(), load_signer(tmp_path / "friend.key")
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / "friend.pub").write_text(friend.public_key + "\n")
    assert trusted_keys() == {s.key_id: s.public_key for s in (own, friend)}
    (tmp_path / "trusted" / "odd.pub").write_text("odd")
    with pytest.raises(ConfigError, match=r"odd\.pub"):
        trusted_keys()


def test_canonical_form_is_one_and_refuses_nan():
    assert canonical({"b": [1, {"d": 2, "c": 3}], "a": "ü"}) == canonical({"a": "ü", "b": [1, {"c": 3, "d": 2}]})
    with pytest.raises(ValueError):
        canonical({"a": float("nan")})


def test_key_ids_name_keys(tmp_path):
    signer = load_signer(tmp_path / "k")
    assert signer.key_id == key_id(signer.public_key)
    with pytest.raises(ConfigError):
        key_id("AAAA")
