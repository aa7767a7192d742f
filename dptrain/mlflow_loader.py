"""What MLflow calls to load an exported bundle (``dptrain export to=mlflow``). MLflow itself is not imported."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.face import Model, load


class PythonFunction:
    """A verified bundle behind MLflow's ``predict``."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Outputs (N, num_outputs) for rows (N, *row shape), an array or a table with a column a number.

        Raises:
            ValueError: rows have another shape.
        """
        rows = np.asarray(data)
        return self.model.outputs(rows.reshape(len(rows), *self.model.spec.raw_shape))


def _load_pyfunc(path: str) -> PythonFunction:
    """Loads what lies under ``data`` of the MLmodel file: a release bundle, verified now.

    Raises:
        ClaimRejected: it does not verify by the keys that are trusted on this machine.
    """
    return PythonFunction(load(path))
