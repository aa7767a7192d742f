"""fastDP, private-transformers and opake as contenders, each used as its own documents say."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .contenders import Settings
from .workloads import Workload, mean_loss, row_loss

PUBLIC_SIZE = 50_000


class _Peer:
    """What the peers share: their model and batch, and a step repeated for ever."""

    def __init__(self, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor) -> None:
        self.model = workload.model()
        self._inputs, self._targets = inputs, targets
        self._moving = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._optimizer: Any = workload.optimizer(self.model)
        self._engine_settings = {
            "batch_size": len(inputs),
            "sample_size": PUBLIC_SIZE,
            "epochs": 1,
            "noise_multiplier": settings.sigma,
            "max_grad_norm": settings.clip,
        }

    def step(self) -> None:
        """One step."""
        raise NotImplementedError

    def run(self, on_step: Callable[[], None]) -> None:
        """See ``Contender``."""
        while True:
            self.step()
            on_step()

    def _sums(self) -> dict[str, Tensor]:
        """The gradients that the optimizer was given, times the divisor; parameters without one are left out."""
        return {n: p.grad.detach() * len(self._inputs) for n, p in self._moving.items() if p.grad is not None}

    def clipped_sum(self) -> dict[str, Tensor]:
        """See ``Contender``."""
        self.step()
        return self._sums()


class FastDP(_Peer):
    """Book-keeping (Bu et al. 2023), ``MixOpt``, with ghost differentiation unless ``no_origin``.

    With origin parameters autograd computes the gradients of those alone; a trainable layer that no gradient would
    pass through must be among them, or fastDP leaves it out of the step and only prints so (``check`` shows it).
    """

    def __init__(self, name: str, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor) -> None:
        from fastDP import PrivacyEngine  # pyright: ignore[reportMissingImports]

        super().__init__(workload, settings, inputs, targets)
        origin = None if name == "fastdp_no_origin" else list(workload.origin) or None
        engine = PrivacyEngine(
            self.model,
            clipping_fn="Abadi",
            clipping_mode="MixOpt",
            clipping_style="all-layer",
            origin_params=origin,
            **self._engine_settings,
        )
        engine.attach(self._optimizer)

    def step(self) -> None:
        """One step."""
        mean_loss(self.model(self._inputs), self._targets).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def clipped_sum(self) -> dict[str, Tensor]:
        """See ``Contender``; taken before the gradients are cleared."""
        mean_loss(self.model(self._inputs), self._targets).backward()
        self._optimizer.step()
        return self._sums()


class PrivateTransformers(_Peer):
    """Ghost clipping (Li et al. 2022): a backward pass for the norms and one for the sum; statistics turned off."""

    def __init__(self, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor) -> None:
        _stand_in_for_ml_swissknife()
        from private_transformers import PrivacyEngine  # pyright: ignore[reportMissingImports]

        super().__init__(workload, settings, inputs, targets)
        engine = PrivacyEngine(
            self.model, clipping_mode="ghost", skip_checks=True, record_snr=False, **self._engine_settings
        )
        engine.attach(self._optimizer)

    def step(self) -> None:
        """One step."""
        self._optimizer.zero_grad()
        self._optimizer.step(loss=row_loss(self.model(self._inputs), self._targets))


def _stand_in_for_ml_swissknife() -> None:
    """private-transformers uses two small helpers of a package whose requirements are large and unrelated."""
    if "ml_swissknife" in sys.modules or importlib.util.find_spec("ml_swissknife") is not None:
        return

    class ListsItsValues(type):
        def all(cls) -> list[str]:
            return [value for key, value in vars(cls).items() if not key.startswith("__")]

    def refuse_unused(unused: dict[str, Any] | None) -> None:
        if unused:
            raise TypeError(f"unknown settings: {', '.join(unused)}")

    helpers = types.SimpleNamespace(ContainerMeta=ListsItsValues, handle_unused_kwargs=refuse_unused)
    package: Any = types.ModuleType("ml_swissknife")
    package.utils = helpers
    sys.modules["ml_swissknife"] = package


class Opake(_Peer):
    """Functional: gradients of single rows by vmap, clipped, then Gaussian noise."""

    def __init__(self, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor) -> None:
        from opake.dpsgd.clipping import clipped_grad  # pyright: ignore[reportMissingImports]
        from opake.dpsgd.noise import gaussian_noise  # pyright: ignore[reportMissingImports]
        from opake.random import key  # pyright: ignore[reportMissingImports]

        super().__init__(workload, settings, inputs, targets)
        model = self.model
        fixed = {name: p.detach() for name, p in model.named_parameters() if name not in self._moving}

        def loss(parameters: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
            outputs = torch.func.functional_call(model, {**parameters, **fixed}, (row.unsqueeze(0),))
            return mean_loss(outputs, target.unsqueeze(0))

        self._clipped, self._clip_state = clipped_grad(
            loss, clipping_norm=settings.clip, batch_argnums=(1, 2), normalize_by=len(inputs)
        )
        self._noise, self._noise_state = gaussian_noise(noise_multiplier=settings.sigma, key=key(0))

    def step(self) -> None:
        """One step."""
        parameters = {name: p.detach() for name, p in self._moving.items()}
        clipped, self._clip_state = self._clipped(parameters, self._inputs, self._targets, state=self._clip_state)
        noisy, self._noise_state = self._noise(clipped, self._noise_state)
        for name, p in self._moving.items():
            p.grad = noisy.pytree[name]
        self._optimizer.step()


def build(
    name: str, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor
) -> FastDP | PrivateTransformers | Opake:
    """The peer of that name."""
    if name.startswith("fastdp"):
        return FastDP(name, workload, settings, inputs, targets)
    kind = PrivateTransformers if name == "private_transformers" else Opake
    return kind(workload, settings, inputs, targets)
