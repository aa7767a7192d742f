"""A stand as small as checks can be asked about, for the tests beside it."""

from __future__ import annotations

from dptrain.compose import compose
from dptrain.conformance.kit import open_conform
from dptrain.conformance.stand import Stand, build_stand

TINY = ["data=digits", "model=linear", "privacy.epsilon=null", "privacy.noise_multiplier=1", "privacy.epochs=null"]


def stand_of(*words: str) -> Stand:
    """Of a linear model on digits, with further settings."""
    config = compose("conform", [*TINY, "privacy.steps=4", "conform.units=12", "conform.steps=8", *words])
    return build_stand(open_conform(config), config)
