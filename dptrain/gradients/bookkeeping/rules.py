"""Which torch functions have a rule of their own. All others that read a parameter get a copy of it a row."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from dptrain.gradients.bookkeeping.attention import attention_rule, multi_head_rule
from dptrain.gradients.bookkeeping.convolution import convolution_rule
from dptrain.gradients.bookkeeping.linear import addmm_rule, linear_rule, matmul_rule
from dptrain.gradients.bookkeeping.lookup import embedding_rule
from dptrain.gradients.bookkeeping.normalisation import (
    group_norm_rule,
    instance_norm_rule,
    layer_norm_rule,
    rms_norm_rule,
)
from dptrain.gradients.bookkeeping.recurrent import cell_rule, packed_rule, recurrent_rule
from dptrain.gradients.bookkeeping.tape import Rule

RULES: dict[Any, Rule] = {
    F.linear: linear_rule,
    torch.addmm: addmm_rule,
    torch.mm: matmul_rule,
    torch.matmul: matmul_rule,
    torch.Tensor.mm: matmul_rule,
    torch.Tensor.matmul: matmul_rule,
    torch.Tensor.__matmul__: matmul_rule,
    F.conv1d: convolution_rule,
    F.conv2d: convolution_rule,
    F.conv3d: convolution_rule,
    F.embedding: embedding_rule,
    F.layer_norm: layer_norm_rule,
    F.group_norm: group_norm_rule,
    F.instance_norm: instance_norm_rule,
    F.rms_norm: rms_norm_rule,
    F.scaled_dot_product_attention: attention_rule,
    F.multi_head_attention_forward: multi_head_rule,
    torch.lstm: recurrent_rule,
    torch.gru: recurrent_rule,
    torch.rnn_tanh: recurrent_rule,
    torch.rnn_relu: recurrent_rule,
    torch._pack_padded_sequence: packed_rule,  # pyright: ignore[reportPrivateImportUsage]
    torch.lstm_cell: cell_rule,
    torch.gru_cell: cell_rule,
    torch.rnn_tanh_cell: cell_rule,
    torch.rnn_relu_cell: cell_rule,
}
