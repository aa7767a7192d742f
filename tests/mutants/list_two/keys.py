"""Mistakes in the key stream."""

from __future__ import annotations

from dptrain.keystream import Keystream, Purpose

from .shared import Mutant, Patch, _on_address


def draws_in_pairs(patch: Patch) -> None:
    """The bytes of a draw are those of step // 2: every draw is taken twice."""
    _on_address(patch, lambda purpose, step: (purpose, step // 2 if purpose == Purpose.DRAW else step))


def noise_wraps(patch: Patch) -> None:
    """The noise's address holds one byte of the step: noise repeats after 256 steps."""
    _on_address(patch, lambda purpose, step: (purpose, step & 0xFF if purpose == Purpose.NOISE else step))


def purposes_shared(patch: Patch) -> None:
    """The address leaves out the purpose: the bits that draw units are those of the noise."""
    _on_address(patch, lambda purpose, step: (0, step))


def noise_address_off(patch: Patch) -> None:
    """The noise of step t is addressed as t, but from t = 1 on as t - 1: steps 0 and 1 share it."""
    _on_address(patch, lambda purpose, step: (purpose, max(0, step - 1) if purpose == Purpose.NOISE else step))


def fixed_key(patch: Patch) -> None:
    """The key is a constant, and nothing says so."""
    original = Keystream.__init__

    def init(self: Keystream, rank: int = 0, test_key: bytes | None = None) -> None:
        original(self, rank, test_key if test_key is not None else b"k" * 32)
        self.is_private = test_key is None

    patch(Keystream, "__init__", init)


MUTANTS: dict[str, Mutant] = {
    "draws_in_pairs": ("own", "every draw is used in two steps", draws_in_pairs, ()),
    "noise_wraps": (
        "own",
        "noise repeats after 256 steps",
        noise_wraps,
        ("privacy.epochs=null", "privacy.steps=300"),
    ),
    "purposes_shared": ("own", "draws and noise made of the same bits", purposes_shared, ()),
    "noise_address_off": ("own", "steps 0 and 1 share their noise", noise_address_off, ()),
    "fixed_key": ("own", "key stream's key is a constant", fixed_key, ()),
}
