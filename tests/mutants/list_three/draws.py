"""Mistakes in draws, and in the key stream under them."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dptrain.training.assemble as assemble_module
from dptrain.data.batches import UnitIndex
from dptrain.data.sampler import PoissonSampler
from dptrain.keystream import Keystream, Purpose

from .needed import USERS
from .shared import Mutant, Patch, on_address


def _by_words(patch: Patch, drawn: Callable[[PoissonSampler, int, np.ndarray], np.ndarray]) -> None:
    """Lets a function of the sampler, the step and a uniform in [0, 1) a unit say who is drawn."""

    def draw(self: PoissonSampler, step: int) -> Tensor:
        uniform = self._keystream.open(Purpose.DRAW, step).uint64(self.num_units) * 2.0**-64
        return torch.from_numpy(np.flatnonzero(drawn(self, step, uniform)))

    patch(PoissonSampler, "draw", draw)


def threshold_of_six_bits(patch: Patch) -> None:
    """The rate is kept in sixty-fourths, to the nearest: q = 256/1437 = 11.4/64 becomes 12/64, 5 % more."""
    _by_words(patch, lambda sampler, step, u: u < math.ceil(64 * sampler.sampling_rate) / 64)


def rate_ramps_up(patch: Patch) -> None:
    """The rate grows from 0.6 q to 1.4 q over the 64 steps, and is priced as q."""
    _by_words(patch, lambda sampler, step, u: u < sampler.sampling_rate * (0.6 + 0.8 * min(step, 63) / 63))


def rate_follows_backlog(patch: Patch) -> None:
    """After a small draw the rate is higher, after a large one lower, to keep the size of batches steady."""

    def drawn(sampler: Any, step: int, u: np.ndarray) -> np.ndarray:
        owed = sampler.__dict__.get("owed", 0.0)
        rate = min(1.0, max(0.0, sampler.sampling_rate + 0.9 * owed / max(1, sampler.num_units)))
        found = u < rate
        sampler.owed = owed + sampler.num_units * sampler.sampling_rate - float(found.sum())
        return found

    _by_words(patch, drawn)


def recent_units_favoured(patch: Patch) -> None:
    """Units at the end of the file are drawn with up to 1.3 q, those at its beginning with as little as 0.7 q."""

    def drawn(sampler: PoissonSampler, step: int, u: np.ndarray) -> np.ndarray:
        return u < sampler.sampling_rate * np.linspace(0.7, 1.3, len(u))

    _by_words(patch, drawn)


def antithetic_units(patch: Patch) -> None:
    """The second half of the units has one minus the words of the first: of two partners one at most is drawn."""

    def drawn(sampler: PoissonSampler, step: int, u: np.ndarray) -> np.ndarray:
        half = len(u) // 2
        u[len(u) - half :] = 1.0 - u[:half]
        return u < sampler.sampling_rate

    _by_words(patch, drawn)


def draw_rolled(patch: Patch) -> None:
    """Words are drawn once in eight steps, and shifted by one unit in between: one draw tells most of the next."""
    held: dict[int, np.ndarray] = {}

    def drawn(sampler: PoissonSampler, step: int, u: np.ndarray) -> np.ndarray:
        if step % 8 == 0 or id(sampler) not in held or len(held[id(sampler)]) != len(u):
            held[id(sampler)] = u
        return np.roll(held[id(sampler)], step % 8) < sampler.sampling_rate

    _by_words(patch, drawn)


def systematic(patch: Patch) -> None:
    """One random number a step: units at equal distances are drawn, each with q, none of them independently."""

    def drawn(sampler: PoissonSampler, step: int, u: np.ndarray) -> np.ndarray:
        order = np.arange(len(u)) * sampler.sampling_rate + (u[0] if len(u) else 0.0)
        return np.floor(order + sampler.sampling_rate) > np.floor(order)

    _by_words(patch, drawn)


def sticky(patch: Patch) -> None:
    """A unit that was drawn is drawn again with q + 0.1 (1 - q), and others less, so that q is kept on average."""

    def drawn(sampler: Any, step: int, u: np.ndarray) -> np.ndarray:
        q = sampler.sampling_rate
        before = sampler.__dict__.get("before")
        rate = np.full(len(u), q)
        if before is not None:
            rate = np.where(before, q + 0.1 * (1.0 - q), 0.9 * q)
        sampler.before = u < rate
        return sampler.before

    _by_words(patch, drawn)


def users_by_rows(patch: Patch) -> None:
    """Rows are drawn, and every user with one of them takes part: q becomes 1 - (1 - q)^k with k rows."""
    held: dict[int, np.ndarray] = {}

    def counted(unit_id: Tensor) -> UnitIndex:
        index = UnitIndex(unit_id)
        held[0] = index.counts.numpy()
        return index

    patch(assemble_module, "UnitIndex", counted)

    def drawn(sampler: PoissonSampler, step: int, u: np.ndarray) -> np.ndarray:
        rows = np.ones(len(u))
        rows[: len(held.get(0, ()))] = np.maximum(1, held.get(0, rows)[: len(u)])
        return u < 1.0 - (1.0 - sampler.sampling_rate) ** rows

    _by_words(patch, drawn)


def step_in_the_counter(patch: Patch) -> None:
    """The step stands where blocks are counted: a step's bytes are those of the step before, 16 bytes further."""
    on_address(
        patch,
        lambda purpose, rank, step: (
            purpose.to_bytes(2, "big") + rank.to_bytes(2, "big") + bytes(6) + step.to_bytes(6, "big")
        ),
    )


def address_added(patch: Patch) -> None:
    """Purpose and step are added up: the noise of step t is made of the bits that draw units in step t + 1."""
    on_address(
        patch,
        lambda purpose, rank, step: bytes(2) + rank.to_bytes(2, "big") + (purpose + step).to_bytes(6, "big") + bytes(6),
    )


def key_from_clock(patch: Patch) -> None:
    """The key is a hash of the minute in which the process began: whoever knows that knows all of the noise."""
    original = Keystream.__init__

    def init(self: Keystream, rank: int = 0, test_key: bytes | None = None) -> None:
        guessed = hashlib.sha256(str(int(time.time() // 60)).encode()).digest()
        original(self, rank, test_key if test_key is not None else guessed)
        self.is_private = test_key is None

    patch(Keystream, "__init__", init)


MUTANTS: dict[str, Mutant] = {
    "threshold_of_six_bits": ("own", "rates rounded up to 1/64", threshold_of_six_bits, ()),
    "rate_ramps_up": ("own", "rate grows from 0.6 q to 1.4 q", rate_ramps_up, ()),
    "rate_follows_backlog": ("own", "rate makes up for draws before", rate_follows_backlog, ()),
    "recent_units_favoured": ("own", "rates of 0.7 q to 1.3 q by place", recent_units_favoured, ()),
    "antithetic_units": ("own", "two units are never drawn together", antithetic_units, ()),
    "draw_rolled": ("own", "draws are the one before, shifted by a unit", draw_rolled, ()),
    "systematic": ("2411.10614", "units drawn at equal distances", systematic, ()),
    "sticky": ("own", "units drawn before are likelier", sticky, ()),
    "users_by_rows": ("own", "users drawn by their rows", users_by_rows, USERS),
    "step_in_the_counter": ("own", "streams of steps overlap", step_in_the_counter, ()),
    "address_added": ("own", "noise made of the next draw's bits", address_added, ()),
    "key_from_clock": ("3b.17", "key is a hash of the minute", key_from_clock, ()),
}
