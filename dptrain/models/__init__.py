"""Reference models, fixed feature maps and the checks that a model keeps units apart."""

from dptrain.models import features, linear, mlp, scatter, tanh_cnn, wrn

__all__ = ["features", "linear", "mlp", "scatter", "tanh_cnn", "wrn"]
