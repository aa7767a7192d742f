"""dptrain: differential-privacy training whose label is true, checked, and adds up.

``train``, ``plan``, ``audit``, ``load`` and ``verify`` are the Python face of the commands, ``Clipper`` is the engine
for training loops of your own; they are imported on first use, so that ``import dptrain`` stays light.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dptrain.face import Model, audit, load, plan, train, verify
    from dptrain.gradients.clipper import Clipper

# Before anything can import mlflow: it sends a record of every call home unless told not to, and unpickles models.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

__version__ = "0.1.0"
__all__ = ["Clipper", "Model", "__version__", "audit", "load", "plan", "train", "verify"]


def __getattr__(name: str) -> Any:
    if name == "verify":  # needs no torch, hence not by way of the face
        from dptrain.privacy.verify import verified

        return verified
    if name == "Clipper":  # needs torch alone
        from dptrain.gradients.clipper import Clipper

        return Clipper
    if name in __all__:
        from dptrain import face

        return getattr(face, name)
    raise AttributeError(f"module 'dptrain' has no attribute '{name}'")
