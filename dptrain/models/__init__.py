"""Reference models, fixed feature maps and the checks that a model keeps units apart."""

from dptrain.models import efficientnet, features, hf, linear, mlp, scatter, tanh_cnn, timm, wrn

__all__ = ["efficientnet", "features", "hf", "linear", "mlp", "scatter", "tanh_cnn", "timm", "wrn"]
