"""Word representations in every layer (paper Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from prealign_ds.alignment.batches import WordBatch


def word_representations(model: PreTrainedModel, batch: WordBatch) -> list[Tensor]:
    """:func:`encode_words` for a word batch, group by group of similar length; L+2 tensors of shape (r, H)."""
    groups = [
        encode_words(model, batch.input_ids_rT[first:end, :length], batch.mask_rT[first:end, :length])
        for first, end, length in batch.groups
    ]
    return [torch.cat(layer) for layer in zip(*groups, strict=True)]


def encode_words(model: PreTrainedModel, input_ids: Tensor, mask: Tensor) -> list[Tensor]:
    """``h_w^l`` for l = 0 .. L+1: the mean over a word's subwords of f(w, l), each of shape (r, H) in fp32 (Eq. 1).

    - f(w, 0): rows of the input embedding, without positions;
    - f(w, l), 1 <= l < L: raw outputs of transformer block l; f(w, L): the state that the LM head sees, after the
      final norm;
    - f(w, L+1): rows of the output embedding.

    Words are encoded alone; padding counts neither in attention nor in the mean. Under ZeRO-3 the caller must be inside
    the forward of a module that registered the output embedding as external.

    Args:
        model: A transformers causal language model with L blocks.
        input_ids: int64 of shape (r, T), padded on the right.
        mask: int64 of shape (r, T), 1 for tokens and 0 for padding.
    """
    embedded = model.get_input_embeddings()(input_ids)
    states = model.base_model(
        input_ids=input_ids, attention_mask=mask, output_hidden_states=True, use_cache=False
    ).hidden_states
    output_rows = functional.embedding(input_ids, model.get_output_embeddings().weight)
    weights = (mask / mask.sum(1, keepdim=True)).unsqueeze(-1).float()
    with torch.autocast(input_ids.device.type, enabled=False):
        return [(layer.float() * weights).sum(1) for layer in (embedded, *states[1:], output_rows)]
