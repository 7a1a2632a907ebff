"""The multi-layer contrastive loss over the global batch (paper Eq. 2 and 3).

Shape letters: W ranks, R rows in the global batch, r rows of this rank, P positive pairs of this rank, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from prealign_ds.alignment.batches import WordBatch

# torch renamed both; the old names still work and warn at every start.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass
class LayerAlignment:
    """Loss and similarity of one layer, summed over this rank's anchors; divide by the counts after a reduction.

    Attributes:
        loss: Sum over this rank's anchors of Eq. 2, with gradient.
        positive_cosine: Sum of the cosines of this rank's positive pairs.
        other_cosine: Sum of the cosines of this rank's rows with all other rows that are not positives.
    """

    loss: Tensor
    positive_cosine: Tensor
    other_cosine: Tensor


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, with gradient: the backward of a gather is a reduce-scatter sum."""

    @staticmethod
    def forward(ctx: Any, local_rH: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        longest = max(counts)
        padded = functional.pad(local_rH, (0, 0, 0, longest - local_rH.shape[0])).contiguous()
        gathered = padded.new_empty(len(counts) * longest, padded.shape[1])
        _all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered.split(longest), counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad_RH: Tensor) -> tuple[Tensor, None]:
        longest = max(ctx.counts)
        parts = [functional.pad(part, (0, 0, 0, longest - len(part))) for part in grad_RH.split(ctx.counts)]
        own = grad_RH.new_empty(longest, grad_RH.shape[1])
        _reduce_scatter(own, torch.cat(parts).contiguous())
        return own[: ctx.counts[dist.get_rank()]], None


def gather_rows(local_rH: Tensor, counts: list[int]) -> Tensor:
    """Rows of all ranks in rank order, shape (R, H); gradients flow back to the rank that a row came from.

    Args:
        local_rH: This rank's rows.
        counts: Rows of every rank; they may differ.
    """
    return local_rH if len(counts) == 1 else _GatherRows.apply(local_rH, counts)


def layer_alignment(states_rH: Tensor, batch: WordBatch, temperature: float) -> LayerAlignment:
    """Eq. 2 for one layer: this rank's anchors against the rows of all ranks.

    For anchor j with positives P(j): the mean over i in P(j) of ``-log softmax_k(cos(h_j, h_k) / temperature)[i]``,
    where k runs over the global batch without j itself and without rows that are neither positive nor negative. Other
    positives stay in the denominator (SupCon's L_out, arXiv 2004.11362).

    Args:
        states_rH: Representations of this rank's rows in one layer.
        batch: The word batch that the rows belong to.
        temperature: tau.
    """
    with torch.autocast(states_rH.device.type, enabled=False):
        units_rH = functional.normalize(states_rH.float(), dim=-1)
        columns_RH = gather_rows(units_rH, batch.counts)
        cosines_rR = units_rH @ columns_RH.T
        denominators_r = (cosines_rR / temperature).masked_fill(batch.excluded_rR, -torch.inf).logsumexp(1)
        anchors_P, positives_P = batch.positives
        positive_cosines_P = cosines_rR[anchors_P, positives_P]
        terms_P = (denominators_r[anchors_P] - positive_cosines_P / temperature) * batch.positive_weights_P
    with torch.no_grad():
        positive = positive_cosines_P.sum()
        others = (units_rH.sum(0) * columns_RH.sum(0)).sum() - len(units_rH) - positive
    return LayerAlignment(terms_P.sum(), positive, others)
