"""A bundle's model as an ONNX graph, its statement in ``metadata_props``. Needs the extra ``onnx``, imported late."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.checkpoint.bundle import Bundle
from dptrain.checkpoint.model_card import metadata
from dptrain.errors import ConfigError
from dptrain.models.text_heads import LanguageModel

ONNX = "model.onnx"
NEEDED = ("onnx", "onnxscript")
ROWS = 3
"""Rows of the example that the graph is traced with; a number other than 1, which torch would take for a constant."""


def check_onnx() -> None:
    """Refuses where a library that torch's exporter needs is not installed.

    Raises:
        ConfigError: naming it.
    """
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ConfigError("to", "onnx", f"needs {name}, which is not installed", "pip install 'dptrain[onnx]'")


def write_onnx(bundle: Bundle, file: Path) -> None:
    """Writes the graph inputs (R, *raw_shape) -> outputs (R, num_outputs), any R, weights inside.

    Inputs are int64 ids for models of text, else of the weights' own type. Of a language model outputs are the scores
    (R, T, V) of the token behind each, rather than a row's loss.

    Raises:
        ConfigError: rows go through a feature map, which is no part of the model, or torch cannot write the graph.
    """
    spec, model = bundle.spec, bundle.model
    if spec.features != "none":
        problem = f"the model takes rows through the feature map '{spec.features}', which is not a part of it"
        raise ConfigError("to", "onnx", problem, "export to=safetensors or to=mlflow")
    import onnx  # pyright: ignore[reportMissingImports]

    example = example_rows(model, spec.raw_shape)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's exporter warns of its own parts, not of the model
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program: Any = torch.onnx.export(
                Scores(model) if isinstance(model, LanguageModel) else model,
                (example,),
                dynamo=True,
                input_names=["inputs"],
                output_names=["outputs"],
                dynamic_shapes=({0: torch.export.Dim("rows")},),
                verbose=False,
            )
    except Exception as error:  # torch, its exporter and onnxscript raise what they like
        problem = (
            f"torch cannot write this model as a graph ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        )
        raise ConfigError("to", "onnx", problem, "export to=hf or to=safetensors") from error
    made = program.model_proto
    del made.metadata_props[:]  # of the exporter: places on this machine
    for node in made.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.helper.set_model_props(made, metadata(bundle.statement))
    onnx.save(made, str(file))


class Scores(nn.Module):
    """A language model as what scores next tokens; (R, T) ids -> (R, T, V)."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model.logits(inputs)


def example_rows(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """(ROWS, *shape) of zeros: ids for a model that takes them."""
    if getattr(model, "takes_ids", False):
        return torch.ones(ROWS, *shape, dtype=torch.int64)
    return torch.zeros(ROWS, *shape, dtype=next(model.parameters()).dtype)
