"""ScatterNet features: fixed wavelets, nothing learnt, so nothing to pay for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dptrain.errors import ConfigError
from dptrain.models.options import whole_number
from dptrain.registry import features


class Scatter:
    """Scattering coefficients of every channel, normalised in groups within the row.

    Output (channels * K, H / 2^J, W / 2^J) with K = 1 + J L + L^2 J (J - 1) / 2 coefficients; not flattened,
    so that a convolutional model can follow. A 28 x 28 grey image at J=2, L=8 gives (81, 7, 7).
    """

    def __init__(self, input_shape: tuple[int, int, int], scales: int, angles: int, groups: int) -> None:
        # kymatio.torch pulls in scipy functions that are gone; this module is the two-dimensional part alone.
        from kymatio import __version__ as kymatio_version
        from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

        channels, height, width = input_shape
        self._scattering = ScatteringTorch2D(J=scales, shape=(height, width), L=angles)
        self._groups = groups
        count = coefficients(scales, angles)
        self.output_shape = (channels * count, height // 2**scales, width // 2**scales)
        self.version = f"1, kymatio {kymatio_version}"

    def __call__(self, inputs: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C * K, H / 2^J, W / 2^J)
        raw = self._scattering(inputs.to(torch.float32).contiguous())  # (N, C, K, H', W')
        return F.group_norm(raw.reshape(len(inputs), *self.output_shape), self._groups)


@features.register("scatter")
def scatter(input_shape: tuple[int, ...], J: int = 2, L: int = 8, groups: int = 27) -> Scatter:  # noqa: N803
    """The features of Tramer and Boneh 2021 ("Differentially private learning needs better features").

    Scattering transform (Oyallon and Mallat 2015) by kymatio, then GroupNorm without affine parameters:
    their variant that normalises within a row and so costs no privacy.

    Args:
        input_shape: (channels, height, width), each side at least 2^J.
        J: scales, at least 1; the image shrinks by 2^J.
        L: angles, at least 1.
        groups: groups of the normalisation; must divide channels * K.

    Raises:
        ConfigError: kymatio is not installed, rows are no images, an option is outside its range.
    """
    whole_number("features.options.J", J, low=1, high=8)
    whole_number("features.options.L", L, low=1, high=64)
    whole_number("features.options.groups", groups, low=1)
    if len(input_shape) != 3:
        problem = f"takes images (channels, height, width); rows are {tuple(input_shape)}"
        raise ConfigError("model.features", "scatter", problem, "set model.features=none")
    channels, height, width = input_shape
    if min(height, width) < 2**J:
        problem = f"J={J} needs images of at least {2**J} x {2**J}; rows are {height} x {width}"
        raise ConfigError("model.features", "scatter", problem, "set model.features=none")
    count = channels * coefficients(J, L)
    if count % groups:
        raise ConfigError("features.options.groups", groups, f"does not divide {count} channels", "choose a divisor")
    try:
        return Scatter((channels, height, width), J, L, groups)
    except ImportError as error:
        raise ConfigError(
            "model.features",
            "scatter",
            f"needs kymatio, which cannot be imported ({error})",
            "pip install 'dptrain[scatter]'",
        ) from error


def coefficients(scales: int, angles: int) -> int:
    """K, the number of scattering coefficients up to order 2 at one place."""
    return 1 + scales * angles + angles**2 * scales * (scales - 1) // 2
