"""How files are broken for ``fuzz.py``: bytes, parsed JSON, weights, and hostile things to put in."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from copy import deepcopy
from typing import Any

RAN = "fuzz-canary-ran"
"""Name of the folder that a canary makes."""


class Canary:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (RAN,)


PICKLE = pickle.dumps(Canary())
TEXTS = [
    f"!!python/object/apply:os.mkdir [{RAN}]",
    "!!python/module:antigravity",
    f"{{_target_: os.mkdir, path: {RAN}}}",
    f"_target_: os.mkdir\npath: {RAN}",
    "${oc.env:FUZZ_SECRET}",
    "${oc.decode:${oc.env:FUZZ_SECRET}}",
    "${oc.${run.id}:FUZZ_SECRET}",
    "{{ cycler.__init__.__globals__.os.mkdir('" + RAN + "') }}",
    f"__import__('os').mkdir('{RAN}')",
    "${hydra:runtime.cwd}",
    "../../../../etc/passwd",
    "\x1b[2J\x07",
    "\ud800",
    "a" * 5000,
    "",
    "~",
    "=",
    "[" * 50,
    "ed25519:" + "0" * 32,
]
VALUES: list[Any] = [None, True, False, 0, -1, 1, 2, 0.0, -0.0, 1e308, -1e-308, 0.5, 2**31, 2**63 - 1, -(2**63), [], {}]
VALUES += [[1] * 100, [[[[]]]], {"a": {"b": 1}}, {"type": "gaussian", "noise_multiplier": 0.0}, {"schema": "x"}]
RAW = [b"NaN", b"1e999", b"9" * 400, b"[" * 100, b"\x00", b"\xff\xfe", b'"\\ud800"', PICKLE, b"{", b"null", b"-"]
HYDRA = [
    f"hydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n      path: {RAN}\n",
    "hydra:\n  callbacks:\n    x:\n      _target_: pandas.read_pickle\n      filepath_or_buffer: evil.pkl\n",
    "hydra:\n  launcher:\n    _target_: numpy.load\n    file: evil.pkl\n    allow_pickle: true\n",
    "hydra:\n  job_logging:\n    formatters:\n      x:\n        (): os.mkdir\n        path: " + RAN + "\n",
    "hydra:\n  job:\n    env_set:\n      DPTRAIN_HOME: elsewhere\n",
]


def broken_bytes(data: bytes, draw: random.Random) -> bytes:
    """A few random edits of a file's bytes."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(made) + 1)
        match draw.randrange(7):
            case 0 if made:
                made[place % len(made)] ^= 1 << draw.randrange(8)
            case 1 if made:
                made[place % len(made)] = draw.randrange(256)
            case 2:
                del made[place : place + draw.choice((1, 3, 40, 1000))]
            case 3:
                made[place:place] = made[place : place + draw.choice((1, 8, 200))]
            case 4:
                made[place:place] = draw.choice(RAW)
            case 5:
                made[place:place] = draw.choice(TEXTS).encode("utf-8", "surrogatepass")
            case _:
                del made[place:]
    return bytes(made)


def broken_value(value: Any, draw: random.Random) -> Any:
    """A few random edits of parsed JSON: leaves, names and lists."""
    made = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        nodes = [node for node in _nodes(made) if isinstance(node, dict | list) and node]
        if not nodes:
            return draw.choice(VALUES)
        node = draw.choice(nodes)
        key: Any = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        held = node[key]
        match draw.randrange(6):
            case 0:
                node[key] = deepcopy(draw.choice(VALUES))
            case 1:
                node[key] = draw.choice(TEXTS).encode("utf-8", "replace").decode()
            case 2 if isinstance(held, int | float) and not isinstance(held, bool):
                node[key] = draw.choice([held * 0.9, held + 1, -held, held * 1e6, int(held), str(held)])
            case 3 if isinstance(node, dict):
                del node[key]
            case 4 if isinstance(node, dict):
                name = draw.choice(["x", "_target_", "__class__", "type", "event", "events", str(key) + " "])
                node[name] = deepcopy(held)
            case 5 if isinstance(node, list):
                node.insert(key, deepcopy(held))
            case _:
                node[key] = [held]
    return made


def _nodes(value: Any) -> list[Any]:
    found = [value]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        found += _nodes(inner)
    return found


def broken_weights(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header was edited as JSON, or whose bytes were."""
    if draw.random() < 0.4:
        return broken_bytes(data, draw)
    size = struct.unpack("<Q", data[:8])[0]
    header = broken_value(json.loads(data[8 : 8 + size]), draw)
    text = json.dumps(header).encode()
    claimed = len(text) if draw.random() < 0.9 else draw.choice([0, 1 << 40, (1 << 64) - 1, len(text) + 1])
    return struct.pack("<Q", claimed) + text + data[8 + size :]
