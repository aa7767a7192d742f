"""Attention: torch's scaled dot product on all rows at once, and ``nn.MultiheadAttention`` in terms of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.gradients.bookkeeping.linear import linear_part
from dptrain.gradients.bookkeeping.tape import Tape

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def attention_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``F.scaled_dot_product_attention``, which vmap would otherwise run row by row. It has no parameter."""
    return _attention(tape, func, *args, **kwargs)


def _attention(
    tape: Tape,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **more: Any,
) -> Any:
    if dropout_p > 0.0 or any(t.dim() < 3 for t in (query, key, value)):
        return NotImplemented
    if tape.reads_parameter((query, key, value, attn_mask)):
        return NotImplemented  # learned queries or masks: their copies a row come back here as ordinary values
    if attn_mask is not None and attn_mask.dim() > query.dim():
        return NotImplemented

    def whole(anchor: Tensor, q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Tensor:
        lead = q.shape[:-3]
        q, k, v = (t.flatten(0, -4) if t.dim() > 4 else t for t in (q, k, v))
        given = mask[0].reshape(-1, *mask[0].shape[-3:]) if mask else None
        out = func(q, k, v, attn_mask=given, dropout_p=0.0, is_causal=is_causal, **more)
        return out.unflatten(0, lead) if len(lead) > 1 else out

    masks = ()
    if attn_mask is not None:
        # One mask a head and row at most; leading sizes of 1 stay, so that it is never repeated for every head.
        masks = (attn_mask.reshape(*[1] * (query.dim() - attn_mask.dim()), *attn_mask.shape),)
        lead = torch.broadcast_shapes(query.shape[:-3], masks[0].shape[:-3])
        if lead != query.shape[:-3]:
            return NotImplemented
        masks = (masks[0].expand(*lead, *masks[0].shape[-3:]),)
    return tape.lift(whole, query, key, value, *masks)


def multi_head_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``F.multi_head_attention_forward``, taken apart so that its projections are linear maps of their own."""
    return _multi_head(tape, *args, **kwargs)


def _multi_head(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Query, key and value are (T, 1, E), as nn.MultiheadAttention hands over a row; gives (output, weights)."""
    odd = bias_k is not None or bias_v is not None or add_zero_attn or static_k is not None or static_v is not None
    if odd or (training and dropout_p > 0.0) or query.dim() != 3 or query.shape[1] != 1:
        return NotImplemented
    queries = keys_values = None
    if isinstance(in_proj_weight, nn.Parameter) and key is value and query is not key:
        inputs = (tape.copy_a_row(_same, value) for value in (query, key))  # which may be learned themselves
        parts = (slice(0, embed_dim_to_check), slice(embed_dim_to_check, None))
        queries, keys_values = (
            linear_part(tape, x, in_proj_weight, in_proj_bias, part) for x, part in zip(inputs, parts, strict=True)
        )
    with tape:
        if use_separate_proj_weight:
            biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
            weights = (q_proj_weight, k_proj_weight, v_proj_weight)
            q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        elif queries is not None and keys_values is not None:
            q, (k, v) = queries, keys_values.chunk(2, dim=-1)
        elif query is key and key is value:
            q, k, v = F.linear(query, in_proj_weight, in_proj_bias).chunk(3, dim=-1)
        else:
            biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
            parts = in_proj_weight.chunk(3)
            q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), parts, biases, strict=True))
        q, k, v = (t.reshape(t.shape[0], num_heads, -1).transpose(0, 1)[None] for t in (q, k, v))  # (1, H, T, d)
        mask = _mask(attn_mask, key_padding_mask, num_heads, q.dtype)
        if need_weights:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            mixed = weights @ v
        else:
            weights = None
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal and mask is None)
        merged = mixed[0].transpose(0, 1).reshape(query.shape[0], 1, -1)
        out = F.linear(merged, out_proj_weight, out_proj_bias)
        return out, weights.mean(1) if weights is not None and average_attn_weights else weights


def _same(value: Tensor) -> Tensor:
    return value


def _mask(attn_mask: Any, padding: Any, heads: int, dtype: torch.dtype) -> Any:
    """One additive mask (1, 1 or H, T or 1, S); None where nothing is masked. Padding is (1, S)."""
    masks = []
    if attn_mask is not None:
        shaped = attn_mask[None, None] if attn_mask.dim() == 2 else attn_mask.reshape(1, heads, *attn_mask.shape[1:])
        masks.append(shaped)
    if padding is not None:
        masks.append(padding[:, None, None, :])
    added = [
        torch.zeros(m.shape, dtype=dtype, device=m.device).masked_fill(m, float("-inf")) if m.dtype == torch.bool else m
        for m in masks
    ]
    return sum(added[1:], added[0]) if added else None
