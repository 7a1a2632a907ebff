"""Word representations in every layer (paper Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel


def word_representations(model: PreTrainedModel, input_ids_RT: Tensor, mask_RT: Tensor) -> list[Tensor]:
    """``h_w^l`` for l = 0 .. L+1: the mean over a word's subwords of f(w, l), each of shape (R, H) in fp32 (Eq. 1).

    - f(w, 0): rows of the input embedding, without positions;
    - f(w, l), 1 <= l < L: raw outputs of transformer block l; f(w, L): the state that the LM head sees, after the
      final norm;
    - f(w, L+1): rows of the output embedding.

    Under ZeRO-3 the caller must be inside the forward of a module that registered the output embedding as external.

    Args:
        model: A transformers causal language model with L blocks.
        input_ids_RT: R words of up to T tokens, padded on the right.
        mask_RT: 1 for tokens, 0 for padding, which counts neither in attention nor in the mean.
    """
    embedded = model.get_input_embeddings()(input_ids_RT)
    states = model.base_model(
        input_ids=input_ids_RT, attention_mask=mask_RT, output_hidden_states=True, use_cache=False
    ).hidden_states
    output_rows = functional.embedding(input_ids_RT, model.get_output_embeddings().weight)
    weights = (mask_RT / mask_RT.sum(1, keepdim=True)).unsqueeze(-1).float()
    with torch.autocast(input_ids_RT.device.type, enabled=False):
        return [(layer.float() * weights).sum(1) for layer in (embedded, *states[1:], output_rows)]
