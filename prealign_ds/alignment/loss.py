"""The multi-layer contrastive loss over the global batch (paper Eq. 2 and 3), in memory that does not grow as R x R.

A rank's cosines with all rows are needed twice, for the loss and for its gradient. Both are computed in the forward, a
group of layers and a block of rows at a time, and only the gradient, which is as large as the rows, waits for the
backward. Who is a positive of whom, and who is excluded for whom, is symmetric; so the gradient of a row, as an anchor
and as a column of the other ranks' anchors, follows from its own cosines and from every row's denominator. Hence two
gathers for a group of layers, rows and denominators, and no reduction.

Shape letters: L layers, g layers of one group, W ranks, R rows in the global batch, r rows of this rank, b rows of one
block, P positive pairs of this rank, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from prealign_ds.alignment.batches import WordBatch

# torch renamed it; the old name still works and warns at every start.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

BLOCK_ELEMENTS = 2**22
"""Elements of the largest intermediate tensor, where one row of R fits: 16 MB in fp32."""

_SHORTEST = 1e-12
"""A row of a smaller norm has no direction: its cosines are 0, and so is its gradient."""


@dataclass
class LayerAlignments:
    """Loss and similarity of every layer, summed over this rank's anchors; divide by the counts after a reduction.

    Attributes:
        losses_L: Sums over this rank's anchors of Eq. 2, with gradient.
        positive_cosines_L: Sums of the cosines of this rank's positive pairs.
        other_cosines_L: Sums of the cosines of this rank's rows with all other rows that are not positives.
    """

    losses_L: Tensor
    positive_cosines_L: Tensor
    other_cosines_L: Tensor


def layer_alignments(states: Sequence[Tensor], batch: WordBatch, temperature: float) -> LayerAlignments:
    """Eq. 2 for each layer: this rank's anchors against the rows of all ranks.

    For anchor j with positives P(j): the mean over i in P(j) of ``-log softmax_k(cos(h_j, h_k) / temperature)[i]``,
    where k runs over the global batch without j itself and without rows that are neither positive nor negative. Other
    positives stay in the denominator (SupCon's L_out, arXiv 2004.11362).

    All ranks must call this at the same time. The gradient of a rank's rows is that of the losses of ALL ranks, as if
    each rank had given its own the same weight.

    Args:
        states: Representations of this rank's rows, of shape (r, H), layer by layer; fp64 stays, all else becomes fp32.
        batch: The word batch that the rows belong to.
        temperature: tau.
    """
    with torch.autocast(states[0].device.type, enabled=False):
        precise = [layer_rH.to(torch.promote_types(layer_rH.dtype, torch.float32)) for layer_rH in states]
        return LayerAlignments(*_LayerAlignments.apply(batch, temperature, *precise))


class _LayerAlignments(torch.autograd.Function):
    """Losses and cosine sums of all layers; the gradient of the losses is ready when the forward ends."""

    @staticmethod
    def forward(ctx: Any, batch: WordBatch, temperature: float, *states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        blocks, sums, gradients = _blocks(batch), [], []
        for units_grH, norms_gr, columns_gRH in _gathered(states, batch.counts):
            *found, gradient_grH = _align(units_grH, columns_gRH, batch, blocks, temperature)
            along_gr = torch.linalg.vecdot(gradient_grH, units_grH)
            across_grH = gradient_grH.addcmul_(units_grH, along_gr[..., None], value=-1)
            gradients.append(across_grH.div_(norms_gr[..., None]))
            sums.append(found)
        ctx.save_for_backward(*gradients)
        losses_L, positive_L, other_L = (torch.cat(parts) for parts in zip(*sums, strict=True))
        ctx.mark_non_differentiable(positive_L, other_L)
        return losses_L, positive_L, other_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights_L: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        groups = weights_L.split([len(part) for part in ctx.saved_tensors])
        weighted = [part * group[:, None, None] for part, group in zip(ctx.saved_tensors, groups, strict=True)]
        return None, None, *(layer_rH for part in weighted for layer_rH in part)


def _align(
    units_grH: Tensor, columns_gRH: Tensor, batch: WordBatch, blocks: list[_Block], temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For one group of layers: losses, positive cosines and other cosines, each (g,), and the gradient of the units."""
    anchors_P, positives_P = batch.positives
    weights_R = batch.num_positives_R.to(units_grH.dtype).reciprocal()
    weights_r = weights_R[_own(batch.counts)]
    denominators_gr = units_grH.new_empty(units_grH.shape[:2])
    positive_logits_gP = units_grH.new_empty(len(units_grH), len(anchors_P))
    for block in blocks:
        logits_gbR = block.logits(units_grH, columns_gRH, temperature)
        denominators_gr[:, block.rows] = logits_gbR.logsumexp(2)
        positive_logits_gP[:, block.pairs] = logits_gbR[block.positives]
    losses_g = ((denominators_gr[:, anchors_P] - positive_logits_gP) * weights_r[anchors_P]).sum(1)
    positive_g = positive_logits_gP.sum(1) * temperature
    own_g = torch.linalg.vector_norm(units_grH, dim=(1, 2)).square()
    other_g = (units_grH.sum(1) * columns_gRH.sum(1)).sum(1) - own_g - positive_g

    # Anchors without positives have no loss: exp(logit - inf) = 0.
    denominators_gr.masked_fill_(weights_r.isinf(), torch.inf)
    denominators_gR = _gather(denominators_gr, batch.counts)()
    gradient_grH = torch.empty_like(units_grH)
    for block in blocks:
        if len(blocks) > 1:
            logits_gbR = block.logits(units_grH, columns_gRH, temperature)
        slopes_gbR = (logits_gbR - denominators_gr[:, block.rows, None]).exp_()
        slopes_gbR += logits_gbR.sub_(denominators_gR[:, None]).exp_()
        slopes_gbR[block.positives] -= weights_r[anchors_P[block.pairs]] + weights_R[positives_P[block.pairs]]
        gradient_grH[:, block.rows] = slopes_gbR @ columns_gRH
    return losses_g, positive_g, other_g, gradient_grH.div_(temperature)


@dataclass
class _Block:
    """Neighbouring rows of this rank.

    Attributes:
        rows: Their places among the r.
        pairs: The places of their positive pairs among the P.
        positives, excluded: Their positive and their excluded pairs, as an index into (g, b, R).
    """

    rows: slice
    pairs: slice
    positives: tuple[slice, Tensor, Tensor]
    excluded: tuple[slice, Tensor, Tensor]

    def logits(self, units_grH: Tensor, columns_gRH: Tensor, temperature: float) -> Tensor:
        """Cosines / tau of the rows with all columns, -inf where excluded, of shape (g, b, R)."""
        logits_gbR = (units_grH[:, self.rows] / temperature) @ columns_gRH.mT
        logits_gbR[self.excluded] = -torch.inf
        return logits_gbR


def _blocks(batch: WordBatch) -> list[_Block]:
    """The rows of this rank in blocks of at most ``BLOCK_ELEMENTS`` cosines."""
    rows, columns = batch.counts[_rank(batch.counts)], sum(batch.counts)
    starts = [*range(0, rows, max(1, BLOCK_ELEMENTS // columns)), rows]
    cuts = [_cuts(places, starts) for places, _ in (batch.positives, batch.excluded)]
    blocks = []
    for first, end, pairs, excluded in zip(starts, starts[1:], *cuts, strict=False):
        (anchors, positives), (places, others) = batch.positives, batch.excluded
        blocks.append(
            _Block(
                slice(first, end),
                pairs,
                (slice(None), anchors[pairs] - first, positives[pairs]),
                (slice(None), places[excluded] - first, others[excluded]),
            )
        )
    return blocks


def _cuts(ascending: Tensor, starts: list[int]) -> list[slice]:
    """Where the values of each range ``starts[i]:starts[i + 1]`` stand; waits for the device if there are several."""
    if len(starts) == 2:
        return [slice(0, len(ascending))]
    ends = torch.searchsorted(ascending, torch.tensor(starts, device=ascending.device)).tolist()
    return [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]


def _gathered(states: Sequence[Tensor], counts: list[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Groups of layers: unit rows (g, r, H), their norms (g, r), and the unit rows of all ranks (g, R, H).

    Small layers share a group, so that they cost one collective; the next group travels while one is worked at, and so
    a group has a quarter of ``BLOCK_ELEMENTS``. All ranks make the same groups, however uneven their shares.
    """
    size = max(1, BLOCK_ELEMENTS // (4 * sum(counts) * max(*counts, states[0].shape[1])))
    groups = [states[first : first + size] for first in range(0, len(states), size)]
    started = _start(groups[0], counts)
    for following in (*groups[1:], None):
        units_grH, norms_gr, finish = started
        if following is not None:
            started = _start(following, counts)
        yield units_grH, norms_gr, finish()


def _start(group: Sequence[Tensor], counts: list[int]) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    states_grH = torch.stack(tuple(group))
    norms_gr = torch.linalg.vector_norm(states_grH, dim=2)
    norms_gr.masked_fill_(norms_gr < _SHORTEST, torch.inf)
    units_grH = states_grH.div_(norms_gr[..., None])
    return units_grH, norms_gr, _gather(units_grH, counts)


def _gather(local: Tensor, counts: list[int]) -> Callable[[], Tensor]:
    """Start to gather ``local``, of shape (g, r, ...); the result waits and gives (g, R, ...), in rank order."""
    if len(counts) == 1:
        return lambda: local
    padding = [0, 0] * (local.dim() - 2) + [0, max(counts) - local.shape[1]]
    padded = functional.pad(local, padding).contiguous()
    gathered = padded.new_empty(len(counts) * len(padded), *padded.shape[1:])
    work = _all_gather(gathered, padded, async_op=True)

    def finish() -> Tensor:
        work.wait()
        parts = zip(gathered.split(len(padded)), counts, strict=True)
        return torch.cat([part[:, :count] for part, count in parts], dim=1)

    return finish


def _rank(counts: list[int]) -> int:
    return dist.get_rank() if len(counts) > 1 else 0


def _own(counts: list[int]) -> slice:
    """The places of this rank's rows among the R."""
    rank = _rank(counts)
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))
