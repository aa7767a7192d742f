"""The step loop, losses, metrics, optimizers and public evaluation."""

from dptrain.training import losses as _losses
from dptrain.training import metrics as _metrics
from dptrain.training import optimizers as _optimizers

__all__: list[str] = []

_SHIPPED = (_losses, _metrics, _optimizers)  # imported for what they register
