"""What to tell the user when a model, a loss or a batch cannot be run by the engine ``bookkeeping``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.lifted import NESTED
from dptrain.gradients.protocol import RowLoss
from dptrain.gradients.refusal import vmap_refusal

CHECKPOINT = "torch.utils.checkpoint"


def loss_of_outputs(row_loss: RowLoss, outputs: Any, target: Tensor) -> Tensor:
    """The loss of one row, as a scalar.

    Args:
        row_loss: see ``RowLoss``; one that averages over its batch gives the same, for a batch of one.
        outputs: what the model gave for a batch of one row.
        target: (1, ...).

    Raises:
        ConfigError: the loss makes nothing of what the model returns, or is more than one number a row.
    """
    try:
        loss = row_loss(outputs, target)
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        if isinstance(outputs, Tensor):
            raise
        raise ConfigError(
            "model",
            type(outputs).__name__,
            f"is what the model returns, and the loss cannot read it ({_first_line(error)})",
            "let the model return the tensor of its outputs",
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        shown = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(
            "model",
            f"outputs {shown} of one row",
            f"give a loss of shape {shape}, not one number",
            "let the model return its rows in the first dimension, and the loss one number a row",
        )
    return loss.reshape(())


def refusal_of(error: RuntimeError, inputs: Tensor, autocast: torch.dtype | None) -> ConfigError | None:
    """The error to show for one that torch raised; None where it is neither the model's, the batch's nor memory's."""
    text = str(error)
    if out_of_memory(error):
        return no_memory(len(inputs))
    if not inputs.is_floating_point() and any(word in text for word in ("Long", "long")):
        return ConfigError(
            "model",
            f"inputs of {inputs.dtype}",
            f"cannot be read by its first layer ({_first_line(error)})",
            "give real numbers, or begin the model with an embedding",
        )
    if "modified by an inplace operation" in text or "being modified inplace" in text:
        return ConfigError(
            "model",
            "in-place operation",
            f"changes a value that the backward pass needs ({_first_line(error)})",
            "write y = y * 2 for y.mul_(2), and inplace=False in the layers around it",
        )
    where = _checkpointed(error)
    if where is not None or "escaped from inside a function being vmapped" in text:
        return checkpointing(where or "the forward pass")
    if "Tensor.requires_grad_()" in text:
        return ConfigError(
            "model",
            "requires_grad_()",
            "is called in its forward pass, as transformers does for gradient checkpointing",
            "call gradient_checkpointing_disable(), disable_input_require_grads(), and use execution.checkpoint=[...]",
        )
    if NESTED in text or "either the backward or vjp method" in text:
        return ConfigError(
            "clipping.engine",
            "bookkeeping",
            "the model calls vmap or takes gradients of its own layers in its forward pass",
            "set clipping.engine=loop",
        )
    return vmap_refusal(error, "bookkeeping", autocast)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch had no memory for an allocation, on a CPU or a GPU."""
    text = str(error)  # torch's words differ by system: posix_memalign's, and those of its other allocators
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "can't allocate memory" in text


def no_memory(rows: int) -> ConfigError:
    """A physical batch does not fit."""
    return ConfigError(
        "execution.physical_batch_size", rows, "does not fit in memory", "lower it, or set execution.memory_limit"
    )


def checkpointing(where: str) -> ConfigError:
    """A part of the model is to be passed through again in the backward pass, where no use of a parameter is seen.

    Args:
        where: a parameter that is used there, or the module that asks for it.
    """
    return ConfigError(
        "model",
        where,
        "keeps values between its forward and its backward pass in a way of its own, as gradient checkpointing does",
        "turn it off and name modules in execution.checkpoint=[...], or use_reentrant=False and clipping.engine=loop",
    )


def under_checkpointing() -> bool:
    """Whether torch.utils.checkpoint (use_reentrant=False) is at work on what is computed now."""
    of_torch: Any = torch._C
    hooks = of_torch._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and getattr(hooks[0], "__module__", "") == CHECKPOINT


def _checkpointed(error: BaseException) -> str | None:
    """The class of the innermost module whose forward pass called torch.utils.checkpoint, where the error came out of
    that; None elsewhere."""
    frame, module = error.__traceback__, None
    while frame is not None:
        if frame.tb_frame.f_globals.get("__name__") == CHECKPOINT:
            return module or "a checkpointed part"
        holder = frame.tb_frame.f_locals.get("self")
        module = type(holder).__name__ if isinstance(holder, nn.Module) else module
        frame = frame.tb_next
    return None


def unseen_use(name: str) -> ConfigError:
    """A parameter reaches the loss through a value that was computed before the forward pass."""
    return ConfigError(
        "model",
        name,
        "reaches the loss through a value computed outside the forward pass, which cannot be clipped",
        "compute it inside forward, or freeze the parameter",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].split(". ")[0][:200] if str(error).strip() else type(error).__name__
