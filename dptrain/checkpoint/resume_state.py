"""Resume states: what a run needs to go on after a stop or a kill. Sealed, internal tier, never to leave the building.

    resume/                     0700
        000003-5f0c.../         one state; the number rises with every state written
            facts.sealed        JSON: counters, settings, digests, optimizer without its tensors
            tensors.sealed      safetensors: weights, tensors of the optimizer, public random state
        journal                 steps that may have been executed, where no ledger counts them
        lock                    held by the process that runs the run

A state is written into a new folder, synced, and renamed into place: it is there whole or not at all, and an older one
is removed only after. Both files are sealed as part of the folder of this name, so that halves of two states, or an old
state under a newer number, do not open.

Guarantee: a state holds no key of draws or noise, and no draw. It says where the weights stand, not how much was spent:
that is counted elsewhere, before the noise, so that an old state costs steps and never privacy.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dptrain.checkpoint.seal import SealBroken, read_sealed, write_sealed
from dptrain.checkpoint.sealing_key import MasterKey
from dptrain.durable import sync
from dptrain.errors import ConfigError

SCHEMA = "dptrain.resume/1"
FACTS, TENSORS = "facts.sealed", "tensors.sealed"
_NAME = re.compile(r"(\d{6,12})-[0-9a-f]{16}")


@dataclass(frozen=True)
class ResumeState:
    """One state: plain data, and tensors on the CPU."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def write_state(room: Path, state: ResumeState, key: MasterKey, keep: int) -> Path:
    """Writes a state beside the others, durable and readable when this returns; then removes all but ``keep``.

    Raises:
        OSError: the disk is full or gone; the states before are as they were.
    """
    numbers = [number for number, _ in _states(room)]
    name = f"{max(numbers, default=0) + 1:06d}-{secrets.token_hex(8)}"
    temporary = room / f".{name}.tmp"
    temporary.mkdir(mode=0o700)
    try:
        facts = json.dumps({"schema": SCHEMA, **state.facts}).encode()
        try:
            tensors = save(state.tensors)
        except SafetensorError as error:
            raise OSError(None, str(error), str(room)) from error
        write_sealed(temporary / FACTS, [facts], key, _context(name, FACTS))
        write_sealed(temporary / TENSORS, [tensors], key, _context(name, TENSORS))
        sync(temporary)
        os.rename(temporary, room / name)
        sync(room)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for _, old in _states(room)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return room / name


def read_newest(room: Path, keys: Mapping[str, MasterKey]) -> tuple[ResumeState, list[str]]:
    """(the newest state that opens, one line for every newer one that does not).

    Raises:
        ConfigError: there is none, or none opens; the reason of the newest is given.
    """
    troubles: list[SealBroken] = []
    for _, folder in reversed(_states(room)):
        try:
            return read_state(folder, keys), [str(trouble) for trouble in troubles]
        except SealBroken as trouble:
            troubles.append(trouble)
    if troubles:
        raise troubles[0]
    remedy = "only runs with checkpoint.every above 0 keep one, and finished runs drop it; start a new run"
    raise ConfigError("resume", room.parent, "holds no resume state", remedy)


def read_state(folder: Path, keys: Mapping[str, MasterKey]) -> ResumeState:
    """One state, checked to its last byte. Raises SealBroken where it does not open."""
    facts = json.loads(bytes(read_sealed(folder / FACTS, keys, _context(folder.name, FACTS))))
    if facts.get("schema") != SCHEMA:
        raise SealBroken(folder, f"is of another kind ({facts.get('schema')})", "resume it with its own dptrain")
    tensors = load(bytes(read_sealed(folder / TENSORS, keys, _context(folder.name, TENSORS))))
    return ResumeState(facts, tensors)


def clear_leftovers(room: Path) -> None:
    """Removes what a killed writer left half written."""
    for folder in room.glob(".*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


class StateWriter:
    """Writes states on a thread of its own, one at a time; training never waits for the disk.

    Args:
        room: folder of the states, mode 0700.
        key: they are sealed under.
        keep: number of states kept.
    """

    def __init__(self, room: Path, key: MasterKey, keep: int) -> None:
        self._room, self._key, self._keep = room, key, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="resume-state")
        self._under_way: Future[Path] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a state is being written."""
        return self._under_way is not None and not self._under_way.done()

    def submit(self, state: ResumeState) -> None:
        """Starts writing; ``state`` must not change any more. Waits for a state that is under way."""
        self.wait()
        self._under_way = self._pool.submit(write_state, self._room, state, self._key, self._keep)

    def wait(self) -> OSError | None:
        """Waits for what is under way; what kept it from the disk, or None. The state before it is still there."""
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return None
        try:
            under_way.result()
        except OSError as error:
            return error
        return None

    def close(self) -> OSError | None:
        """Waits, then ends the thread."""
        trouble = self.wait()
        self._pool.shutdown()
        return trouble


def encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Nested data as JSON, with copies of its tensors put into ``tensors`` under ``name``.

    Raises:
        ConfigError: something that is neither plain data nor a tensor.
    """
    if isinstance(value, Tensor):
        tensors[name] = on_cpu(value)
        return {"tensor": name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {"dict": [[key, encoded(inner, f"{name}.{key}", tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encoded(inner, f"{name}.{place}", tensors) for place, inner in enumerate(value)]}
    raise ConfigError(
        "optimizer", type(value).__name__, f"{name} cannot be kept in a resume state", "set checkpoint.every=0"
    )


def decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``encoded``."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: decoded(part, tensors) for key, part in inner}
    parts = [decoded(part, tensors) for part in inner]
    return parts if kind == "list" else tuple(parts)


def on_cpu(tensor: Tensor) -> Tensor:
    """A copy in CPU memory that shares nothing with the original."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def public_random_state(device: torch.device) -> dict[str, Tensor]:
    """State of torch's own generators: initialisation, augmentation, shuffles. Draws and noise never come from them."""
    found = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["random.cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore_random_state(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Puts back what ``public_random_state`` found; on another kind of device, what applies there."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in tensors:
        with suppress(RuntimeError):  # another model of device may keep another state
            torch.cuda.set_rng_state(tensors["random.cuda"], device)


def _states(room: Path) -> list[tuple[int, Path]]:
    """(number, folder) of the states, oldest first."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in room.iterdir():
            match = _NAME.fullmatch(entry.name)
            if match is not None and entry.is_dir():
                found.append((int(match[1]), entry))
    return sorted(found)


def _context(name: str, part: str) -> str:
    return f"{SCHEMA} {name} {part}"
