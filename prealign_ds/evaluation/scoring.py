"""Log-probabilities of tokens and of short texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from prealign_ds.codeswitch.switcher import IGNORED
from prealign_ds.evaluation.compute import Compute, rank_and_world, sum_over_ranks


def token_nats(model: PreTrainedModel, inputs_BS: Tensor, targets_BS: Tensor, vocabulary: int) -> Tensor:
    """Cross-entropy of each target in nats, fp32 of shape (B, S); 0 where the target is ignored.

    Args:
        model: The model, its parameters whole.
        inputs_BS: Input ids, int64.
        targets_BS: Target ids, int64, already shifted; -100 is ignored.
        vocabulary: Ids in use; the padding beyond gets no probability.
    """
    logits_BSV = model(input_ids=inputs_BS, use_cache=False).logits[..., :vocabulary].float()
    nats = functional.cross_entropy(
        logits_BSV.flatten(0, 1), targets_BS.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nats.view_as(targets_BS)


@torch.no_grad()
def target_nats(
    compute: Compute, inputs_BS: np.ndarray, targets_BS: np.ndarray, vocabulary: int, device: torch.device
) -> Tensor:
    """:func:`token_nats` of a batch in host memory, through ``compute``."""
    inputs, targets = torch.from_numpy(inputs_BS).to(device), torch.from_numpy(targets_BS).to(device)
    return compute(lambda model: token_nats(model, inputs, targets, vocabulary))


@torch.no_grad()
def row_nats(
    rows: Sequence[np.ndarray], first: int, compute: Compute, vocabulary: int, batch_tokens: int, device: torch.device
) -> np.ndarray:
    """Cross-entropy of each row of tokens behind the token ``first``, summed over its tokens; fp64 of shape (rows,).

    The ranks share the rows; every rank makes the same number of forward passes, with empty ones at the end. All ranks
    must call it, and all get all sums.

    Args:
        rows: Tokens, no row longer than the model has positions.
        first: The token before each row, usually end-of-text.
        compute: Reaches the model.
        vocabulary: Ids in use.
        batch_tokens: Tokens, padding included, that one rank computes at once.
        device: Where to put the batches.
    """
    rank, world = rank_and_world()
    width = max(map(len, rows))
    size = max(1, batch_tokens // width)
    sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
    for start in range(0, len(rows), size * world):
        share = range(start + rank * size, min(start + (rank + 1) * size, len(rows)))
        inputs = np.full((size, width), first, dtype=np.int64)
        targets = np.full((size, width), IGNORED, dtype=np.int64)
        for place, row in enumerate(share):
            inputs[place, 1 : len(rows[row])], targets[place, : len(rows[row])] = rows[row][:-1], rows[row]
        nats = target_nats(compute, inputs, targets, vocabulary, device)
        sums[share.start : share.start + len(share)] = nats.double().sum(1)[: len(share)]
    return sum_over_ranks(sums).cpu().numpy()
