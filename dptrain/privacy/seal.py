"""Block ``integrity`` of a statement: an Ed25519 signature over the canonical bytes of everything else.

What is signed is the statement as canonical JSON (``signing.canonical``) with the signature itself left out, so that
the key, its name and the digest are signed too. A statement names its schema, a ledger head another: neither can pass
for the other. Source: RFC 8032.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from dptrain.signing import Signer, canonical, signature_holds

ALGORITHM = "ed25519"
RECIPE = (
    "signature: Ed25519 over this statement as JSON with sorted keys, no spaces, ASCII, without integrity.signature; "
    "digest: SHA-256 of the same without integrity; 'dptrain verify path=THIS' checks both and recomputes the numbers"
)


def content_digest(statement: Mapping[str, Any]) -> str:
    """SHA-256 of everything but ``integrity``, in hexadecimal digits."""
    return hashlib.sha256(canonical({k: v for k, v in statement.items() if k != "integrity"})).hexdigest()


def statement_digest(statement: Mapping[str, Any]) -> str:
    """SHA-256 of a statement as it stands, signature included, in hexadecimal digits: its name in tags."""
    return hashlib.sha256(canonical(dict(statement))).hexdigest()


def sign_statement(statement: Mapping[str, Any], signer: Signer) -> dict[str, Any]:
    """The statement with its ``integrity`` block; one that is there already is replaced."""
    block = {
        "algorithm": ALGORITHM,
        "key_id": signer.key_id,
        "public_key": signer.public_key,
        "digest": content_digest(statement),
        "recipe": RECIPE,
    }
    unsigned = {**statement, "integrity": block}
    return {**unsigned, "integrity": {**block, "signature": signer.sign(canonical(unsigned))}}


def signed_by(statement: Mapping[str, Any], public_key: str) -> bool:
    """Whether ``public_key`` signed exactly this; malformed blocks never hold."""
    block = statement.get("integrity")
    if not isinstance(block, dict) or block.get("algorithm") != ALGORITHM:
        return False
    bare = {key: value for key, value in block.items() if key != "signature"}
    signature = block.get("signature")
    if not isinstance(signature, str) or block.get("public_key") != public_key:
        return False
    if block.get("digest") != content_digest(statement):
        return False
    return signature_holds(public_key, signature, canonical({**statement, "integrity": bare}))
