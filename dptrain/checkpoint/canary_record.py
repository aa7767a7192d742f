"""The sealed record of a run's canaries: ``internal/canaries.sealed`` (0600), never in a bundle, needed by its audit.

Whoever can read coins beside the released model can test the very guesses that the noise is there to spoil; whoever
can write them can make an audit say what they like. The file is sealed for one run: another run's does not open in its
place.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dptrain.checkpoint.seal import SealBroken, read_sealed, write_sealed
from dptrain.checkpoint.sealing_key import MasterKey
from dptrain.data.canaries import Canaries
from dptrain.durable import sync

SCHEMA = "dptrain.canaries/1"
NAME = "canaries.sealed"


def write_canaries(internal: Path, canaries: Canaries, key: MasterKey, run_id: str) -> Path:
    """Writes the record, durable when this returns; it is there whole or not at all.

    Args:
        internal: the run's folder of that name.
        canaries: what is recorded.
        key: it is sealed under.
        run_id: of the run.
    """
    facts = {
        "schema": SCHEMA,
        "kind": canaries.kind,
        "craft": canaries.craft,
        "count": len(canaries),
        "key": canaries.key.hex(),
        "included": np.packbits(canaries.included).tobytes().hex(),
    }
    temporary = internal / f".{NAME}.{secrets.token_hex(4)}.tmp"
    try:
        write_sealed(temporary, [json.dumps(facts).encode()], key, _context(run_id))
        os.rename(temporary, internal / NAME)
        sync(internal)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return internal / NAME


def read_canaries(internal: Path, keys: Mapping[str, MasterKey], run_id: str) -> Canaries:
    """The canaries of a run.

    Raises:
        SealBroken: the record is missing, changed, another run's, or sealed under a key that is not at hand.
    """
    path = internal / NAME
    try:
        facts = json.loads(bytes(read_sealed(path, keys, _context(run_id))))
        if facts["schema"] != SCHEMA:
            raise SealBroken(path, f"is of another kind ({facts['schema']})", "audit it with its own dptrain")
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(facts["included"]), dtype=np.uint8))
        included = bits[: int(facts["count"])].astype(np.bool_)
        return Canaries(facts["kind"], bytes.fromhex(facts["key"]), included, facts["craft"])
    except SealBroken:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise SealBroken(path, "holds no canaries") from error


def _context(run_id: str) -> str:
    return f"{SCHEMA} {run_id}"
