"""Mistakes in how much noise there is, and when it is fresh."""

from __future__ import annotations

from torch import Tensor

from dptrain.noise.secure import SecureNoise
from dptrain.privacy.mechanism import DPSGD
from dptrain.training.loop import Trainer

from .shared import Mutant, Patch, _on_noise, _on_secure


def noise_98(patch: Patch) -> None:
    """Noise times 0.98, on whole steps."""
    _on_secure(patch, lambda noise, step, values: (0.98 * values).round_())


def slack_unpaid(patch: Patch) -> None:
    """The deviation is sigma C, without the slack of the sensitivity."""
    patch(DPSGD, "noise_std", property(lambda self: self.noise_multiplier * self.clipping_norm))


def std_without_norm(patch: Patch) -> None:
    """The deviation is sigma (1 + s), without C."""
    patch(DPSGD, "noise_std", property(lambda self: self.noise_multiplier * (1.0 + self.sensitivity_slack)))


def last_step_quiet(patch: Patch) -> None:
    """The last step has half of its noise."""
    _on_noise(patch, lambda trainer, step, noise: noise * 0.5 if step == trainer.plan.steps - 1 else noise)


def noise_decays(patch: Patch) -> None:
    """Noise falls by a fifth over the run."""
    _on_noise(patch, lambda trainer, step, noise: (noise * (1.0 - 0.2 * step / max(1, trainer.plan.steps))).round())


def last_parameter_quiet(patch: Patch) -> None:
    """The last trained parameter has 0.9 of its noise."""

    def change(trainer: Trainer, step: int, noise: Tensor) -> Tensor:
        stop = sum(p.numel() for p in trainer.parameters)
        start = stop - trainer.parameters[-1].numel()
        noise[start:stop] = (0.9 * noise[start:stop]).round()
        return noise

    _on_noise(patch, change)


def first_of_piece_silent(patch: Patch) -> None:
    """The first coordinate of every piece of 32,768 has no noise."""

    def change(noise: SecureNoise, step: int, values: Tensor) -> Tensor:
        values[:: 1 << 15] = 0.0
        return values

    _on_secure(patch, change)


def pieces_repeat(patch: Patch) -> None:
    """Every piece of 32,768 coordinates is the first one again."""

    def change(noise: SecureNoise, step: int, values: Tensor) -> Tensor:
        return values[: 1 << 15].repeat(-(-len(values) // (1 << 15)))[: len(values)]

    _on_secure(patch, change)


def antithetic_steps(patch: Patch) -> None:
    """Every second step's noise is that of the step before with its sign turned."""
    held: dict[int, Tensor] = {}

    def change(noise: SecureNoise, step: int, values: Tensor) -> Tensor:
        before = held.pop(id(noise), None)
        if step % 2 and before is not None and len(before) == len(values):
            return -before
        held[id(noise)] = values.clone()
        return values

    _on_secure(patch, change)


def tenth_step_repeats(patch: Patch) -> None:
    """Every tenth step has the noise of the step before."""
    held: dict[int, Tensor] = {}

    def change(noise: SecureNoise, step: int, values: Tensor) -> Tensor:
        before = held.get(id(noise))
        if step % 10 == 9 and before is not None and len(before) == len(values):
            return before.clone()
        held[id(noise)] = values.clone()
        return values

    _on_secure(patch, change)


MUTANTS: dict[str, Mutant] = {
    "noise_98": ("own", "noise times 0.98", noise_98, ()),
    "slack_unpaid": ("own", "deviation without the sensitivity's slack", slack_unpaid, ()),
    "std_without_norm": ("own", "deviation forgets C", std_without_norm, ("privacy.clipping_norm=1.25",)),
    "last_step_quiet": ("own", "last step has half of its noise", last_step_quiet, ()),
    "noise_decays": ("own", "noise falls by a fifth over the run", noise_decays, ()),
    "last_parameter_quiet": ("own", "last parameter has 0.9 of its noise", last_parameter_quiet, ()),
    "first_of_piece_silent": ("own", "one coordinate in 32,768 without noise", first_of_piece_silent, ()),
    "pieces_repeat": ("own", "noise repeats every 32,768 coordinates", pieces_repeat, ("model.options.hidden=[600]",)),
    "antithetic_steps": ("own", "every second noise is minus the one before", antithetic_steps, ()),
    "tenth_step_repeats": ("own", "every tenth noise is the one before", tenth_step_repeats, ()),
}
