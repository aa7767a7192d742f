"""The small Python face for notebooks: the same recipes and bundles, called as functions.

import dptrain
result = dptrain.train(["experiment=quickstart", "seed=1"])
model = dptrain.load(result["folder"])
model.predict(inputs)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dptrain.checkpoint.bundle import Bundle, load_verified
from dptrain.cli import recipe
from dptrain.compose import compose
from dptrain.models.reading import as_read
from dptrain.privacy.verify import verified as verify
from dptrain.registry import load_user_files

__all__ = ["Model", "audit", "load", "plan", "train", "verify"]

BATCH = 1024
"""Rows that go through a loaded model at once."""


def train(overrides: Sequence[str] = (), config_folder: str | None = None) -> dict[str, Any]:
    """Trains as ``dptrain train`` does with the same overrides; returns result.json, its ``folder`` and sentence.

    Raises:
        ConfigError: as on the command line.
    """
    return recipe("train").run(compose("train", overrides, config_folder))


def plan(overrides: Sequence[str] = (), config_folder: str | None = None) -> dict[str, Any]:
    """The compiled plan and its cost, or advice (``advise=true``), as ``dptrain plan``; reads no private row."""
    return recipe("plan").run(compose("plan", overrides, config_folder))


def audit(run: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Attacks a finished run as ``dptrain audit`` does; returns internal/audit.json (internal tier).

    Raises:
        ClaimRejected: the attack contradicts what the statement promises.
    """
    return recipe("audit").run(compose("audit", [f"run={run}", *overrides]))


class Model:
    """A verified release bundle, ready to predict."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.module = bundle.model
        self.spec = bundle.spec
        self.statement = bundle.statement

    def __repr__(self) -> str:
        return f"Model({self.spec.name}, {self.statement['sentence']!r})"

    def outputs(self, inputs: np.ndarray | torch.Tensor) -> np.ndarray:
        """Raw outputs (logits or values), shape (N, num_outputs).

        Args:
            inputs: (N, *raw_shape), scaled as the data source scales its rows.

        Raises:
            ValueError: the rows have another shape.
        """
        rows = torch.as_tensor(np.asarray(inputs))
        if tuple(rows.shape[1:]) != self.spec.raw_shape:
            raise ValueError(f"inputs have rows of shape {tuple(rows.shape[1:])}, expected {self.spec.raw_shape}")
        return self._bundle.outputs(as_read(self.module, rows), BATCH).numpy()

    def predict(self, inputs: np.ndarray | torch.Tensor) -> np.ndarray:
        """Predicted class indices, shape (N,); values for a regression; (N, T) classes of tokens for
        token_classification."""
        outputs = self.outputs(inputs)
        if self.spec.task == "token_classification":
            return outputs.reshape(len(outputs), self.spec.raw_shape[0], -1).argmax(axis=2)
        if self.spec.task == "regression":
            return outputs[:, 0]
        return (outputs[:, 0] > 0).astype(int) if self.spec.task == "binary" else outputs.argmax(axis=1)


def load(
    path: str | Path,
    imports: Sequence[str] = (),
    key: str | Path | None = None,
    after: Iterable[str] = (),
    sealing_key: str | None = None,
) -> Model:
    """Loads a release bundle that ``dptrain verify`` passes, by the very digests that were verified.

    Args:
        path: a run folder or its ``checkpoint``.
        imports: the user's own files, where the bundle's model is one of theirs; a bundle cannot name code.
        key: public key file of the one signer to accept; None for the user's own key and those in ``trusted/``.
        after: statements (or heads) that this bundle must not be older than.
        sealing_key: source of the key of sealed weights (``file:``, ``env:``, ``command:``); None for the user's own.

    Raises:
        ClaimRejected: it does not verify: changed, by a stranger, by a revoked key, older than ``after``, untrue.
        ConfigError: the folder is no bundle, or its files do not fit one another.
    """
    load_user_files(imports)
    return Model(load_verified(path, key, after=after, sealing_key=sealing_key))
