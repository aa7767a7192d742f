"""Where references are kept: one file a model, written whole or not at all, so that several processes may share it.

    internal/references/settings.json                what the references are of
    internal/references/s<seed>-p<pair>-<a|b>.safetensors   weights and the mask of what it trained on (0600)

Internal tier: weights of a reference were trained on private rows and carry no promise of their own.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dptrain.durable import create_once, make_folder, sync
from dptrain.errors import ConfigError
from dptrain.run_folder import read_json

SCHEMA = "dptrain.references/1"
MASK = "dptrain.included"
NAME = re.compile(r"s(\d+)-p(\d{6})-([ab])\.safetensors")
SIDES = "ab"


@dataclass(frozen=True, order=True)
class ReferenceName:
    """Which reference it is: of which audit seed, which pair, and which half of the pool."""

    seed: int
    pair: int
    side: int

    @property
    def file(self) -> str:
        """Its file's name."""
        return f"s{self.seed}-p{self.pair:06d}-{SIDES[self.side]}.safetensors"

    @property
    def training_seed(self) -> int:
        """Seed of its weights at the start and of its draws; a non-negative 63-bit number."""
        sequence = np.random.SeedSequence([self.seed, self.pair, self.side, 2])
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def half(seed: int, pair: int, units: int) -> Tensor:  # -> (units,) bool
    """Side a of a pair: a half of the pool drawn by seed; side b is the rest. Every unit is in exactly one of them."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, pair, 1])))
    mask = torch.zeros(units, dtype=torch.bool)
    mask[torch.from_numpy(generator.permutation(units)[: units // 2])] = True
    return mask


class ReferenceStore:
    """The references of one run.

    Args:
        folder: made when absent (0700).
        facts: what they are of: a folder whose facts differ is refused.
        units: of the pool.

    Raises:
        ConfigError: the folder holds references of another run, of other settings, or of other rows.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], units: int) -> None:
        self.folder, self._units = folder, units
        make_folder(folder)
        stored = {"schema": SCHEMA, "units": units, **facts}
        path = folder / "settings.json"
        create_once(path, (json.dumps(stored, indent=2) + "\n").encode())
        there = read_json(path)
        if there != stored:
            differs = [name for name in stored if not isinstance(there, dict) or there.get(name) != stored[name]]
            raise ConfigError(
                "run",
                folder,
                f"holds references of another run or of other settings ({', '.join(differs)} differ)",
                "remove the folder to train new ones",
            )

    def names(self) -> list[ReferenceName]:
        """What is there, in order; only whole pairs."""
        found = set()
        for entry in self.folder.iterdir():
            match = NAME.fullmatch(entry.name)
            if match:
                found.add(ReferenceName(int(match[1]), int(match[2]), SIDES.index(match[3])))
        return sorted(name for name in found if _partner(name) in found)

    def missing(self, seed: int, count: int) -> list[ReferenceName]:
        """The next pairs of a seed that are not there yet, as names of single references, pair after pair."""
        there = set(self.names())
        wanted, pair = [], 0
        while len(wanted) < 2 * count:
            both = [ReferenceName(seed, pair, side) for side in (0, 1)]
            wanted += both if both[0] not in there else []
            pair += 1
        return wanted

    def included(self, name: ReferenceName) -> Tensor:
        """(U,) bool: what the reference trains on, or trained on."""
        mask = half(name.seed, name.pair, self._units)
        return mask if name.side == 0 else ~mask

    def save(self, name: ReferenceName, state: dict[str, Tensor]) -> None:
        """Writes a reference; on disk when this returns, whole or not at all."""
        packed = torch.from_numpy(np.packbits(self.included(name).numpy()))
        temporary = self.folder / f".{name.file}.{secrets.token_hex(4)}.tmp"
        try:
            tensors = {key: value.contiguous().clone() for key, value in state.items()}
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            save_file(tensors | {MASK: packed}, str(temporary))
            temporary.chmod(0o600)
            sync(temporary)
            os.replace(temporary, self.folder / name.file)
            sync(self.folder)
        except SafetensorError as error:
            raise OSError(None, str(error), str(temporary)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, name: ReferenceName) -> dict[str, Tensor]:
        """A reference's state.

        Raises:
            ConfigError: the file is damaged, or its mask is not that of its name.
        """
        path = self.folder / name.file
        try:
            if not path.is_file():  # a pipe would never end
                raise OSError("it is no file")
            with safe_open(str(path), framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            packed = state.pop(MASK)
        except (OSError, SafetensorError, KeyError) as error:
            raise ConfigError("run", path, f"cannot be read ({error})", "remove it; it is trained again") from error
        if not np.array_equal(packed.numpy(), np.packbits(self.included(name).numpy())):
            raise ConfigError("run", path, "trained on other rows than its name says", "remove it; it is trained again")
        return state


def _partner(name: ReferenceName) -> ReferenceName:
    return ReferenceName(name.seed, name.pair, 1 - name.side)
